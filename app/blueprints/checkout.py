"""The small pages that Stripe sends the browser back to."""

import re

from flask import Blueprint, render_template, request

from app.auth import public
from app.context import set_actor
from app.entitlements import LIVE_STATUSES
from app.errors import DomainError
from app.services.checkout import complete_checkout

blp = Blueprint("checkout", __name__, url_prefix="/checkout", template_folder="../templates")
_SESSION_ID = re.compile(r"cs_[A-Za-z0-9_]{1,250}", re.ASCII)


@blp.get("/success")
@public
def success() -> tuple[str, int] | tuple[str, int, dict[str, str]]:
    """Sync the session's subscription at once, so that its license is right before the webhook comes."""
    session_id = request.args.get("session_id", "")
    set_actor("checkout:success")
    try:
        bought = complete_checkout(session_id) if _SESSION_ID.fullmatch(session_id) else None
    except DomainError as error:
        # The payment is safe with Stripe, and the webhook brings it: nothing to worry the customer with.
        return render_template("pending.html"), error.code, error.headers
    if bought is None:
        return render_template("unknown.html"), 404
    if bought["status"] not in LIVE_STATUSES:
        return render_template("pending.html"), 200
    return render_template("success.html", bought=bought), 200


@blp.get("/cancel")
@public
def cancel() -> str:
    return render_template("cancel.html")


@blp.get("/back")
@public
def back() -> str:
    """Where the billing portal leads back to unless the caller names another address."""
    return render_template("back.html")
