"""What the service shows of itself: log lines and metrics, of one process and of several."""

import io
import json
import logging
import os
import re
import signal
import sys
from contextlib import suppress

import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.observe import JsonFormatter, TextFormatter, redacted
from tests.conftest import ADMIN, ADMIN_KEY
from tests.factories import bearer, report_body
from tests.server import wait_until
from tests.shop import Shop

ACCESS = {"time", "level", "logger", "message", "request_id", "method", "route", "status", "ms", "who"}


def sample(text, name, **labels):
    """The value in Prometheus' text, or None."""
    for family in text_string_to_metric_families(text):
        for found in family.samples:
            if (found.name, found.labels) == (name, labels):
                return found.value
    return None


def test_lines_and_counts_of_a_server_with_two_workers(serve):
    server = serve()
    made = server.post("/api/customers", {"email": "ada@example.com", "name": "Ada"}, headers=ADMIN).json()
    own, body = bearer(made["license"]), report_body(made["customerId"])
    server.get(f"/api/customers/{made['customerId']}", headers=own | {"X-Request-ID": "trace-1"})
    server.get("/nowhere?email=ada@example.com")
    server.post("/api/usage/report", body, headers=bearer("wrong"))
    assert server.post("/api/usage/report", body, headers=own).status_code == 201

    def check_counts():
        text = server.get("/metrics").text
        answered = {"method": "POST", "route": "/api/customers", "status": "201"}
        for expected, name, labels in (
            (1, "billing_http_requests_total", answered),
            (1, "billing_http_request_seconds_count", {"route": "/api/customers"}),
            (1, "billing_licenses_issued_total", {"plan": "trial"}),
            (1, "billing_usage_reports_total", {"outcome": "accepted"}),
            (1, "billing_customers", {"plan": "trial", "status": "trialing"}),
            (0, "billing_trials_ending_7d", {}),
            (1, "billing_database_up", {}),
        ):
            assert (name, sample(text, name, **labels)) == (name, expected)

    check_counts()
    victim = server.workers()[0]
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: victim not in server.workers() and len(server.workers()) == 2)
    check_counts()
    server.stop()

    lines = server.lines()
    requests = [line for line in lines if line["logger"] == "app.access"]
    requests = [line for line in requests if line["route"] not in ("/health", "/metrics")]
    assert [(line["method"], line["route"], line["status"]) for line in requests] == [
        ("POST", "/api/customers", 201),
        ("GET", "/api/customers/<customer_id>", 200),
        ("GET", "none", 404),
        ("POST", "/api/usage/report", 401),
        ("POST", "/api/usage/report", 201),
    ]
    assert all(set(line) == ACCESS for line in requests)
    assert re.fullmatch(r"admin:[0-9a-f]{8}", requests[0]["who"])
    customer = f"customer:{made['customerId']}"
    assert [line["who"] for line in requests[1:]] == [customer, "nobody", "nobody", customer]
    assert requests[1]["request_id"] == "trace-1"
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", line["time"]) for line in lines)
    assert {"gunicorn.error", "app.access"} <= {line["logger"] for line in lines}
    assert any("proxy" in line["message"] for line in lines)  # what belongs in front
    text = server.log.read_text()
    assert not any(secret in text for secret in (ADMIN_KEY, made["license"], "ada@example.com", "Ada"))


def test_text_for_a_terminal_and_a_log_that_cannot_be_written(make_app, capsys, monkeypatch):
    client = make_app(LOG_FORMAT="text", LOG_LEVEL="info").test_client()
    client.get("/health")
    line = r"^\d\d:\d\d:\d\d info +request .*route=/health status=200"
    assert re.search(line, capsys.readouterr().err, re.M)
    full = io.TextIOWrapper(io.FileIO("/dev/full", "w"), line_buffering=True)
    with pytest.raises(OSError, match="No space"):
        full.write("a line\n")
    for stream in (full, None):
        monkeypatch.setattr(sys, "stderr", stream)
        assert client.get("/health").status_code == 200
    monkeypatch.undo()
    with suppress(OSError):
        full.close()


def test_a_line_for_each_call_to_stripe_and_each_event(make_app, stripe_environ, sandbox, capsys):
    shop = Shop(make_app(LOG_LEVEL="info"), sandbox)
    capsys.readouterr()
    customer_id, _ = shop.subscribe(email="ada@example.com", name="Ada Byron")
    text = capsys.readouterr().err
    lines = [json.loads(line) for line in text.splitlines()]
    calls = [line for line in lines if line["message"] == "stripe call"]
    assert len(calls) > 3
    assert all(line["status"] == "200" and line["ms"] > 0 and line["stripe_request"] for line in calls)
    events = [line for line in lines if line["message"] == "stripe event"]
    assert "customer.subscription.created" in {line["type"] for line in events}
    assert all(line["event"].startswith("evt_") and line["outcome"] in ("done", "ignored") for line in events)
    webhooks = [line for line in lines if line.get("route") == "/webhooks/stripe"]
    assert {line["who"].partition(":")[0] for line in webhooks} == {"stripe"}
    assert not any(secret in text for secret in ("ada@example.com", "Byron", sandbox.api_key, "eyJ"))

    metrics = shop.client.get("/metrics").text
    created = {"type": "customer.subscription.created", "outcome": "done"}
    assert sample(metrics, "billing_stripe_events_total", **created) >= 1
    assert sample(metrics, "billing_stripe_event_lag_seconds_count") >= 1
    assert sample(metrics, "billing_stripe_call_seconds_count", call=calls[0]["call"], outcome="200") >= 1
    assert sample(metrics, "billing_licenses_issued_total", plan="starter") >= 1
    assert shop.get(f"/api/customers/{customer_id}")["subscription"]["status"] == "active"


@pytest.mark.parametrize(
    ("line", "secret"),
    [
        ("Authorization: Bearer s3cret-key'", "s3cret-key"),
        ("authorization: bearer s3cret", "s3cret"),
        ("license-eyJhbGciOi.eyJpc3M.c2ln-_1", "eyJ"),
        ("postgresql://billing:hunter2@db/billing", "hunter2"),  # pragma: allowlist secret
        ("no such customer: ada.b+c@example.co.uk", "ada"),
        ("key sk_live_51Habc", "51H"),
        ("secret whsec_51Habc", "51H"),
        (r"-----BEGIN RSA PRIVATE KEY-----\nMIIE", "MIIE"),  # pragma: allowlist secret
    ],
)
def test_no_line_carries_a_secret_or_becomes_two(line, secret):
    assert secret in line
    fields = {"levelno": 20, "levelname": "INFO", "quoted": [line], "value": "a\r\nb"}
    record = logging.makeLogRecord(fields | {"msg": f"{line}\nmore"})
    for written in (TextFormatter().format(record), JsonFormatter().format(record)):
        assert secret not in written
        assert len(written.splitlines()) == 1
    assert set(json.loads(written)) == {"time", "level", "logger", "message", "quoted", "value"}


@pytest.mark.parametrize("part", ["a.", "eyJ-", "eyJa.", "a@", "a@b.", "sk_", "://", "-----BEGIN A"])
def test_a_long_line_of_a_callers_choice_does_not_keep_the_service_busy(part):
    """Looked through from every character on, this would take hours."""
    line = f"{part * (1_000_000 // len(part))} @ eyJ PRIVATE KEY"
    assert redacted(line).endswith("@ eyJ PRIVATE KEY")


def test_metrics_without_a_database(make_app):
    answer = make_app(DATABASE_URL="postgresql://nobody@127.0.0.1:1/none").test_client().get("/metrics")
    assert (answer.status_code, answer.mimetype) == (200, "text/plain")
    assert sample(answer.text, "billing_database_up") == 0
    assert sample(answer.text, "billing_customers", plan="trial", status="trialing") is None


def test_invented_methods_and_paths_make_no_series_of_their_own(client):
    for n in range(5):
        client.open(f"/nowhere/{n}", method=f"ODD{n}")
    text = client.get("/metrics").text
    assert not {"ODD", "nowhere"} & set(re.findall(r"[A-Za-z]+", text))
    assert sample(text, "billing_http_requests_total", method="other", route="none", status="404") >= 5
