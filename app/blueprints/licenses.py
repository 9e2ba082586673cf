"""Licenses and keys over HTTP."""

from typing import Any

from flask import Response, jsonify, request

from app.api import Blueprint
from app.auth import admin, caller, own, public
from app.db import Row
from app.licenses import ALGORITHM
from app.schemas import licenses as schemas
from app.schemas.subscriptions import EmptyRequest
from app.services import licenses

blp = Blueprint("licenses", __name__, description="What they may use, in a signed token")


@blp.route("/api/licenses/<customer_id>", methods=["GET"])
@own(allow_expired=True, checked_by_query=True)
@blp.response(200, schemas.LicenseAnswer)
def show(customer_id: str) -> Row:
    """Hand out the current license"""
    current = licenses.current_license(customer_id, caller().license)
    key = licenses.find_key(current["kid"]) or licenses.signing_key().public
    return current | {"license": current["token"], "public_key": key.pem}


@blp.route("/api/licenses/<customer_id>/revoke", methods=["POST"])
@admin
@blp.arguments(schemas.RevokeRequest)
@blp.response(200, schemas.RevocationAnswer)
def revoke(body: dict[str, Any], customer_id: str) -> Row:
    """Revoke every license of a customer, and issue none until reinstated"""
    return licenses.revoke(customer_id, body["reason"]) | {"revoked": True}


@blp.route("/api/licenses/<customer_id>/reinstate", methods=["POST"])
@admin
@blp.arguments(EmptyRequest)
@blp.response(200, schemas.RevocationAnswer)
def reinstate(_body: dict[str, Any], customer_id: str) -> Row:
    """Issue licenses again, beginning with a new one"""
    customer, license_row, _ = licenses.reinstate(customer_id)
    return customer | {"revoked": False, "license": license_row["token"]}


@blp.route("/api/licenses/verify", methods=["POST"])
@public
@blp.arguments(schemas.VerifyRequest)
@blp.response(200, schemas.VerifyAnswer)
def verify(body: dict[str, Any]) -> Row:
    """Check a license: whether it is valid, and if not, why"""
    code, token = licenses.verify(body["license"])
    answer: Row = {"valid": code in ("VALID", "SUPERSEDED"), "code": code}
    return answer | {"claims": token.claims} if token else answer


@blp.route("/api/licenses/public-key", methods=["GET"])
@public
@blp.response(200, schemas.PublicKeyAnswer)
def public_key() -> Row:
    """The key that signs now"""
    key = licenses.trusted_signing_key().public
    return {"public_key": key.pem, "kid": key.kid, "algorithm": ALGORITHM}


@blp.route("/.well-known/jwks.json", methods=["GET"])
@public
@blp.response(200, schemas.JwksAnswer)
def get_key_set() -> Response:
    """Every key that a living license may be signed with (RFC 7517)"""
    return _cacheable(jsonify(keys=[key.as_jwk() for key in licenses.published_keys()]))


@blp.route("/api/licenses/revocations", methods=["GET"])
@public
@blp.response(200, schemas.RevocationsAnswer)
def list_revocations() -> Response:
    """The signed list of revoked licenses, to check offline"""
    token, expires_at = licenses.revocation_list()
    return _cacheable(jsonify(revocations=token, expiresAt=expires_at))


def _cacheable(response: Response) -> Response:
    """With ETag, good for five minutes; 304 if the caller has it already."""
    response.headers["Cache-Control"] = "public, max-age=300"
    response.add_etag()
    response.make_conditional(request)
    return response
