"""What the service tells of itself: log lines and metrics, of one process and of several."""

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
from tests.factories import bearer, make_customer, report_body
from tests.server import wait_until
from tests.shop import Shop

ACCESS = {"time", "level", "logger", "message", "request_id", "method", "route", "status", "ms", "who"}


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Prometheus' text as {(name, sorted labels): value}."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def sample(text: str, name: str, **labels: str) -> float | None:
    return samples(text).get((name, tuple(sorted(labels.items()))))


def test_every_line_is_json_and_a_request_is_one_of_them(serve):
    server = serve()
    made = server.post("/api/customers", {"email": "ada@example.com", "name": "Ada"}, headers=ADMIN).json()
    own = bearer(made["license"])
    server.get(f"/api/customers/{made['customerId']}", headers=own | {"X-Request-ID": "trace-1"})
    server.get("/nowhere?email=ada@example.com")
    server.post("/api/usage/report", report_body(made["customerId"]), headers=bearer("wrong"))
    server.stop()

    lines = server.lines()
    requests = [line for line in lines if line["logger"] == "app.access" and line["route"] != "/health"]
    assert [(line["method"], line["route"], line["status"]) for line in requests] == [
        ("POST", "/api/customers", 201),
        ("GET", "/api/customers/<customer_id>", 200),
        ("GET", "none", 404),
        ("POST", "/api/usage/report", 401),
    ]
    assert all(set(line) == ACCESS for line in requests)
    assert [line["who"].partition(":")[0] for line in requests] == ["admin", "customer", "nobody", "nobody"]
    assert requests[1]["who"] == f"customer:{made['customerId']}"
    assert requests[1]["request_id"] == "trace-1"
    assert re.fullmatch(r"admin:[0-9a-f]{8}", requests[0]["who"])
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", line["time"]) for line in lines)
    assert {"gunicorn.error", "app.access"} <= {line["logger"] for line in lines}
    text = server.log.read_text()
    assert not any(secret in text for secret in (ADMIN_KEY, made["license"], "ada@example.com", "Ada"))


def test_text_for_a_terminal(serve):
    server = serve(LOG_FORMAT="text")
    server.get("/health")
    server.stop()
    lines = server.log.read_text().splitlines()
    assert all(re.match(r"\d\d:\d\d:\d\d (info|warning|error) +\S", line) for line in lines)
    assert any("route=/health status=200 ms=" in line for line in lines)


def test_a_log_that_cannot_be_written_is_no_requests_trouble(client, monkeypatch):
    full = io.TextIOWrapper(io.FileIO("/dev/full", "w"), line_buffering=True)
    with pytest.raises(OSError, match="No space"):
        full.write("a line\n")
    for stream in (full, None):
        monkeypatch.setattr(sys, "stderr", stream)
        assert client.get("/health").status_code == 200
    monkeypatch.undo()
    with suppress(OSError):
        full.close()


def test_one_line_a_stripe_call_and_a_webhook(make_app, stripe_environ, sandbox, capsys):
    app = make_app(LOG_LEVEL="info")
    shop = Shop(app, sandbox)
    capsys.readouterr()
    customer_id, _ = shop.subscribe(email="ada@example.com", name="Ada Byron")
    text = capsys.readouterr().err
    lines = [json.loads(line) for line in text.splitlines()]

    calls = [line for line in lines if line["message"] == "stripe call"]
    assert {"customers.create", "checkout.sessions.create"} <= {line["call"] for line in calls}
    assert all(line["outcome"] == "ok" and line["ms"] > 0 for line in calls)
    events = [line for line in lines if line["message"] == "stripe event"]
    assert "customer.subscription.created" in {line["type"] for line in events}
    assert all(line["event"].startswith("evt_") and line["outcome"] in ("done", "ignored") for line in events)
    webhooks = [line for line in lines if line.get("route") == "/webhooks/stripe"]
    assert {line["who"].partition(":")[0] for line in webhooks} == {"stripe"}
    assert not any(secret in text for secret in ("ada@example.com", "Byron", sandbox.api_key, "eyJ"))

    metrics = shop.client.get("/metrics").text
    done = sample(
        metrics, "billing_stripe_events_total", type="customer.subscription.created", outcome="done"
    )
    assert (done or 0) >= 1
    assert (sample(metrics, "billing_stripe_event_lag_seconds_count") or 0) >= 1
    calls_made = sample(metrics, "billing_stripe_call_seconds_count", call="customers.create", outcome="ok")
    assert (calls_made or 0) >= 1
    assert sample(metrics, "billing_monthly_revenue_usd", plan="starter") == 29
    assert (sample(metrics, "billing_licenses_issued_total", plan="starter") or 0) >= 1
    assert shop.get(f"/api/customers/{customer_id}")["subscription"]["status"] == "active"


@pytest.mark.parametrize(
    ("line", "secret"),
    [
        ("Authorization: Bearer s3cret-key'", "s3cret-key"),
        ("authorization: bearer s3cret", "s3cret"),
        ("token eyJhbGciOi.eyJpc3M.c2ln-_1 refused", "eyJ"),
        ("license-eyJhbGciOi.eyJpc3M.c2ln-_1", "eyJ"),
        ("postgresql://billing:hunter2@db/billing", "hunter2"),  # pragma: allowlist secret
        ("no such customer: ada.b+c@example.co.uk", "ada"),
        ("key sk_live_51Habc and whsec_abc", "_abc"),
        ("key sk_live_51Habc", "51H"),
        (r"-----BEGIN RSA PRIVATE KEY-----\nMIIE", "MIIE"),  # pragma: allowlist secret
    ],
)
def test_no_line_carries_a_secret(line: str, secret: str):
    assert secret in line
    assert secret not in redacted(line)
    record = logging.makeLogRecord({"msg": line, "levelno": 20, "levelname": "INFO", "quoted": line})
    for formatter in (JsonFormatter(), TextFormatter()):
        assert secret not in formatter.format(record)


@pytest.mark.parametrize(
    "part", ["a", "a.", "eyJ", "eyJ-", "eyJa.", "a@", "a@b.", "sk_", "://", "-----BEGIN A"]
)
def test_a_long_line_of_somebodys_choice_does_not_keep_the_service_busy(part: str):
    """Looked through from every character on, this would take hours."""
    line = f"{part * (1_000_000 // len(part))} @ eyJ PRIVATE KEY"
    assert redacted(line).endswith("@ eyJ PRIVATE KEY")


def test_a_line_of_the_log_stays_one_line():
    record = logging.makeLogRecord({"msg": "a\nb", "levelname": "INFO", "value": "c\r\nd"})
    for formatter in (JsonFormatter(), TextFormatter()):
        assert len(formatter.format(record).splitlines()) == 1


def test_all_workers_count_together_and_a_killed_one_is_not_forgotten(serve):
    server = serve(DB_POOL_SIZE="5")
    made = [
        server.post("/api/customers", {"email": f"c{n}@example.com"}, headers=ADMIN).json() for n in range(3)
    ]
    for customer in made:
        body = report_body(customer["customerId"])
        assert server.post("/api/usage/report", body, headers=bearer(customer["license"])).status_code == 201
    for _ in range(20):
        server.get("/health")

    def expect() -> None:
        text = server.get("/metrics").text
        created = sample(
            text, "billing_http_requests_total", method="POST", route="/api/customers", status="201"
        )
        assert created == 3
        assert sample(text, "billing_licenses_issued_total", plan="trial") == 3
        assert sample(text, "billing_usage_reports_total", outcome="accepted") == 3
        assert sample(text, "billing_http_request_seconds_count", route="/api/customers") == 3
        assert sample(text, "billing_customers", plan="trial", status="trialing") == 3
        assert sample(text, "billing_trials_ending_7d") == 0
        assert sample(text, "billing_database_up") == 1
        assert sample(text, "billing_db_connections", state="allowed") in (5, 10)

    expect()
    victim = server.workers()[0]
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: victim not in server.workers() and len(server.workers()) == 2)
    expect()


def test_metrics_without_a_database(make_app):
    answer = make_app(DATABASE_URL="postgresql://nobody@127.0.0.1:1/none").test_client().get("/metrics")
    assert answer.status_code == 200
    assert answer.mimetype == "text/plain"
    assert sample(answer.text, "billing_database_up") == 0
    assert sample(answer.text, "billing_customers", plan="trial", status="trialing") is None


def test_the_state_of_affairs(client, sql):
    for status in ("active", "past_due", "canceled", None):
        made = make_customer(client)
        if status:
            sql(
                """
                INSERT INTO subscriptions (subscription_id, customer_id, stripe_subscription_id, plan, status)
                VALUES (%(id)s, %(customer)s, %(id)s, 'professional', %(status)s)
                """,
                id=f"sub_{status}", customer=made["customerId"], status=status,
            )  # fmt: skip
    sql(
        """
        UPDATE subscriptions SET trial_ends_at = CURRENT_TIMESTAMP + INTERVAL '3 days'
         WHERE customer_id = %(id)s
        """,
        id=made["customerId"],
    )
    text = client.get("/metrics").text
    assert sample(text, "billing_customers", plan="professional", status="active") == 1
    assert sample(text, "billing_customers", plan="professional", status="past_due") == 1
    assert sample(text, "billing_monthly_revenue_usd", plan="professional") == 198
    assert sample(text, "billing_monthly_revenue_usd", plan="starter") == 0
    assert sample(text, "billing_trials_ending_7d") == 1


def test_invented_methods_and_paths_make_no_series_of_their_own(client):
    for n in range(5):
        client.open(f"/nowhere/{n}", method=f"ODD{n}")
    text = client.get("/metrics").text
    assert "ODD" not in text
    assert "nowhere" not in text
    assert (sample(text, "billing_http_requests_total", method="other", route="none", status="404") or 0) >= 5


def test_a_line_without_its_secrets_is_json_still():
    record = logging.makeLogRecord({"msg": "see https://example.com", "count": 5, "to": ["ada@example.com"]})
    line = json.loads(JsonFormatter().format(record))
    assert (line["message"], line["to"]) == ("see https://example.com", ["[redacted]"])
