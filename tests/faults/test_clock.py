"""The clock is set back by an hour: what was made in the future serves, no license goes back in time."""

import sys
from datetime import datetime, timedelta

import pytest

from app import context
from app.licenses import parse_public_key, read_token
from tests.conftest import ADMIN
from tests.factories import bearer, make_customer, report_body


@pytest.fixture
def an_hour_ahead(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The service's clock goes an hour ahead until `undo`, which sets it back."""
    real = context.now

    def ahead() -> datetime:
        return real() + timedelta(hours=1)

    for name, module in list(sys.modules.items()):
        if name.startswith("app") and getattr(module, "now", None) is real:
            monkeypatch.setattr(module, "now", ahead)
    return monkeypatch


def test_the_clock_is_set_back_an_hour(client, an_hour_ahead):
    key = parse_public_key(client.get("/api/licenses/public-key").json["publicKey"].encode())

    def issued(token: str) -> datetime:
        return read_token(token, lambda kid: key, "zemfyre-billing").issued_at

    made = make_customer(client, plan="starter")
    path, own = f"/api/licenses/{made['customerId']}", bearer(made["license"])
    an_hour_ahead.undo()
    assert issued(made["license"]) > context.now() + timedelta(minutes=50)

    assert client.get(path, headers=own).json["license"] == made["license"]
    assert client.post("/api/licenses/verify", json={"license": made["license"]}).json["code"] == "VALID"
    answer = client.post("/api/usage/report", json=report_body(made["customerId"]), headers=own)
    assert (answer.status_code, answer.json.get("license")) == (201, None)

    change = {"companyName": "Engines Ltd"}
    assert client.patch(f"/api/customers/{made['customerId']}", json=change, headers=ADMIN).status_code == 200
    renewed = client.get(path, headers=own).json["license"]
    assert renewed != made["license"]
    assert issued(renewed) >= issued(made["license"])
    assert client.post("/api/licenses/verify", json={"license": made["license"]}).json["code"] == "SUPERSEDED"

    assert client.post(f"{path}/revoke", headers=ADMIN).status_code == 200
    assert client.post("/api/licenses/verify", json={"license": renewed}).json["code"] == "REVOKED"
    again = client.post(f"{path}/reinstate", headers=ADMIN).json["license"]
    assert issued(again) >= issued(renewed)
    assert client.get("/health/ready").status_code == 200
