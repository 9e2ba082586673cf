"""Stripe's webhooks."""

from flask import Response, jsonify, request

from app.api import Blueprint, read_body
from app.auth import stripe_signed
from app.extensions import stripe
from app.schemas.webhooks import WebhookAnswer
from app.services.stripe_events import handle_event

blp = Blueprint("webhooks", __name__, url_prefix="/webhooks", description="Events from Stripe")


@blp.route("/stripe", methods=["POST"], errors=(400, 413, 502))
@stripe_signed
@blp.response(200, WebhookAnswer)
def receive() -> Response:
    """Follow an event of Stripe"""
    event = stripe.read_event(read_body(), request.headers.get("Stripe-Signature", ""))
    return jsonify(received=True, outcome=handle_event(event))
