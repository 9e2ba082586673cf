"""Who calls, and whether they may: every view carries exactly one of the guards below."""

import hashlib
import hmac
import ipaddress
import re
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import wraps
from typing import Any, Final

from flask import g, request
from werkzeug.exceptions import HTTPException

from app.errors import DomainError, Forbidden, NotFound, Unauthorized, Unavailable
from app.licenses import InvalidToken, Token
from app.parts import now, parts, set_actor
from app.queries import licenses
from app.ratelimit import Limit
from app.services.licenses import decode, find_key

STALE_TOKEN_SERVES: Final = timedelta(days=30)
CACHED_TOKENS: Final = 20_000
_WITH_PORT: Final = re.compile(r"\[(?P<v6>[^]]*)](:\d+)?|(?P<v4>[\d.]+):\d+", re.ASCII)
_PATH_ID: Final = re.compile(r"[A-Za-z0-9_]{1,255}", re.ASCII)

View = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Caller:
    """An operator (`customer_id` None) or an instance with its license."""

    customer_id: str | None
    jti: str | None

    @property
    def is_admin(self) -> bool:
        return self.customer_id is None


class TokenCache:
    """Tokens whose signature was checked, by the hash of their whole text; the oldest goes first.

    Only the signature is remembered: expiry, revocation and the key's standing are judged each time.
    """

    def __init__(self, size: int = CACHED_TOKENS) -> None:
        self._size = size
        self._tokens: OrderedDict[bytes, Token] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, text: str) -> Token:
        """Raises InvalidToken."""
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
        token = self._tokens.get(digest)
        if token is None:
            token = replace(decode(text), claims={})  # which nobody here asks for, and which are long
            with self._lock:
                self._tokens[digest] = token
                while len(self._tokens) > self._size:
                    self._tokens.popitem(last=False)
        return token


_cache = TokenCache()


def public(view: View) -> View:
    """Anybody; limited by address."""

    @wraps(view)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        Limit.ADDRESS.hit(_network())
        return view(*args, **kwargs)

    return _declare(guarded, "public")


def unlimited(view: View) -> View:
    """Anybody, as often as they like: what probes and the metrics scraper ask."""
    return _declare(view, "public")


def stripe_signed(view: View) -> View:
    """Stripe: the view itself checks the signature over the body."""
    return _declare(view, "stripe")


def admin(view: View) -> View:
    """Operators with one of the ADMIN_API_KEYs."""

    @wraps(view)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        caller = authenticate()
        if not caller.is_admin:
            confirm(caller)
            raise Forbidden("This needs an admin key; a license is not enough.")
        _check_ids(kwargs)
        return view(*args, **kwargs)

    return _declare(guarded, "admin")


def own(view: View) -> View:
    """Operators, or the customer whose id is in the path (or checked by the view, see `require_own`)."""
    return _own(view)


def own_or_expired(view: View) -> View:
    """The same, and a license that expired less than 30 days ago still serves."""
    return _own(view, or_expired=True)


def own_judged(view: View) -> View:
    """As `own`, for a view whose one statement judges the license's standing itself (`check_presented`)."""
    return _own(view, view_judges=True)


def own_or_expired_judged(view: View) -> View:
    """As `own_or_expired`, for such a view."""
    return _own(view, or_expired=True, view_judges=True)


def _own(view: View, *, or_expired: bool = False, view_judges: bool = False) -> View:
    @wraps(view)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        who = authenticate(allow_expired=or_expired)
        if not view_judges:
            confirm(who)
        try:
            if "customer_id" in kwargs:
                require_own(kwargs["customer_id"])
            _check_ids(kwargs)
            return view(*args, **kwargs)
        except Unavailable:
            raise  # asking again would wait as long again
        except (DomainError, HTTPException):
            confirm(who)  # what is refused before the view's statement must not hide that it does not count
            raise

    return _declare(guarded, "own")


def _declare(view: View, guard: str) -> View:
    view.guard = guard  # type: ignore[attr-defined]
    return view


def caller() -> Caller:
    """Who was authenticated for this request."""
    return g.caller  # type: ignore[no-any-return]


def require_own(customer_id: str) -> None:
    """Forbidden for a license of another customer, whether this one exists or not."""
    if caller().customer_id not in (None, customer_id):
        raise Forbidden("This license is for another customer.")


def authenticate(*, allow_expired: bool = False) -> Caller:
    """Who calls, by signature and clock alone; `confirm` asks the record. Raises Unauthorized."""
    scheme, _, credential = request.headers.get("Authorization", "").partition(" ")
    credential = credential.strip(" \t")
    if scheme.lower() != "bearer" or not credential:
        Limit.ADDRESS.hit(_network())  # who brings no credential has not failed with one
        raise Unauthorized("An Authorization header with a Bearer credential is needed.")
    name = _admin_name(credential)
    if name is not None:
        Limit.ADMIN.hit(name)
        set_actor(name)
        return _remember(Caller(None, None))
    try:
        token = _cache.read(credential)
    except InvalidToken:
        raise _failed("The credential is not valid.") from None
    if find_key(token.kid) is None:
        raise _failed("The credential is not valid.")
    serves_until = token.expires_at + (STALE_TOKEN_SERVES if allow_expired else timedelta())
    if serves_until <= now():
        Limit.LICENSE.hit(f"expired {token.customer_id}")  # apart from the one that counts
        raise Unauthorized("The license has expired.")
    Limit.LICENSE.hit(token.customer_id)
    set_actor(f"customer:{token.customer_id}")
    return _remember(Caller(token.customer_id, token.jti))


def _remember(who: Caller) -> Caller:
    g.caller = who
    return who


def confirm(who: Caller) -> None:
    """Ask the record, once a request, whether a license counts. Raises Unauthorized; revoked: Forbidden."""
    if who.jti is None or g.get("confirmed") is who:
        return
    with parts().db.statement() as cur:
        state = licenses.select_license_state(cur, who.jti)
    if state is None or state["customer_id"] != who.customer_id or state["erased_at"]:
        raise Unauthorized("This license is not on record.")
    if state["revoked_at"]:
        raise Forbidden("This license is revoked.")
    g.confirmed = who


def address() -> str:
    """The caller's address: the peer, or what the proxies we were told to trust say of it."""
    trusted = parts().settings.trusted_proxies
    hops = [hop.strip() for hop in request.headers.get("X-Forwarded-For", "").split(",") if hop.strip()]
    current = request.remote_addr or "unknown"
    while hops and trusted and _is_within(current, trusted):
        current = hops.pop()
    return current


def _network() -> str:
    """Where failures and public calls are counted: one IPv6 host has a whole /64 of addresses."""
    found = _parsed(address())
    if found is None:
        return "unknown"
    return str(ipaddress.ip_network((found, 64), strict=False)) if found.version == 6 else str(found)


def _is_within(text: str, networks: Any) -> bool:
    found = _parsed(text)
    return found is not None and any(found in network for network in networks)


def _parsed(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """An address, without the port that some proxies add; IPv4 in IPv6's clothes as IPv4."""
    with_port = _WITH_PORT.fullmatch(text)
    try:
        found = ipaddress.ip_address(with_port["v6"] or with_port["v4"] if with_port else text)
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found


def _admin_name(credential: str) -> str | None:
    """`admin:` and the first digits of the key's hash, which identify it and reveal nothing."""
    given = credential.encode("utf-8", "surrogatepass")
    name = None
    for key in parts().settings.admin_api_keys:
        if hmac.compare_digest(given, key.encode()):
            name = f"admin:{hashlib.sha256(key.encode()).hexdigest()[:8]}"
    return name


def _failed(message: str) -> Unauthorized:
    """Count a forged credential against the address (429 when there were too many)."""
    Limit.FAILED_LOGIN.hit(_network())
    return Unauthorized(message)


def _check_ids(view_args: dict[str, Any]) -> None:
    for name in ("customer_id", "subscription_id", "any_id"):
        if name in view_args and not _PATH_ID.fullmatch(view_args[name]):
            raise NotFound("There is nothing with this id.")
