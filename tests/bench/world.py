"""A database of the wanted size, written by SQL: customers with a running plan, their licenses, reports."""

import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg2
from psycopg2.extras import execute_values

from app import migrations
from app.config import Settings, load_settings
from app.db import Database
from app.entitlements import entitle
from app.keyring import load_signing_key, write_key_files
from app.licenses import fingerprint, license_claims, sign

DAYS = 730
ADMIN_KEY = "bench-admin-key-0123456789abcdef"


@dataclass(frozen=True)
class World:
    """Where the service under test finds everything."""

    url: str
    folder: Path
    customers: int
    reports: int

    @property
    def environ(self) -> dict[str, str]:
        """Production settings but for the rate limits, which one load generator would exceed."""
        return {
            "DATABASE_URL": self.url,
            "ADMIN_API_KEY": ADMIN_KEY,
            "RATELIMIT_ENABLED": "false",
            "LICENSE_PRIVATE_KEY_PATH": str(self.folder / "keys" / "private-key.pem"),
            "LICENSE_PUBLIC_KEY_PATH": str(self.folder / "keys" / "public-key.pem"),
        }

    @property
    def settings(self) -> Settings:
        return load_settings(self.environ)

    @property
    def tokens(self) -> Path:
        """Lines of customer id and license."""
        return self.folder / "tokens.txt"


def customer_id(number: int) -> str:
    return f"cust_{number:012d}"


def jti(number: int) -> str:
    return str(uuid.UUID(int=number))


def build(url: str, folder: Path, customers: int, reports: int) -> World:
    """Fill the empty database at `url`."""
    world = World(url, folder, customers, reports)
    write_key_files(world.settings)
    database = Database(url, 1)
    migrations.migrate(database)
    database.close()
    connection = psycopg2.connect(url)
    connection.autocommit = True
    with connection.cursor() as cur:
        _people(cur, customers)
        _licenses(cur, world)
        _reports(cur, customers, reports)
        cur.execute("VACUUM (ANALYZE)")
    connection.close()
    _checkpoint(url)
    return world


def _checkpoint(url: str) -> None:
    """Have written what loading left to write, so that the measurement does not pay for it."""
    connection = psycopg2.connect(url.replace("billing@", "postgres@", 1))
    connection.autocommit = True
    with connection.cursor() as cur:
        cur.execute("CHECKPOINT")
    connection.close()


def _people(cur: psycopg2.extensions.cursor, customers: int) -> None:
    cur.execute(
        """
        INSERT INTO customers (customer_id, email, name, company_name, stripe_customer_id)
        SELECT 'cust_' || LPAD(n::TEXT, 12, '0'), 'customer' || n || '@example.com', 'Customer ' || n,
               'Company ' || n, 'cus_' || n
          FROM GENERATE_SERIES(1, %(customers)s) AS n;
        INSERT INTO subscriptions (subscription_id, customer_id, stripe_subscription_id, plan, status, paid,
                                   current_period_starts_at, current_period_ends_at)
        SELECT 'sub_' || id, customer_id, 'sub_' || id, 'professional', 'active', TRUE,
               at, at + INTERVAL '30 days'
          FROM customers CROSS JOIN DATE_TRUNC('second', CURRENT_TIMESTAMP) AS at
         ORDER BY id
        """,
        {"customers": customers},
    )


def _licenses(cur: psycopg2.extensions.cursor, world: World) -> None:
    """One license each, as the service itself would have issued it."""
    key = load_signing_key(world.settings)
    cur.execute(
        "INSERT INTO license_keys (kid, public_key) VALUES (%s, %s)", (key.public.kid, key.public.pem)
    )
    names = "customer_id", "email", "name", "company_name", "max_devices", "retention_days", "created_at"
    cur.execute(f"SELECT {', '.join(names)} FROM customers ORDER BY id")
    people = [dict(zip(names, row, strict=True)) for row in cur.fetchall()]
    cur.execute("SELECT * FROM subscriptions ORDER BY id")
    columns = [column.name for column in cur.description or ()]
    subscriptions = [dict(zip(columns, row, strict=True)) for row in cur.fetchall()]
    at = datetime.now(UTC).replace(microsecond=0)
    ends = at + timedelta(days=37)
    rows, lines = [], []
    for number, (customer, subscription) in enumerate(zip(people, subscriptions, strict=True), 1):
        claims = license_claims(
            customer, entitle(customer, [subscription], at), issuer=world.settings.license_issuer,
            jti=jti(number), issued_at=at, expires_at=ends,
        )  # fmt: skip
        token = sign(claims, key)
        lines.append(f"{customer['customer_id']} {token}\n")
        rows.append(
            (jti(number), customer["customer_id"], key.public.kid, token, fingerprint(claims), at,
             at + timedelta(days=18), ends)
        )  # fmt: skip
    execute_values(
        cur,
        "INSERT INTO licenses (jti, customer_id, kid, token, fingerprint, issued_at, renews_at, expires_at,"
        " plan, status, device_limit) VALUES %s",
        rows,
        template="(%s, %s, %s, %s, %s, %s, %s, %s, 'professional', 'active', 50)",
        page_size=1000,
    )
    world.tokens.write_text("".join(lines))


def _reports(cur: psycopg2.extensions.cursor, customers: int, reports: int) -> None:
    """Evenly over two years; every tenth customer has two instances."""
    cur.execute(
        "SELECT ensure_usage_partition(day) FROM GENERATE_SERIES(CURRENT_TIMESTAMP - INTERVAL '25 months',"
        " CURRENT_TIMESTAMP + INTERVAL '1 month', INTERVAL '14 days') AS day"
    )
    each = reports // customers
    cur.execute(
        """
        INSERT INTO usage_reports (customer_id, instance_id, active_devices, total_devices, reported_at,
                                   created_at)
        SELECT customer_id,
               CASE WHEN MOD(customers.id, 10) = 0 AND MOD(report, 2) = 1 THEN 'i1' ELSE 'i0' END,
               12 + MOD(customers.id * 7 + report, 8), 30, at, at
          FROM GENERATE_SERIES(1, %(each)s) AS report
         CROSS JOIN customers
         CROSS JOIN LATERAL (
               SELECT CURRENT_TIMESTAMP - (%(days)s * INTERVAL '1 day') * report / %(each)s
                      - MOD(customers.id, 1000) * INTERVAL '1 second' AS at) AS moment
        """,
        {"each": each, "days": DAYS},
    )
    cur.execute(
        """
        INSERT INTO instances (customer_id, instance_id, active_devices, total_devices, last_reported_at)
        SELECT DISTINCT ON (customer_id, instance_id) customer_id, instance_id, active_devices, total_devices,
               reported_at
          FROM usage_reports
         ORDER BY customer_id, instance_id, reported_at DESC
        """
    )
