"""Flask with nothing but what each measured route cannot do without: the floors of the comparison."""

import json
import os
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg2
from flask import Flask, Response, jsonify, request
from jose import jws

from app.config import load_settings
from app.keyring import load_signing_key
from app.queries.usage import insert_usage_report
from tests.bench.statements import captured
from tests.bench.world import customer_id, jti

app = Flask("bare")
signing_key = load_signing_key(load_settings())
local = threading.local()
REPORT_SQL, _ = captured(insert_usage_report, {})
PLAIN_SQL = """
    INSERT INTO usage_reports (customer_id, instance_id, active_devices, total_devices, reported_at)
    VALUES (%(customer_id)s, %(instance_id)s, %(active_devices)s, %(total_devices)s, %(reported_at)s)
 RETURNING id
"""
PAGE = [
    {
        "reportId": 1000000 + n, "customerId": customer_id(1), "instanceId": "i0",
        "activeDevices": 12 + n % 8, "totalDevices": 30, "reportedAt": "2026-01-31T10:00:00.123456Z",
        "receivedAt": "2026-01-31T10:00:00.123456Z",
    }
    for n in range(100)
]  # fmt: skip
CLAIMS = {"iss": "zemfyre-billing", "sub": customer_id(1), "padding": "x" * 600}


def rows(sql: str, params: dict[str, Any]) -> list[Any]:
    connection = getattr(local, "connection", None)
    if connection is None:
        connection = local.connection = psycopg2.connect(os.environ["DATABASE_URL"])
        connection.autocommit = True
    with connection.cursor() as cur:
        cur.execute(sql, params)
        return cur.fetchall()  # type: ignore[no-any-return]


def report_params() -> dict[str, Any]:
    body = json.loads(request.get_data())
    return {
        "customer_id": body["customerId"], "instance_id": body["instanceId"],
        "active_devices": body["activeDevices"], "total_devices": body["totalDevices"],
        "reported_at": datetime.now(UTC), "since": datetime.now(UTC) - timedelta(days=7),
        "jti": jti(int(body["customerId"][5:])),
    }  # fmt: skip


@app.post("/report")
def report() -> Response:
    return jsonify(id=rows(REPORT_SQL, report_params())[0][0])


@app.post("/plain-report")
def plain_report() -> Response:
    return jsonify(id=rows(PLAIN_SQL, report_params())[0][0])


@app.get("/sign")
def sign() -> Response:
    token = jws.sign(CLAIMS, signing_key.private, headers={"kid": signing_key.public.kid}, algorithm="RS256")
    return jsonify(license=token)


@app.get("/page")
def page() -> Response:
    return jsonify(reports=PAGE)


@app.get("/customer/<wanted>")
def customer(wanted: str) -> Response:
    sql = "SELECT customer_id, email, name, company_name FROM customers WHERE customer_id = %(wanted)s"
    return jsonify(rows(sql, {"wanted": wanted})[0])


@app.get("/health")
def health() -> Response:
    return jsonify(status="ok")
