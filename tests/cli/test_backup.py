"""Backups that bring everything back, and leave nothing half done."""

import os
import signal
import subprocess
import sys

import psycopg2
import pytest

from app import backup as backups
from app.db import Database
from app.errors import DomainError
from tests.conftest import ADMIN, ROOT
from tests.factories import ago, bearer, make_customer, report_body
from tests.server import wait_until, waiting


def counts(url: str) -> dict[str, int]:
    """Rows of every table, partitions included."""
    connection = psycopg2.connect(url)
    with connection, connection.cursor() as cur:
        cur.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        found = {}
        for (table,) in cur.fetchall():
            cur.execute(f'SELECT COUNT(*) FROM "{table}"')
            found[table] = cur.fetchone()[0]
    connection.close()
    return found


@pytest.fixture
def filled(client, database_url):
    """Customers, licenses (one revoked), reports of several months; the last customer."""
    for _ in range(3):
        made = make_customer(client, plan="professional")
        for days in (0, 20, 34):
            body = report_body(made["customerId"], timestamp=ago(days=days, hours=1))
            assert client.post("/api/usage/report", json=body, headers=ADMIN).status_code == 201
    revoked = make_customer(client)
    client.post(f"/api/licenses/{revoked['customerId']}/revoke", headers=ADMIN)
    return made | {"revoked": revoked["license"]}


def test_all_comes_back_and_licenses_still_verify(
    make_app, console, filled, database_url, empty_database_url, tmp_path
):
    file = tmp_path / "billing.dump"
    result = console("db", "backup", str(file))
    assert (result.exit_code, result.stdout) == (0, f"✅ {file} written.\n")
    assert file.stat().st_mode & 0o077 == 0

    other = make_app(DATABASE_URL=empty_database_url)
    result = other.test_cli_runner().invoke(args=["db", "restore", str(file)])
    assert (result.exit_code, result.stdout) == (0, f"✅ {file} restored.\n")
    assert counts(empty_database_url) == counts(database_url)
    assert counts(empty_database_url)["usage_reports"] == 9

    client = other.test_client()
    assert client.get("/health/ready").status_code == 200
    for token, code in ((filled["license"], "VALID"), (filled["revoked"], "REVOKED")):
        answer = client.post("/api/licenses/verify", json={"license": token})
        assert answer.json["code"] == code
    again = client.post(
        "/api/usage/report", json=report_body(filled["customerId"]), headers=bearer(filled["license"])
    )
    assert again.status_code == 201
    assert make_customer(client)["customerId"]  # the sequences have moved on as well


def test_restore_also_into_a_migrated_empty_database(make_app, filled, console, empty_database_url, tmp_path):
    file = tmp_path / "billing.dump"
    console("db", "backup", str(file))
    other = make_app(DATABASE_URL=empty_database_url).test_cli_runner()
    assert other.invoke(args=["db", "migrate"]).exit_code == 0
    result = other.invoke(args=["db", "restore", str(file)])
    assert (result.exit_code, result.stderr) == (0, "")
    assert counts(empty_database_url)["customers"] == 4


def test_restore_refuses_a_database_that_is_in_use(console, filled, database_url, tmp_path):
    file = tmp_path / "billing.dump"
    console("db", "backup", str(file))
    before = counts(database_url)
    result = console("db", "restore", str(file))
    assert result.exit_code == 1
    assert result.stderr == "Error: This database holds customers. Restore into an empty one.\n"
    assert counts(database_url) == before


@pytest.mark.parametrize("spoil", ["cut", "text"])
def test_a_spoiled_file_restores_nothing(spoil, console, filled, empty_database_url, tmp_path):
    file = tmp_path / "billing.dump"
    console("db", "backup", str(file))
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) * 2 // 3] if spoil == "cut" else b"not a dump")
    database = Database(empty_database_url, 2)
    with pytest.raises(DomainError, match="pg_restore failed"):
        backups.restore(database, str(file))
    database.close()
    assert counts(empty_database_url) == {}


def test_a_failed_backup_leaves_the_file_before_as_it_was(tmp_path):
    file = tmp_path / "billing.dump"
    file.write_text("yesterday's")
    with pytest.raises(DomainError, match="pg_dump failed"):
        backups.backup("postgresql://nobody@127.0.0.1:1/none", str(file))
    assert file.read_text() == "yesterday's"
    assert list(tmp_path.iterdir()) == [file]


def test_no_password_among_the_arguments(monkeypatch, tmp_path):
    program = tmp_path / "pg_dump"
    program.write_text('#!/bin/sh\necho "$* PGPASSWORD=$PGPASSWORD" >&2\nexit 1\n')
    program.chmod(0o755)
    monkeypatch.setattr(backups, "_find", lambda name: str(program))
    with pytest.raises(DomainError) as refused:
        url = "postgresql://u:s3cr%25t@one,two:5433/d?sslmode=require"  # pragma: allowlist secret
        backups.backup(url, str(tmp_path / "x"))
    arguments, _, password = str(refused.value.message).partition(" PGPASSWORD=")
    assert password == "s3cr%t"  # pragma: allowlist secret
    assert "s3cr" not in arguments
    assert "host=one,two" in arguments
    assert "sslmode=require" in arguments


def test_a_folder_that_is_not_there_is_one_line(console, tmp_path):
    done = console("db", "backup", str(tmp_path / "none" / "billing.dump"))
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == f"Error: {tmp_path / 'none'}: No such file or directory\n"


def test_an_interrupted_backup_leaves_no_half_file(environ, database_url, tmp_path):
    connection = psycopg2.connect(database_url)
    connection.cursor().execute("LOCK TABLE customers IN ACCESS EXCLUSIVE MODE")  # pg_dump waits for it
    target = tmp_path / "backups"
    target.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "flask", "db", "backup", str(target / "billing.dump")],
        cwd=ROOT, env=environ | {"PATH": os.environ["PATH"]},
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    wait_until(lambda: waiting(database_url))
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does
    assert process.wait(30) != 0
    connection.rollback()
    connection.close()
    assert list(target.iterdir()) == []
