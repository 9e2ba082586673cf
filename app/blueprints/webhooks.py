"""Stripe's webhooks."""

from flask import Response, jsonify, request

from app.auth import stripe_signed
from app.http import Blueprint, read_body
from app.parts import parts
from app.schemas.webhooks import WebhookAnswer
from app.services.stripe_sync import handle_event

blp = Blueprint("webhooks", __name__, url_prefix="/webhooks", description="What Stripe tells")


@blp.route("/stripe", methods=["POST"], errors=(400, 413, 502))
@stripe_signed
@blp.response(200, WebhookAnswer)
def stripe() -> Response:
    """Follow an event of Stripe"""
    event = parts().stripe.read_event(read_body(), request.headers.get("Stripe-Signature", ""))
    return jsonify(received=True, outcome=handle_event(event))
