"""The audit of what people ask for; what changes in a row is recorded by a trigger."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from app.errors import DomainError
from app.extensions import db
from app.queries import audit


@contextmanager
def audited(action: str, customer_id: str, subject: str, **note: Any) -> Iterator[None]:
    """Record who asks for this before it is done, and a second time with the reason if it is refused."""
    with db.transaction() as cur:
        audit.insert_audit(cur, action, customer_id=customer_id, subject=subject, note=note)
    try:
        yield
    except DomainError as error:
        refusal = note | {"refused": error.message}  # which contains Stripe's request id
        with suppress(DomainError), db.transaction() as cur:
            audit.insert_audit(cur, action, customer_id=customer_id, subject=subject, note=refusal)
        raise
