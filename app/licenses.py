"""License tokens and the keys that sign them. Pure: no Flask, no SQL, no files.

Tokens are JWS compact serialisations (RFC 7515), RS256 only, `kid` = RFC 7638 thumbprint.
"""

import base64
import binascii
import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Final

from app.encoding import read_json, rfc3339
from app.entitlements import Entitlement
from app.plans import UNLIMITED_IN_LICENSE

# python-jose and cryptography are imported where they are used, as they take a third of a command's time.
ALGORITHM: Final = "RS256"
MIN_KEY_BITS: Final = 2048
MAX_TOKEN_LENGTH: Final = 8192
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)
_KID: Final = re.compile(r"[A-Za-z0-9_-]{43}", re.ASCII)
_CUSTOMER_ID: Final = re.compile(r"cust_[a-z0-9]{12,250}", re.ASCII)
_SEGMENTS: Final = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+", re.ASCII)


class InvalidKey(Exception):
    """A PEM that cannot serve as a license key; the message is the reason, without any of its content."""


class InvalidToken(Exception):
    """Why a token is refused: MALFORMED, UNKNOWN_KEY or BAD_SIGNATURE."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


@dataclass(frozen=True)
class PublicKey:
    """A key that verifies; `pem` is SubjectPublicKeyInfo text."""

    kid: str
    pem: str

    @cached_property
    def key(self) -> Any:
        """The parsed key; parsing costs far more than a verification, hence once."""
        return _jose_key(self.pem)

    def as_jwk(self) -> dict[str, str]:
        """RFC 7517 member of the JWK Set."""
        return {"use": "sig", "kid": self.kid, **self.key.to_dict()}


@dataclass(frozen=True)
class SigningKey:
    """A private key, which is never printed, and its public half."""

    public: PublicKey
    private: Any = field(repr=False)


@dataclass(frozen=True, slots=True)
class Token:
    """A token with a good signature. Expiry and revocation are for the caller to check."""

    customer_id: str
    jti: str
    kid: str
    issued_at: datetime
    expires_at: datetime
    claims: Mapping[str, Any]


def parse_public_key(pem: bytes) -> PublicKey:
    """Raises InvalidKey unless `pem` is an RSA public key of at least 2048 bits."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        return _public_key(load_pem_public_key(pem))
    except (ValueError, UnsupportedAlgorithm):
        raise InvalidKey("not a PEM public key") from None


def parse_private_key(pem: bytes) -> SigningKey:
    """Raises InvalidKey unless `pem` is an unencrypted RSA private key of at least 2048 bits."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise InvalidKey("not an unencrypted PEM private key") from None
    return SigningKey(_public_key(key.public_key()), _jose_key(key))


def _public_key(key: Any) -> PublicKey:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    if not isinstance(key, rsa.RSAPublicKey):
        raise InvalidKey("not an RSA key")
    if key.key_size < MIN_KEY_BITS:
        raise InvalidKey(f"{key.key_size} bits; at least {MIN_KEY_BITS} are needed")
    pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    # RFC 7638: SHA-256 of the required members in lexicographic order, base64url.
    members = {name: value for name, value in sorted(_jose_key(key).to_dict().items()) if name != "alg"}
    thumbprint = hashlib.sha256(json.dumps(members, separators=(",", ":")).encode()).digest()
    return PublicKey(_base64(thumbprint), pem.decode())


def _jose_key(key: Any) -> Any:
    from jose import jwk
    from jose.backends.cryptography_backend import CryptographyRSAKey

    if jwk.get_key(ALGORITHM) is not CryptographyRSAKey:
        # Without its `cryptography` extra python-jose falls back silently to pure Python, 77 times slower.
        raise ImportError("python-jose runs without cryptography; install python-jose[cryptography]")
    return CryptographyRSAKey(key, ALGORITHM)


def generate_private_key() -> bytes:
    """A fresh 2048-bit RSA key as PKCS#8 PEM."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    return rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def license_claims(
    customer: Mapping[str, Any],
    entitlement: Entitlement,
    *,
    issuer: str,
    jti: str,
    issued_at: datetime,
    expires_at: datetime,
) -> dict[str, Any]:
    """The claims deployed instances read. 'Unlimited' is 999999, or an absent key in `limits`."""
    features = entitlement.plan.features(entitlement.license_devices, entitlement.retention_days)
    trial: dict[str, Any] = {"isTrialMode": entitlement.trial_mode}
    if entitlement.trial_ends_at is not None:
        trial["expiresAt"] = rfc3339(entitlement.trial_ends_at)
    # Deployed instances take `canceled` for an order to refuse the whole license; trial mode was promised.
    subscription = {"status": "expired" if entitlement.status == "canceled" else entitlement.status}
    if entitlement.subscription and entitlement.subscription["current_period_ends_at"]:
        subscription["currentPeriodEndsAt"] = rfc3339(entitlement.subscription["current_period_ends_at"])
    iat, exp = int(issued_at.timestamp()), int(expires_at.timestamp())
    return {
        "iss": issuer,
        "sub": customer["customer_id"],
        "jti": jti,
        "iat": iat,
        "exp": exp,
        "customerId": customer["customer_id"],
        "customerName": customer["company_name"] or customer["name"] or customer["email"],
        "plan": entitlement.plan.name,
        "features": {k: UNLIMITED_IN_LICENSE if v is None else v for k, v in features.items()},
        "limits": {k: v for k, v in entitlement.plan.limits().items() if v is not None},
        "trial": trial,
        "subscription": subscription,
        "issuedAt": iat,
        "expiresAt": exp,
    }


def fingerprint(claims: Mapping[str, Any]) -> str:
    """SHA-256 over what the entitlement decides: equal means 'the same license, only younger'."""
    issue_only = {"jti", "iat", "exp", "issuedAt", "expiresAt"}
    decided = {k: v for k, v in claims.items() if k not in issue_only}
    return hashlib.sha256(json.dumps(decided, sort_keys=True).encode()).hexdigest()


def sign(claims: Mapping[str, Any], key: SigningKey) -> str:
    from jose import jws

    return str(jws.sign(claims, key.private, headers={"kid": key.public.kid}, algorithm=ALGORITHM))


def read_token(token: str, find_key: Callable[[str], PublicKey | None], issuer: str) -> Token:
    """Check form and signature, nothing about time or revocation. Raises InvalidToken."""
    if len(token) > MAX_TOKEN_LENGTH or not _SEGMENTS.fullmatch(token):
        raise InvalidToken("MALFORMED")
    signing_input, _, signature_text = token.rpartition(".")
    header_text, _, claims_text = signing_input.partition(".")
    header, signature = _json_object(header_text), _unbase64(signature_text)
    kid = header.get("kid")
    # No `crit`, no `jku`, `x5u` or `jwk`: a key is only ever found by a `kid` of ours.
    if header.keys() - {"alg", "typ", "kid"} or header.get("alg") != ALGORITHM or not isinstance(kid, str):
        raise InvalidToken("MALFORMED")
    public_key = find_key(kid) if _KID.fullmatch(kid) else None
    if public_key is None:
        raise InvalidToken("UNKNOWN_KEY")
    if not public_key.key.verify(signing_input.encode(), signature):
        raise InvalidToken("BAD_SIGNATURE")
    claims = _json_object(claims_text)
    begins = claims.get("nbf", 0)  # RFC 7519 section 4.1.5
    texts, times = ("iss", "sub", "jti"), ("iat", "exp")
    if (
        not all(isinstance(claims.get(name), str) for name in texts)
        or not all(type(claims.get(name)) is int and 0 <= claims[name] < 2**35 for name in times)
        or claims["iss"] != issuer
        or not _CUSTOMER_ID.fullmatch(claims["sub"])
        or not _UUID.fullmatch(claims["jti"])
        or type(begins) not in (int, float)
        or begins > time.time()
    ):
        raise InvalidToken("MALFORMED")
    return Token(
        customer_id=claims["sub"],
        jti=claims["jti"],
        kid=kid,
        issued_at=datetime.fromtimestamp(claims["iat"], UTC),
        expires_at=datetime.fromtimestamp(claims["exp"], UTC),
        claims=claims,
    )


def _base64(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()


def _unbase64(text: str) -> bytes:
    """Plain base64url in its one canonical spelling."""
    with suppress(binascii.Error):
        octets = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        if _base64(octets) == text:
            return octets
    raise InvalidToken("MALFORMED")


def _json_object(segment: str) -> dict[str, Any]:
    with suppress(ValueError):
        value = read_json(_unbase64(segment))
        if isinstance(value, dict):
            return value
    raise InvalidToken("MALFORMED")
