"""The small pages that Stripe sends the browser back to."""

import re

from flask import Blueprint, render_template, request

from app.auth import public
from app.context import set_actor
from app.entitlements import LIVE_STATUSES
from app.errors import DomainError
from app.services.subscriptions import complete_checkout

blp = Blueprint("checkout", __name__, url_prefix="/checkout", template_folder="../templates")
_SESSION_ID = re.compile(r"cs_[A-Za-z0-9_]{1,250}", re.ASCII)


@blp.get("/success")
@public
def success() -> tuple[str, int] | tuple[str, int, dict[str, str]]:
    """Sync the session's subscription at once, so that its license is right before the webhook comes."""
    session_id = request.args.get("session_id", "")
    if not _SESSION_ID.fullmatch(session_id):
        return render_template("checkout.html", state="unknown"), 404
    set_actor("checkout:success")
    try:
        subscription = complete_checkout(session_id)
    except DomainError as error:
        # The payment is safe with Stripe, and the webhook will bring it; the browser need not fear.
        return render_template("checkout.html", state="pending"), error.code, error.headers
    if subscription is None:
        return render_template("checkout.html", state="unknown"), 404
    if subscription["status"] not in LIVE_STATUSES:
        return render_template("checkout.html", state="pending"), 200
    return render_template(
        "checkout.html", state="done", plan=subscription["plan"], status=subscription["status"]
    ), 200


@blp.get("/cancel")
@public
def cancel() -> str:
    return render_template("checkout.html", state="canceled")


@blp.get("/back")
@public
def back() -> str:
    """Where the billing portal leads back to unless the caller names another address."""
    return render_template("checkout.html", state="back")
