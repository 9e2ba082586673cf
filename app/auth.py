"""Who calls, and whether they may: every view carries exactly one of the guards below."""

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache, wraps
from typing import Any, Final

from flask import g, request

from app.context import now, set_actor
from app.errors import Forbidden, NotFound, Unauthorized
from app.extensions import db, settings
from app.licenses import InvalidToken, Token, read_token
from app.queries import licenses
from app.ratelimit import Limit
from app.services.licenses import find_key, require_serving

STALE_LICENSE_SERVES: Final = timedelta(days=30)
_ID: Final = re.compile(r"[A-Za-z0-9_]{1,255}", re.ASCII)
_WITH_PORT: Final = re.compile(r"\[(?P<v6>[^]]*)](:\d+)?|(?P<v4>[\d.]+):\d+", re.ASCII)

View = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Caller:
    """An operator (`license` None), or an instance with its license."""

    license: Token | None
    renewing: bool = False
    """At a route that also serves licenses that have expired, or are younger than a restored database."""

    @property
    def customer_id(self) -> str | None:
        return self.license.customer_id if self.license else None


def public(view: View) -> View:
    """No credential needed; limited by address."""

    @wraps(view)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        Limit.ADDRESS.hit(_network())
        return view(*args, **kwargs)

    return _declare(guarded, "public")


def unlimited(view: View) -> View:
    """No credential, no rate limit: for probes and the metrics scraper."""
    return _declare(view, "public")


def stripe_signed(view: View) -> View:
    """Stripe: the view itself checks the signature over the body."""
    return _declare(view, "stripe")


def admin(view: View) -> View:
    """Operators with one of the ADMIN_API_KEYs."""

    @wraps(view)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        g.caller = _authenticate()
        if caller().license:
            require_license_on_record()
            raise Forbidden("This needs an admin key; a license is not enough.")
        _require_ids(kwargs)
        return view(*args, **kwargs)

    return _declare(guarded, "admin")


def own(*, allow_expired: bool = False, checked_by_query: bool = False) -> Callable[[View], View]:
    """Operators, or the customer whose id is in the path (or in the body, see `require_own`).

    `allow_expired`: a license that expired less than 30 days ago still serves. `checked_by_query`: the view's
    own statement looks the license up, with `require_serving`, which saves a round trip.
    """

    def decorator(view: View) -> View:
        @wraps(view)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            g.caller = _authenticate(renewing=allow_expired)
            if not checked_by_query:
                require_license_on_record()
            if "customer_id" in kwargs:
                require_own(kwargs["customer_id"])
            _require_ids(kwargs)
            return view(*args, **kwargs)

        return _declare(guarded, "own")

    return decorator


def _declare(view: View, guard: str) -> View:
    view.guard = guard  # type: ignore[attr-defined]
    return view


def caller() -> Caller:
    """Who was authenticated for this request."""
    return g.caller  # type: ignore[no-any-return]


def require_own(customer_id: str) -> None:
    """Forbidden for a license of another customer, whether this one exists or not."""
    if caller().customer_id not in (None, customer_id):
        require_license_on_record()
        raise Forbidden("This license is for another customer.")


def require_license_on_record() -> None:
    """Look the presented license up, if there is one. Raises Unauthorized; revoked: Forbidden."""
    who: Caller | None = g.get("caller")
    if who is None or who.license is None or g.get("license_checked"):
        return
    with db.statement() as cur:
        found = licenses.select_current_license(cur, who.license.customer_id, who.license.jti)
    require_serving(found, who.license.customer_id, who.license, renewing=who.renewing)
    g.license_checked = True


def _authenticate(*, renewing: bool = False) -> Caller:
    """Who calls, by signature and clock alone. Raises Unauthorized."""
    scheme, _, credential = request.headers.get("Authorization", "").partition(" ")
    credential = credential.strip(" \t")
    if scheme.lower() != "bearer" or not credential:
        Limit.ADDRESS.hit(_network())
        raise Unauthorized("An Authorization header with a Bearer credential is needed.")
    given = credential.encode("utf-8", "surrogatepass")
    for key in settings.admin_api_keys:
        if hmac.compare_digest(given, key.encode()):
            # The first digits of its hash identify the key, and reveal nothing.
            name = f"admin:{hashlib.sha256(key.encode()).hexdigest()[:8]}"
            Limit.ADMIN.hit(name)
            set_actor(name)
            return Caller(None)
    try:
        token = _verified(credential, settings.license_issuer)
        if find_key(token.kid) is None:  # removed since it was verified
            raise InvalidToken("UNKNOWN_KEY")
    except InvalidToken:
        Limit.FAILED_LOGIN.hit(_network())
        raise Unauthorized("The credential is not valid.") from None
    if token.expires_at + (STALE_LICENSE_SERVES if renewing else timedelta()) <= now():
        Limit.LICENSE.hit(f"expired {token.customer_id}")  # apart from the customer's valid one
        raise Unauthorized("The license has expired.")
    Limit.LICENSE.hit(token.customer_id)
    set_actor(f"customer:{token.customer_id}")
    return Caller(token, renewing)


@lru_cache(maxsize=5_000)
def _verified(text: str, issuer: str) -> Token:
    """A token with a good signature. Expiry, revocation and key removal are checked for each request."""
    return read_token(text, find_key, issuer)


def _network() -> str:
    """What public calls and failed logins are counted by: the address, of IPv6 the /64 that one host has."""
    text = request.remote_addr or ""
    with_port = _WITH_PORT.fullmatch(text)  # as some proxies forward it
    try:
        found = ipaddress.ip_address(with_port["v6"] or with_port["v4"] if with_port else text)
    except ValueError:
        return "unknown"
    found = getattr(found, "ipv4_mapped", None) or found
    return str(ipaddress.ip_network((found, 64), strict=False)) if found.version == 6 else str(found)


def _require_ids(view_args: dict[str, Any]) -> None:
    """NotFound for what cannot be an id, such as a NUL that PostgreSQL would refuse."""
    for name in ("customer_id", "subscription_id", "any_id"):
        if name in view_args and not _ID.fullmatch(view_args[name]):
            raise NotFound("There is nothing with this id.")
