"""Licenses in and out."""

from marshmallow import fields

from app.schemas.base import CamelSchema, InputSchema, Instant, Text


class RevokeRequest(InputSchema):
    body_optional = True

    reason = Text(max_length=500, allow_none=True, load_default=None)


class VerifyRequest(InputSchema):
    license = fields.String(required=True)


class LicenseAnswer(CamelSchema):
    customer_id = fields.String(required=True)
    license = fields.String(required=True)
    public_key = fields.String(required=True)
    plan = fields.String(required=True)
    status = fields.String(required=True)
    issued_at = Instant(required=True)
    expires_at = Instant(required=True)


class RevocationAnswer(CamelSchema):
    customer_id = fields.String(required=True)
    revoked = fields.Boolean(required=True)
    revoked_at = Instant(required=True, allow_none=True)
    reason = fields.String(attribute="revoke_reason", required=True, allow_none=True)
    license = fields.String()


class VerifyAnswer(CamelSchema):
    valid = fields.Boolean(required=True)
    code = fields.String(required=True)
    claims = fields.Dict()


class PublicKeyAnswer(CamelSchema):
    public_key = fields.String(required=True)
    kid = fields.String(required=True)
    algorithm = fields.String(required=True)


class JwkSchema(CamelSchema):
    kty = fields.String(required=True)
    use = fields.String(required=True)
    alg = fields.String(required=True)
    kid = fields.String(required=True)
    n = fields.String(required=True)
    e = fields.String(required=True)


class JwksAnswer(CamelSchema):
    keys = fields.List(fields.Nested(JwkSchema), required=True)


class RevocationsAnswer(CamelSchema):
    revocations = fields.String(required=True)
    expires_at = Instant(required=True)
