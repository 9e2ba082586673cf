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


def no_such(kind: str, id: str, param: str | None = None) -> Refusal:
    """`resource_missing`: 404 for the object in the path, 400 for one named in a parameter."""
    name = kind if "." in kind else kind.replace("_", " ")
    status, param = (400, param) if param else (404, "id")
    return Refusal(status, f"No such {name}: '{id}'", code="resource_missing", param=param)


def card_declined() -> Refusal:
    """402, what a refused card answers."""
    return Refusal(
        402,
        "Your card was declined.",
        type="card_error",
        code="card_declined",
        decline_code="generic_decline",
    )
