"""Migrations: from zero, again, at once, edited, failing, unknown."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from app import migrations
from app.db import Database
from app.errors import Conflict
from tests.conftest import ROOT

ALL = [path.stem for path in sorted((ROOT / "sql").glob("*.sql"))]


@pytest.fixture
def db(empty_database_url):
    database = Database(empty_database_url, 8)
    yield database
    database.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of sql/ to spoil."""
    return Path(shutil.copytree(ROOT / "sql", tmp_path / "sql"))


def tables(db: Database) -> set[str]:
    with db.statement() as cur:
        return {
            row["tablename"] for row in cur.all("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        }


def recorded(db: Database) -> list[str]:
    with db.statement() as cur:
        return [row["name"] for row in cur.all("SELECT name FROM schema_migrations ORDER BY name")]


def test_from_zero_and_again_as_a_no_op(db):
    assert [m.applied_at for m in migrations.status(db)] == [None] * len(ALL)
    assert migrations.migrate(db) == ALL == recorded(db)
    before = tables(db)
    assert {"customers", "subscriptions", "usage_reports", "schema_migrations"} <= before
    assert migrations.migrate(db) == []
    assert tables(db) == before
    assert all(m.applied_at for m in migrations.status(db))


def test_several_at_once_apply_each_file_once(empty_database_url, db):
    def run(_: int) -> list[str]:
        own = Database(empty_database_url, 1)
        try:
            return migrations.migrate(own)
        finally:
            own.close()

    with ThreadPoolExecutor(6) as pool:
        applied = list(pool.map(run, range(6)))
    assert sorted(name for names in applied for name in names) == ALL == recorded(db)


def test_an_edited_file_is_refused_and_nothing_is_applied(db, folder):
    migrations.migrate(db, folder)
    (folder / "0002_usage.sql").write_text("SELECT 1;\n")
    (folder / "0999_more.sql").write_text("CREATE TABLE more (id INTEGER);\n")
    for refused in (migrations.status, migrations.migrate):
        with pytest.raises(Conflict, match=r"sql/0002_usage\.sql was edited"):
            refused(db, folder)
    assert "more" not in tables(db)


def test_a_failing_file_leaves_nothing_and_the_ones_before_stay(db, folder):
    (folder / "0997_good.sql").write_text("CREATE TABLE good (id INTEGER);\n")
    (folder / "0998_bad.sql").write_text("CREATE TABLE half (id INTEGER); SELECT 1 / 0;\n")
    (folder / "0999_after.sql").write_text("CREATE TABLE later (id INTEGER);\n")
    with pytest.raises(Conflict, match=r"sql/0998_bad\.sql failed, .*division by zero"):
        migrations.migrate(db, folder)
    assert recorded(db) == [*ALL, "0997_good"]
    assert "good" in tables(db)
    assert not {"half", "later"} & tables(db)

    (folder / "0998_bad.sql").write_text("CREATE TABLE whole (id INTEGER);\n")
    assert migrations.migrate(db, folder) == ["0998_bad", "0999_after"]


def test_a_database_that_is_ahead_of_the_files_is_refused(db, folder):
    (folder / "0999_newer.sql").write_text("CREATE TABLE newer (id INTEGER);\n")
    migrations.migrate(db, folder)
    with pytest.raises(Conflict, match="0999_newer"):
        migrations.migrate(db)
    assert "newer" in tables(db)


def test_the_console(make_app, empty_database_url):
    runner = make_app(DATABASE_URL=empty_database_url).test_cli_runner()
    status = runner.invoke(args=["db", "status"])
    assert status.exit_code == 1
    assert status.stdout.count("pending") == len(ALL)
    migrated = runner.invoke(args=["db", "migrate"])
    assert migrated.exit_code == 0
    assert migrated.stdout.splitlines() == [
        *(f"✅ {name}" for name in ALL),
        f"{len(ALL)} migration(s) applied.",
    ]
    assert runner.invoke(args=["db", "migrate"]).stdout == "Nothing to apply.\n"
    status = runner.invoke(args=["db", "status"])
    assert status.exit_code == 0
    assert "pending" not in status.stdout


def test_a_failing_file_is_one_line_on_the_console(make_app, empty_database_url, folder, monkeypatch):
    (folder / "0999_bad.sql").write_text("SELECT nonsense FROM nowhere;\n")
    monkeypatch.setattr(migrations.migrate, "__defaults__", (folder,))
    result = make_app(DATABASE_URL=empty_database_url).test_cli_runner().invoke(args=["db", "migrate"])
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("Error: sql/0999_bad.sql failed")


def test_waiting_for_a_database_has_an_end(make_app):
    app = make_app(DATABASE_URL="postgresql://nobody@127.0.0.1:1/none")
    result = app.test_cli_runner().invoke(args=["db", "migrate", "--wait", "1"])
    assert result.exit_code == 1
    assert "Waiting up to 1 s for the database" in result.stderr
    assert result.stderr.splitlines()[-1] == "Error: DATABASE_URL: the database did not answer within 1 s."
