"""`flask db …`: migrations from zero, again, at once, edited, failing; backups whole or not at all."""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg2
import pytest
from flask import Flask

from app import backup as backups
from app import migrations
from app.db import Database
from app.errors import Conflict
from tests.conftest import ADMIN, ROOT
from tests.factories import ago, bearer, make_customer, report_body
from tests.server import clean_environ, run_flask, wait_until, waiting

ALL = [path.stem for path in sorted((ROOT / "sql").glob("*.sql"))]


@pytest.fixture
def db(empty_database_url):
    database = Database(lambda: empty_database_url)
    with Flask(__name__).app_context():
        yield database
    database.close()


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


class TestMigrate:
    def test_from_zero_and_again_as_a_no_op(self, make_app, empty_database_url):
        runner = make_app(DATABASE_URL=empty_database_url).test_cli_runner()
        status = runner.invoke(args=["db", "status"])
        assert (status.exit_code, status.stdout.count("pending")) == (1, len(ALL))
        lines = [*(f"✅ {name}" for name in ALL), f"{len(ALL)} migration(s) applied."]
        assert runner.invoke(args=["db", "migrate"]).stdout.splitlines() == lines
        before = counts(empty_database_url)
        assert runner.invoke(args=["db", "migrate"]).stdout == "Nothing to apply.\n"
        assert counts(empty_database_url) == before
        status = runner.invoke(args=["db", "status"])
        assert (status.exit_code, "pending" in status.stdout) == (0, False)

    def test_several_at_once_apply_each_file_once(self, environ, empty_database_url):
        settings = environ | {"DATABASE_URL": empty_database_url}
        with ThreadPoolExecutor(3) as pool:
            done = list(pool.map(lambda _: run_flask("db", "migrate", environ=settings), range(3)))
        assert [one.returncode for one in done] == [0, 0, 0]
        assert sum(one.stdout.count("✅") for one in done) == len(ALL)

    def test_a_file_that_takes_long_is_waited_for(self, empty_database_url, tmp_path, monkeypatch):
        monkeypatch.setattr("app.db.LOCK_SECONDS", 0.05)
        (tmp_path / "0001_long.sql").write_text("SELECT PG_SLEEP(1);\n")

        def migrate() -> list[str]:
            other = Database(lambda: empty_database_url)
            with Flask(__name__).app_context():
                applied = migrations.migrate(other, tmp_path)
            other.close()
            return applied

        with ThreadPoolExecutor(2) as pool:
            both = [pool.submit(migrate) for _ in range(2)]
            assert sorted(done.result() for done in both) == [[], ["0001_long"]]

    def test_a_failing_or_edited_file_leaves_nothing_and_those_before_it_stay(
        self, db, empty_database_url, tmp_path
    ):
        folder = shutil.copytree(ROOT / "sql", tmp_path / "sql")
        (folder / "0998_good.sql").write_text("CREATE TABLE good (id INTEGER);\n")
        (folder / "0999_bad.sql").write_text("CREATE TABLE half (id INTEGER); SELECT 1 / 0;\n")
        with pytest.raises(Conflict, match=r"sql/0999_bad\.sql failed, .*division by zero"):
            migrations.migrate(db, folder)
        with pytest.raises(Conflict, match="0998_good"):  # as for an older version of the service
            migrations.migrate(db)
        (folder / "0999_bad.sql").write_text("CREATE TABLE half (id INTEGER);\n")
        (folder / f"{ALL[1]}.sql").write_text("SELECT 1;\n")
        for refused in (migrations.status, migrations.migrate):
            with pytest.raises(Conflict, match=rf"sql/{ALL[1]}\.sql was edited"):
                refused(db, folder)
        assert {"good", "half"} & counts(empty_database_url).keys() == {"good"}

    @pytest.mark.skipif("TEST_DATABASE_URL" in os.environ, reason="whose role need not be a superuser")
    def test_a_superuser_is_warned_of(self, empty_database_url, environ):
        superuser_url = empty_database_url.replace("billing@", "postgres@")
        done = run_flask("db", "migrate", environ=environ | {"DATABASE_URL": superuser_url})
        assert (done.returncode, "postgres is a superuser" in done.stderr) == (0, True)
        refused = run_flask("customer", "list", environ=environ | {"DATABASE_URL": empty_database_url})
        assert (refused.returncode, "permission denied for table" in refused.stderr) == (1, True)

    def test_it_waits_only_for_a_server_that_does_not_answer_yet(self, environ, make_app, server_url):
        away = environ | {"DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none"}
        done = run_flask("db", "migrate", "--wait", "1", environ=away)
        assert done.returncode == 1
        first, last = done.stderr.splitlines()
        assert first == "Waiting up to 1 s for the database …"
        assert "Connection refused" in last
        for wrong, reason in (
            (server_url.replace("/billing?", "/no_such?"), 'database "no_such" does not exist'),
            (server_url.replace("billing@", "nobody_there@"), 'role "nobody_there" does not exist'),
            ("postgresql://u@no.such.host.invalid/x", "could not translate host name"),
        ):
            started = time.monotonic()
            done = make_app(DATABASE_URL=wrong).test_cli_runner().invoke(args=["db", "migrate"])
            assert time.monotonic() - started < 30
            assert (done.exit_code, reason in done.stderr) == (1, True), done.stderr


@pytest.fixture
def filled(client):
    """Customers, licenses (one revoked), reports of several months; the last customer."""
    for _ in range(2):
        made = make_customer(client, plan="professional")
        for days in (0, 20, 34):
            body = report_body(made["customerId"], timestamp=ago(days=days, hours=1))
            assert client.post("/api/usage/report", json=body, headers=ADMIN).status_code == 201
    revoked = make_customer(client)
    client.post(f"/api/licenses/{revoked['customerId']}/revoke", headers=ADMIN)
    return made | {"revoked": revoked["license"]}


@contextmanager
def older_server(programs: Path) -> Iterator[tuple[str, str]]:
    """A server of these programs: the URLs of two empty databases."""
    with tempfile.TemporaryDirectory() as home:
        shutil.chown(home, "nobody" if os.geteuid() == 0 else os.geteuid())
        user = {"user": "nobody"} if os.geteuid() == 0 else {}

        def run(name: str, *args: str) -> None:
            command = [str(programs / name), "-D", f"{home}/data", *args]
            subprocess.run(command, check=True, cwd=home, stdout=subprocess.DEVNULL, **user)

        run("initdb", "-U", "billing", "--auth=trust")
        run("pg_ctl", "start", "-w", "-l", f"{home}/log", "-o", f"-c listen_addresses='' -k {home}")
        url = f"postgresql://billing@/{{}}?host={home}"
        connection = psycopg2.connect(url.format("postgres"))
        connection.autocommit = True
        connection.cursor().execute("CREATE DATABASE first")
        connection.cursor().execute("CREATE DATABASE second")
        connection.close()
        try:
            yield url.format("first"), url.format("second")
        finally:
            run("pg_ctl", "stop", "-m", "immediate")


class TestBackup:
    def test_all_comes_back_and_licenses_still_verify(
        self, make_app, console, filled, database_url, empty_database_url, tmp_path
    ):
        file = tmp_path / "billing.dump"
        made = console("db", "backup", str(file))
        assert (made.exit_code, made.stdout) == (0, f"✅ {file} written.\n")
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        other = make_app(DATABASE_URL=empty_database_url)
        restored = other.test_cli_runner().invoke(args=["db", "restore", str(file)])
        assert (restored.exit_code, restored.output) == (0, f"✅ {file} restored.\n")
        assert counts(empty_database_url) == counts(database_url)

        client = other.test_client()
        assert client.get("/health/ready").status_code == 200
        for token, code in ((filled["license"], "VALID"), (filled["revoked"], "REVOKED")):
            assert client.post("/api/licenses/verify", json={"license": token}).json["code"] == code
        body = report_body(filled["customerId"])
        again = client.post("/api/usage/report", json=body, headers=bearer(filled["license"]))
        assert again.status_code == 201
        assert make_customer(client)["customerId"]  # the sequences have moved on as well

    def test_a_restore_that_is_refused_or_fails_changes_nothing(
        self, make_app, console, filled, database_url, empty_database_url, tmp_path
    ):
        file = tmp_path / "billing.dump"
        console("db", "backup", str(file))
        whole = file.read_bytes()

        def refusal(content, url):
            file.write_bytes(content)
            before = counts(url)
            refused = make_app(DATABASE_URL=url).test_cli_runner().invoke(args=["db", "restore", str(file)])
            assert (refused.exit_code, refused.stdout, counts(url)) == (1, "", before)
            assert len(refused.stderr.splitlines()) == 1
            return refused.stderr

        said = "Error: This database has customers. Restore into an empty one.\n"
        assert refusal(whole, database_url) == said
        other = make_app(DATABASE_URL=empty_database_url)
        assert other.test_cli_runner().invoke(args=["db", "migrate"]).exit_code == 0
        refusal(whole[: len(whole) * 2 // 3], empty_database_url)
        refusal(b"not a dump", empty_database_url)
        with psycopg2.connect(empty_database_url) as connection, connection.cursor() as cur:
            cur.execute("DROP TABLE stripe_ignored; CREATE VIEW stripe_ignored AS SELECT 1 AS in_the_way")
        assert "stripe_ignored" in refusal(whole, empty_database_url)
        with connection, connection.cursor() as cur:
            cur.execute("DROP VIEW stripe_ignored")
        connection.close()
        file.write_bytes(whole)
        assert other.test_cli_runner().invoke(args=["db", "restore", str(file)]).exit_code == 0
        assert counts(empty_database_url) == counts(database_url)

    def test_a_restore_into_the_wrong_database_drops_nothing(
        self, make_app, console, filled, empty_database_url, tmp_path
    ):
        file = tmp_path / "billing.dump"
        console("db", "backup", str(file))
        with closing(psycopg2.connect(empty_database_url)) as connection:
            connection.autocommit = True
            with connection.cursor() as cur:
                cur.execute(
                    "CREATE TABLE licenses (id INTEGER); CREATE TABLE of_another_service (id INTEGER)"
                )
                cur.execute("INSERT INTO of_another_service VALUES (1)")
        restore = make_app(DATABASE_URL=empty_database_url).test_cli_runner().invoke
        refused = restore(args=["db", "restore", str(file)])
        assert (refused.exit_code, 'relation "licenses" already exists' in refused.stderr) == (1, True)
        assert counts(empty_database_url) == {"licenses": 0, "of_another_service": 1}

    def test_a_file_is_overwritten_only_on_yes_and_a_pipe_never(self, console, terminal, filled, tmp_path):
        file = tmp_path / "billing.dump"
        file.write_text("yesterday's")
        code, screen = terminal("db", "backup", str(file), typed="n\n")
        assert (code, "Overwrite it?" in screen, file.read_text()) == (1, True, "yesterday's")
        assert terminal("db", "backup", str(file), typed="yes\n")[0] == 0
        assert file.read_bytes()[:5] == b"PGDMP"
        assert terminal("db", "backup", str(file), "--yes")[0] == 0
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        refused = console("db", "backup", str(pipe))
        assert (refused.exit_code, refused.stderr) == (1, f"Error: {pipe}: not a regular file\n")
        assert pipe.is_fifo()

    def test_no_password_among_the_arguments(self):
        url = "postgresql://u:s3cr%25t@one,two:5433/d?sslmode=require"  # pragma: allowlist secret
        command, environ = backups.program("pg_dump", url=url)
        assert environ["PGPASSWORD"] == "s3cr%t"  # pragma: allowlist secret
        assert "s3cr" not in " ".join(command)
        assert "host=one,two" in command[1]
        assert "sslmode=require" in command[1]

    def test_an_interrupted_backup_leaves_the_file_before_as_it_was(self, environ, database_url, tmp_path):
        connection = psycopg2.connect(database_url)
        connection.cursor().execute("LOCK TABLE customers IN ACCESS EXCLUSIVE MODE")  # pg_dump waits for it
        target = tmp_path / "backups" / "billing.dump"
        target.parent.mkdir()
        target.write_text("yesterday's")
        process = subprocess.Popen(
            [sys.executable, "-m", "flask", "db", "backup", str(target), "--yes"],
            cwd=ROOT, env=clean_environ(environ), stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        wait_until(lambda: waiting(database_url))
        os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does
        assert process.wait(30) != 0
        connection.close()
        assert (target.read_text(), list(target.parent.iterdir())) == ("yesterday's", [target])

    def test_an_older_server_gets_what_it_can_read(self, make_app, tmp_path):
        """With the programs of an older PostgreSQL, where this machine has some."""
        older = sorted(Path("/usr/lib/postgresql").glob("1[56]/bin/initdb"))
        if not older:
            pytest.skip("no PostgreSQL 15 or 16 under /usr/lib/postgresql")
        with older_server(older[0].parent) as (first, second):
            runner = make_app(DATABASE_URL=first).test_cli_runner()
            assert runner.invoke(args=["db", "migrate"]).exit_code == 0
            made = runner.invoke(args=["customer", "add", "--email", "a@example.com", "--name", "A"])
            assert made.exit_code == 0, made.output
            file = str(tmp_path / "older.dump")
            assert runner.invoke(args=["db", "backup", file]).exit_code == 0
            other = make_app(DATABASE_URL=second).test_cli_runner()
            done = other.invoke(args=["db", "restore", file])
            assert (done.exit_code, done.stdout) == (0, f"✅ {file} restored.\n")
            assert counts(second)["customers"] == 1


def test_shell(environ):
    done = run_flask("db", "shell", "-Atc", "SELECT COUNT(*) FROM customers", environ=environ)
    assert (done.returncode, done.stdout) == (0, "0\n")
    assert run_flask("db", "shell", "-c", "nonsense", environ=environ).returncode == 1
    done = run_flask("db", "shell", "--json", "-Atc", "SELECT 'é'", environ=environ)
    assert (done.returncode, json.loads(done.stdout)) == (0, {"exitCode": 0, "output": "é\n"})
