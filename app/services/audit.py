"""Who did what, with what was before and after, in the transaction of the change itself."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from app.db import Cursor
from app.parts import actor
from app.queries import audit

PERSONAL_FIELDS: Final = ["email", "name", "company_name", "stripe_customer_id", "reason", "revoke_reason"]
_LEFT_OUT: Final = {"id", "token", "fingerprint", "updated_at", "fetched_at", "recheck"}


def record(
    cur: Cursor,
    action: str,
    *,
    subject: str,
    customer_id: str | None = None,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
) -> None:
    """Add a line. Of two rows given only what differs is kept; secrets never are."""
    old, new = _told(before), _told(after)
    if old is not None and new is not None:
        differing = {name for name in old.keys() | new.keys() if old.get(name) != new.get(name)}
        old, new = _only(old, differing), _only(new, differing)
    who = actor()
    audit.insert_audit(
        cur,
        actor=who.name,
        action=action,
        customer_id=customer_id,
        subject=subject,
        before=old,
        after=new,
        request_id=who.request_id,
    )


def _told(row: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if row is None:
        return None
    return {name: value for name, value in row.items() if name not in _LEFT_OUT}


def _only(row: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: row[name] for name in sorted(names) if name in row}
