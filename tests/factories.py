"""Customers and reports for tests, made through the API like anybody's."""

import itertools
from datetime import UTC, datetime, timedelta
from typing import Any

from flask.testing import FlaskClient

from tests.conftest import ADMIN

_numbers = itertools.count(1)


def make_customer(client: FlaskClient, **fields: Any) -> dict[str, Any]:
    """A customer as the API answered, `license` included."""
    body = {"email": f"customer{next(_numbers)}@example.com", "name": "Customer Name", **fields}
    answer = client.post("/api/customers", json=body, headers=ADMIN)
    assert answer.status_code == 201, answer.json
    return dict(answer.json)


def bearer(license_token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {license_token}"}


def report_body(customer_id: str, active: int = 5, total: int = 10, **fields: Any) -> dict[str, Any]:
    return {
        "customerId": customer_id,
        "instanceId": "dev-1",
        "activeDevices": active,
        "totalDevices": total,
        **fields,
    }


def ago(**delta: float) -> str:
    """RFC 3339 text of a time in the past: `ago(hours=3)`."""
    return (datetime.now(UTC) - timedelta(**delta)).isoformat().replace("+00:00", "Z")
