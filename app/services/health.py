"""What a load balancer and a monitoring system ask."""

import os
from collections.abc import Iterator

from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from app import migrations
from app.config import ConfigError
from app.context import now
from app.errors import DomainError
from app.extensions import db, keyring
from app.plans import PLANS
from app.queries import report


def failing_parts() -> dict[str, str]:
    """What keeps this process from serving, by name; empty when nothing does."""
    failing = {}
    try:
        pending = [m.name for m in migrations.status(db) if m.applied_at is None]
        if pending:
            failing["migrations"] = f"pending: {', '.join(pending)}"
    except DomainError as error:
        failing["database" if error.code == 503 else "migrations"] = error.message
    try:
        keyring.signing_key()
    except ConfigError as error:
        failing["signing_key"] = str(error).partition(":")[0]
    return failing


def metrics_text() -> tuple[bytes, str]:
    """Prometheus' text: the counters of this process (gunicorn: of all workers), gauges of the database."""
    business = CollectorRegistry()
    business.register(_BusinessGauges())
    gauges = generate_latest(business)
    registry = REGISTRY
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry) + gauges, CONTENT_TYPE_LATEST


class _BusinessGauges(Collector):
    """Gauges from the database; without it only `billing_database_up 0`."""

    def collect(self) -> Iterator[GaugeMetricFamily]:
        try:
            with db.statement() as cur:
                counts = report.select_customer_counts(cur, now())
                revenue = report.select_revenue(cur)
                attention = report.select_attention(cur, now())
        except DomainError:
            yield GaugeMetricFamily("billing_database_up", "Whether the database answers", 0)
            return
        yield GaugeMetricFamily("billing_database_up", "Whether the database answers", 1)
        customers = GaugeMetricFamily("billing_customers", "Customers", labels=["plan", "status"])
        for row in counts:
            customers.add_metric([row["plan"], row["status"]], row["count"])
        monthly = {name: 0.0 for name, plan in PLANS.items() if plan.monthly_cents}
        for row in revenue:
            if row["currency"] == "usd":
                months = 12 if row["interval"] == "year" else 1
                monthly[row["plan"]] = monthly.get(row["plan"], 0) + row["amount"] / months / 100
        recurring = GaugeMetricFamily(
            "billing_monthly_revenue_usd", "Recurring revenue a month, before discounts", labels=["plan"]
        )
        for plan, amount in monthly.items():
            recurring.add_metric([plan], amount)
        yield customers
        yield recurring
        yield GaugeMetricFamily(
            "billing_trials_ending_7d", "Trials that end within 7 days", attention["trials_ending"]["count"]
        )
