"""Refusals, in the words and the shape of Stripe's own error answers.

https://docs.stripe.com/api/errors
"""

from __future__ import annotations

from typing import Any


class Refusal(Exception):
    """A request that Stripe would refuse; carries the whole answer.

    `saved` tells whether an idempotency key keeps it: Stripe keeps what an endpoint decided, not
    what parameter validation said before it ran.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        saved: bool = True,
        **more: Any,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.saved = saved
        fields = {"type": type, "code": code, "message": message, "param": param, **more}
        self.body = {"error": {k: v for k, v in fields.items() if v is not None}}


def invalid(message: str, param: str | None = None, code: str | None = None) -> Refusal:
    """400: the endpoint does not do this with the objects as they are."""
    return Refusal(400, message, param=param, code=code)


def bad_param(message: str, param: str, code: str | None = None) -> Refusal:
    """400 from parameter validation; an idempotency key does not keep it."""
    return Refusal(400, message, param=param, code=code, saved=False)


def no_such(kind: str, id: str, param: str | None = None, livemode: bool | None = None) -> Refusal:
    """`resource_missing`: 404 for the object in the path, 400 for one named in a parameter.

    `livemode`: of the object of that id in the account's other mode, if there is one.
    """
    name = kind if "." in kind else kind.replace("_", " ")
    status, param = (400, param) if param else (404, "id")
    message = f"No such {name}: '{id}'"
    if livemode is not None:
        there, here = ("live", "test") if livemode else ("test", "live")
        message += (
            f"; a similar object exists in {there} mode, but a {here} mode key was used to make this request."
        )
    return Refusal(status, message, code="resource_missing", param=param)


DECLINES = {
    "expired_card": "Your card has expired.",
    "incorrect_cvc": "Your card's security code is incorrect.",
    "insufficient_funds": "Your card has insufficient funds.",
    "processing_error": "An error occurred while processing your card. Try again in a little bit.",
}
OWN_CODES = ("expired_card", "incorrect_cvc", "processing_error")


def card_refused(card: str | None, what: str = "subscription") -> Refusal:
    """What a charge answers for this card: none at all, "3ds", "decline" or a decline code.

    https://docs.stripe.com/declines/codes
    """
    if card is None:
        return invalid(
            "This customer has no attached payment source or default payment method. Please "
            "consider adding a default payment method.",
            code="resource_missing",
        )
    if card == "3ds":
        invoice = "`subscription.latest_invoice`" if what == "subscription" else "the invoice"
        return Refusal(
            402,
            f"Payment for this {what} requires additional user action before it can be completed "
            f"successfully. Payment can be completed using the PaymentIntent associated with {invoice}.",
            type="card_error",
            code=f"{what}_payment_intent_requires_action",
        )
    return Refusal(
        402,
        DECLINES.get(card, "Your card was declined."),
        type="card_error",
        code=card if card in OWN_CODES else "card_declined",
        decline_code="generic_decline" if card == "decline" else card,
    )
