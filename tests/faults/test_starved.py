"""No disk space, a locked row: refused cleanly, and served again afterwards."""

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import psycopg2
import pytest

from app import embedded
from tests.conftest import ADMIN
from tests.factories import bearer, make_customer, report_body
from tests.faults.conftest import Load, Postgres
from tests.server import wait_until


def test_a_full_disk_is_503_and_leaves_nothing(client, sql):
    made = make_customer(client)
    sql(
        """CREATE FUNCTION no_room() RETURNS TRIGGER LANGUAGE plpgsql AS
           $$ BEGIN RAISE 'No space left on device' USING ERRCODE = 'disk_full'; END $$"""
    )
    sql("CREATE TRIGGER no_room BEFORE INSERT ON instances FOR EACH ROW EXECUTE FUNCTION no_room()")
    send = {"json": report_body(made["customerId"]), "headers": bearer(made["license"])}
    answer = client.post("/api/usage/report", **send)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    assert "space" not in answer.text
    assert sql("SELECT 1 FROM usage_reports") == []

    sql("DROP TRIGGER no_room ON instances")
    assert client.post("/api/usage/report", **send).status_code == 201
    assert len(sql("SELECT 1 FROM usage_reports")) == 1


def test_a_license_that_cannot_be_renewed_now_holds_up_no_report(client, database_url):
    made = make_customer(client)
    send = {"json": report_body(made["customerId"]), "headers": bearer(made["license"])}
    with closing(psycopg2.connect(database_url)) as blocker, blocker.cursor() as cur:
        cur.execute("UPDATE licenses SET recheck = TRUE")
        blocker.commit()
        cur.execute("UPDATE customers SET updated_at = now()")
        answer = client.post("/api/usage/report", **send)
        assert (answer.status_code, "license" in answer.json) == (201, False)
        license_path = f"/api/licenses/{made['customerId']}"
        assert client.get(license_path, headers=ADMIN).status_code == 503
    assert client.get(license_path, headers=ADMIN).status_code == 200


def test_a_locked_row_keeps_nobody_else_out(serve, database_url):
    """As an operator's session does that was left open after an UPDATE."""
    server = serve(WEB_CONCURRENCY="1", WEB_THREADS="4")
    locked, other = (
        server.post("/api/customers", {"email": email}, headers=ADMIN).json()["customerId"]
        for email in ("ada@example.com", "bob@example.com")
    )

    def report(customer_id, *, batch=False):
        body = report_body(customer_id)
        path, body = ("reports", {"reports": [body]}) if batch else ("report", body)
        return server.post(f"/api/usage/{path}", body, headers=ADMIN).status_code

    assert report(locked) == 201
    with closing(psycopg2.connect(database_url)) as blocker, ThreadPoolExecutor(8) as pool:
        blocker.cursor().execute("UPDATE instances SET active_devices = 1")
        waiting = [pool.submit(report, locked, batch=number % 2 == 0) for number in range(8)]
        assert report(other) == 201
        assert server.get("/health").status_code == 200
        assert {future.result() for future in waiting} == {503}
    assert [report(locked, batch=batch) for batch in (False, True)] == [201, 200]


def test_a_table_that_is_locked_whole_holds_up_no_instance_for_long(client, database_url):
    """As an operator's ALTER TABLE or VACUUM FULL does."""
    made = make_customer(client)
    customer_id, headers = made["customerId"], bearer(made["license"])
    report = report_body(customer_id)

    def statuses():
        asked = [client.get(path, headers=headers) for path in (
            f"/api/customers/{customer_id}", f"/api/licenses/{customer_id}", f"/api/usage/{customer_id}",
        )]  # fmt: skip
        sent = [
            client.post("/api/usage/report", json=report, headers=headers),
            client.post("/api/usage/reports", json={"reports": [report]}, headers=headers),
        ]
        return {answer.status_code for answer in asked + sent}

    with closing(psycopg2.connect(database_url)) as operator, operator.cursor() as cur:
        cur.execute("LOCK TABLE customers, licenses, usage_reports IN ACCESS EXCLUSIVE MODE")
        assert statuses() == {503}
    assert statuses() == {200, 201}


@pytest.mark.skipif(
    os.environ.get("FAULTS") != "long" or os.geteuid() != 0,
    reason="only as root in `make faults`: mounts a disk",
)
def test_a_disk_that_is_really_full(serve, open_folder):
    """A database on a small file system that something else fills up, and frees again."""
    disk = open_folder / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160m,mode=0711", "tmpfs", str(disk)], check=True)
    try:
        postgres = Postgres(disk / "data")
        server = serve(DATABASE_URL=postgres.url)
        load = Load(server)
        load.wait_for_more()
        ballast = disk / "ballast"
        with ballast.open("wb", buffering=0) as file, pytest.raises(OSError):
            while True:
                file.write(b"x" * 65536)
        wait_until(lambda: 503 in load.answers.values() or None in load.answers.values(), 120)
        ballast.unlink()
        postgres.start()
        load.wait_for_more()
        load.check(postgres)
        server.stop()
    finally:
        embedded.stop(disk / "data")
        subprocess.run(["umount", "-l", str(disk)], check=True)
