"""Tokens for tests: what is in one, and ones that the service itself would not issue."""

import base64
import json
import time
from typing import Any

from flask import Flask

from app.licenses import sign


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def segment(token: str, index: int) -> dict[str, Any]:
    text = token.split(".")[index]
    return dict(json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))))


def claims_of(token: str) -> dict[str, Any]:
    """What a token says, its signature not looked at."""
    return segment(token, 1)


def kid_of(token: str) -> str:
    return str(segment(token, 0)["kid"])


def resign(app: Flask, token: str, **changes: Any) -> str:
    """The token with other claims, signed with the real key."""
    claims = claims_of(token) | changes
    return sign(claims, app.extensions["billing.keyring"].signing_key())


def expired(app: Flask, token: str, *, days: float) -> str:
    """The token as it would be, had it expired that long ago."""
    at = int(time.time() - days * 86400)
    return resign(app, token, iat=at - 86400, issuedAt=at - 86400, exp=at, expiresAt=at)
