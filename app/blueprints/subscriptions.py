"""Subscriptions over HTTP."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from flask import Response, make_response

from app.api import Blueprint
from app.auth import admin, caller, own, require_own
from app.db import Cursor, Row
from app.encoding import json_text
from app.idempotency import idempotent
from app.schemas import subscriptions as schemas
from app.services import checkout as checkouts
from app.services import subscriptions

blp = Blueprint(
    "subscriptions", __name__, url_prefix="/api/subscriptions", description="What they subscribe to"
)


def in_both_spellings(view: Callable[..., Any]) -> Callable[..., Any]:
    """Add the names that deployed clients read, also to an answer kept under the route's other name."""

    @wraps(view)
    def wrapper(*args: Any, **kwargs: Any) -> Response:
        response = make_response(view(*args, **kwargs))
        if response.status_code == 201:
            answer = response.get_json()
            spelled = {"session_id": answer["sessionId"], "checkout_url": answer["checkoutUrl"]}
            response.set_data(json_text(answer | spelled))
        return response

    return wrapper


@blp.route("/create-checkout", methods=["POST"], errors=(402, 404, 409, 502))
@own()
@idempotent
@blp.arguments(schemas.CheckoutRequest)
@blp.response(201, schemas.CheckoutAnswer)
def create_checkout(body: dict[str, Any]) -> Row:
    """Open a Stripe Checkout page"""
    require_own(body["customer_id"])
    return checkouts.start_checkout(**body)


@blp.route("/checkout", methods=["POST"], errors=(402, 404, 409, 502))
@own()
@in_both_spellings
@idempotent(route="/api/subscriptions/create-checkout")
@blp.arguments(schemas.CheckoutRequest)
@blp.response(201, schemas.DeployedCheckoutAnswer)
def checkout(body: dict[str, Any]) -> Row:
    """Open a Stripe Checkout page, under the name that deployed clients use"""
    require_own(body["customer_id"])
    return checkouts.start_checkout(**body)


@blp.route("/create-trial", methods=["POST"], errors=(404, 409))
@admin
@idempotent(in_transaction=True)
@blp.arguments(schemas.TrialRequest)
@blp.response(201, schemas.LicensedSubscriptionAnswer)
def create_trial(body: dict[str, Any], cur: Cursor) -> Row:
    """Begin the one trial of a plan"""
    return _answer(*subscriptions.create_trial(cur, **body))


@blp.route("/<any_id>", methods=["GET"])
@own()
@blp.response(200, schemas.SubscriptionAnswer)
def show(any_id: str) -> Row:
    """Show a subscription, or the one that counts for a customer"""
    return {"subscription": subscriptions.get_subscription(any_id, only_of=caller().customer_id)}


@blp.route("/<subscription_id>/upgrade", methods=["POST"], errors=(402, 409, 502))
@admin
@blp.arguments(schemas.UpgradeRequest)
@blp.response(200, schemas.LicensedSubscriptionAnswer)
def upgrade(body: dict[str, Any], subscription_id: str) -> Row:
    """Move to another plan or interval, up or down"""
    return _answer(*subscriptions.upgrade(subscription_id, **body))


@blp.route("/<subscription_id>/cancel", methods=["POST"], errors=(409, 502))
@admin
@blp.arguments(schemas.CancelRequest)
@blp.response(200, schemas.SubscriptionAnswer)
def cancel(body: dict[str, Any], subscription_id: str) -> Row:
    """End now, or at the end of the paid period"""
    return {"subscription": subscriptions.cancel(subscription_id, **body)}


@blp.route("/<subscription_id>/resume", methods=["POST"], errors=(409, 502))
@admin
@blp.arguments(schemas.EmptyRequest)
@blp.response(200, schemas.SubscriptionAnswer)
def resume(_: dict[str, Any], subscription_id: str) -> Row:
    """Withdraw a pending cancellation"""
    return {"subscription": subscriptions.resume(subscription_id)}


def _answer(subscription: Row, license_row: Row | None) -> Row:
    return {"subscription": subscription, "license": license_row and license_row["token"]}
