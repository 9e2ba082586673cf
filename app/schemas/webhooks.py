"""Webhooks: the endpoint to set up, and what Stripe is answered."""

from marshmallow import fields

from app.schemas.base import CamelSchema, InputSchema, Url


class EndpointRequest(InputSchema):
    url = Url(allow_none=True, load_default=None)


class WebhookAnswer(CamelSchema):
    received = fields.Boolean(required=True)
    outcome = fields.String(required=True)
