"""How every command prints: tables, forms for machines, terminals, and failing outputs."""

import csv
import io
import itertools
import json
import re
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import psycopg2
import pytest
from rich.cells import cell_len

from cli.output import money
from tests.cli.conftest import RULE
from tests.conftest import ADMIN
from tests.factories import make_customer, report_body
from tests.server import ROOT, clean_environ, run_flask

LONG = "a" * 50 + "@example.com"


@pytest.fixture
def names(client):
    """Customers whose names are hard on a table."""
    return [
        make_customer(client, name="東京電力", companyName="株式会社", email="kanji@example.com"),
        make_customer(client, name="Zoe\u0308", email=LONG),
        make_customer(client, name="[red]x[/red] :bomb:", companyName="Corp"),
    ]


def test_piped_columns_grow_and_nothing_is_cut(console, names):
    lines = console("customer", "list").stdout.splitlines()
    rows = [line for line in lines if "cust_" in line]
    assert lines[2] == lines[4] == lines[-1] == RULE
    assert len({tuple(cell_len(cell) for cell in row.split("|")[:-1]) for row in rows}) == 1
    for made, row in zip(names, rows, strict=True):
        for name in ("customerId", "email", "name"):
            assert made[name] in row
    assert "\x1b" not in "".join(lines)


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_a_table_fits_the_terminal_and_keeps_its_ids(terminal, names, columns):
    code, screen = terminal("customer", "list", columns=columns)
    assert code == 0
    plain = re.sub(r"\x1b\[[0-9;]*m", "", screen).splitlines()
    assert max(cell_len(line) for line in plain) <= columns
    for made in names:
        assert (made["customerId"] in "\n".join(plain)) or columns < 80
    assert "\x1b[1m" in screen


def test_long_ids_push_no_other_column_out_of_the_terminal(terminal, client):
    customer_id, instance = make_customer(client)["customerId"], "production-europe-west-1-" + "b" * 40
    body = report_body(customer_id, 7, instanceId=instance)
    assert client.post("/api/usage/report", json=body, headers=ADMIN).status_code == 201
    screen = terminal("usage", "show", customer_id, columns=80, NO_COLOR="1")[1]
    screen = re.sub(r"\x1b\[[0-9;]*m", "", screen)
    [row] = [line.split("|") for line in screen.splitlines() if instance in line]
    assert (len(row[0]), *(cell.strip() for cell in row[1:])) == (21, instance, "7", "10", "140.0%")


def test_long_text_goes_through_the_pager(terminal, names):
    paged = terminal("customer", "list", lines=5, PAGER="sed s/cust_/PAGED_/")[1]
    assert "PAGED_" in paged
    assert "PAGED_" not in terminal("customer", "list", PAGER="sed s/cust_/PAGED_/")[1]


def test_the_pager_less_is_told_of_colours(terminal, names, tmp_path):
    pager = tmp_path / "less"
    pager.write_text('#!/bin/sh\necho "LESS=$LESS"\ncat\n')
    pager.chmod(0o755)
    assert "LESS=-R\n" in terminal("customer", "list", lines=5, PAGER=str(pager))[1]


def test_no_color(terminal, client):
    make_customer(client)
    assert "\x1b[3" not in terminal("license", "verify", "x", NO_COLOR="1")[1]
    assert "\x1b[31m" in terminal("license", "verify", "x")[1]


def test_a_spreadsheet_gets_no_formula(console, client):
    make_customer(client, name='=HYPERLINK("x")')
    [row] = csv.DictReader(io.StringIO(console("customer", "list", "--csv").stdout))
    assert row["name"] == '\'=HYPERLINK("x")'


def test_two_forms_at_once_are_wrong_usage(console):
    for args in (["customer", "list"], ["report"], ["usage", "show", "--all"]):
        done = console(*args, "--json", "--csv")
        assert (args, done.exit_code, done.stdout) == (args, 2, "")


def test_a_full_disk_and_a_closed_pipe_are_one_line(environ, client):
    make_customer(client)
    command = [sys.executable, "-m", "flask", "customer", "list"]
    settings = clean_environ(environ)
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, cwd=ROOT, env=settings, stdout=full, stderr=-1, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "Error: stdout: No space left on device\n")
    process = subprocess.Popen(command, cwd=ROOT, env=settings, stdout=-1, stderr=-1, text=True)
    process.stdout.close()
    assert (process.wait(30), process.stderr.read()) == (1, "Error: stdout: Broken pipe\n")
    process.stderr.close()


@pytest.mark.parametrize("unbuffered", ["", "1"])  # as in the container image
def test_a_disk_that_fills_up_is_no_success(environ, client, tmp_path, unbuffered):
    made = make_customer(client)["customerId"]
    settings = {
        "PYTHONUNBUFFERED": unbuffered,
        "PYTHONDONTWRITEBYTECODE": "1",
    }  # no files cut short elsewhere
    command = f"ulimit -f 1; exec {sys.executable} -m flask customer export {made}"
    with open(tmp_path / "export.json", "w") as file:
        done = subprocess.run(
            ["sh", "-c", command], cwd=ROOT, env=clean_environ(environ | settings), stdout=file, stderr=-1,
            text=True, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "Error: stdout: File too large\n")


def test_streams_that_are_closed_or_of_another_encoding(environ, client):
    made = make_customer(client, name="Zoë")["customerId"]
    show = f"$FLASK customer show {made} --json"
    for line, expected in [
        (f"{show} >&-", (0, "", "")),
        (f"PYTHONIOENCODING=latin-1 {show} | grep -o 'Zoë'", (0, "Zoë\n", "")),
        (f"$FLASK license revoke {made} <&-", (0, f"✅ Licenses of {made} revoked.\n", "")),
        ("$FLASK license verify - <&-", (1, "❌ MALFORMED\n", "")),
    ]:  # fmt: skip
        settings = clean_environ(environ | {"FLASK": f"{sys.executable} -m flask"})
        done = subprocess.run(
            ["sh", "-c", line], cwd=ROOT, env=settings, capture_output=True, text=True, check=False
        )
        assert (line, done.returncode, done.stdout, done.stderr) == (line, *expected)


@pytest.mark.parametrize(
    ("currency", "expected"),
    [("usd", "$2,900.00"), ("eur", "2,900.00 EUR"), ("jpy", "290,000 JPY"), ("kwd", "290.000 KWD")],
)
def test_an_amount_has_the_decimals_of_its_currency(currency, expected):
    assert money(290000, currency) == expected


CUSTOMER = [
    ["customer", "show"], ["customer", "upgrade", "--plan", "starter"], ["customer", "deactivate"],
    ["customer", "resume"], ["customer", "portal"], ["customer", "invoices"], ["customer", "explain"],
    ["customer", "override", "--clear"], ["customer", "export"], ["customer", "erase", "--yes"],
    ["customer", "update", "--name", "N"], ["customer", "retire-instance", "--instance", "i"],
    ["license", "show"], ["license", "history"], ["license", "revoke"], ["license", "reinstate"],
    ["audit", "list"], ["usage", "show"], ["usage", "alerts"], ["sandbox", "deliver"],
]  # fmt: skip


def test_an_unknown_customer_is_exit_1_everywhere(make_app):
    runner = make_app(STRIPE_API_BASE="http://127.0.0.1:1").test_cli_runner()
    whom = (["nope"], ["--id", "nope@example.com"], ["--customer", "sub_nope"])
    for args, who in itertools.product(CUSTOMER, whom):
        done = runner.invoke(args=[*args, *who])
        assert (args, done.exit_code, done.stdout) == (args, 1, "")
        assert done.stderr == f"Error: There is no customer {who[-1]}.\n"


def test_a_customer_is_named_in_every_way(console, client, sql):
    made = make_customer(client, email="Ada@Example.com")
    sql("UPDATE customers SET stripe_customer_id = 'cus_1'")
    trial = made["subscription"]["subscriptionId"]
    for who in (made["customerId"], "ada@example.COM", "cus_1", trial):
        for args in ([who], ["--id", who], ["--customer", who], [who, "--id", who]):
            done = console("customer", "show", *args, "--json")
            assert json.loads(done.stdout)["customerId"] == made["customerId"]
    assert console("customer", "show").exit_code == 2
    assert console("customer", "show", "cus_1", "--id", trial).exit_code == 2


def test_completion_knows_the_customers(environ, client):
    made = make_customer(client, email="ada@example.com")
    away = {"DATABASE_URL": "postgresql://nobody@127.0.0.1:1/nothing"}
    for words, more, expected in (
        ("flask customer show a", {}, "plain,ada@example.com"),
        ("flask license show --customer cust_", {}, f"plain,{made['customerId']}"),
        ("flask customer show a", away, ""),
    ):
        asked = {"_FLASK_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        flask = Path(sys.executable).parent / "flask"
        settings = clean_environ(environ | asked | more)
        done = subprocess.run([flask], cwd=ROOT, env=settings, capture_output=True, text=True, check=False)
        assert (words, done.stdout.strip(), done.stderr) == (words, expected, "")


def test_arguments_that_cannot_be_meant_are_wrong_usage(console, client):
    make_customer(client, email="a@example.com")
    for args in (
        ["customer", "show", "--id", "\udcff"],
        ["customer", "list", "--search", "\udcff"],
        ["stripe", "sync", "--ignore", "\udcff"],
        ["license", "revoke", "--customer", "a@example.com", "--reason", "x" * 501],
        ["license", "revoke", "--customer", "a@example.com", "--reason", "\x1b[31m"],
        ["customer", "add", "--email", "nonsense", "--name", "N"],
        ["customer", "add", "--email", "b@example.com", "--name", ""],
    ):
        done = console(*args)
        assert (args, done.exit_code, done.stdout) == (args, 2, "")
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("postgresql://nobody@127.0.0.1:1/nothing", "Connection refused"),
        ("postgresql://nobody@no.such.host.invalid/x", "could not translate host name"),
    ],
)
def test_a_database_that_is_away_is_one_line_in_its_own_words(environ, url, reason):
    done = run_flask("customer", "list", environ=environ | {"DATABASE_URL": url})
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(rf"Error: DATABASE_URL: [^\n]*{reason}[^\n]*\n", done.stderr)


def test_a_database_that_takes_no_writes_says_so(make_app, database_url):
    read_only = "options=-cdefault_transaction_read_only%3Don"
    app = make_app(DATABASE_URL=f"{database_url}{'&' if '?' in database_url else '?'}{read_only}")
    done = app.test_cli_runner().invoke(
        args=["customer", "add", "--email", "ada@example.com", "--name", "Ada"]
    )
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == "Error: DATABASE_URL: cannot execute INSERT in a read-only transaction\n"


def test_a_row_that_another_session_holds_is_no_fault_of_the_setting(
    console, client, database_url, monkeypatch
):
    monkeypatch.setattr("app.db.LOCK_SECONDS", 0.05)
    customer_id = make_customer(client)["customerId"]
    with closing(psycopg2.connect(database_url)) as other, other.cursor() as cur:
        cur.execute("UPDATE customers SET name = 'Held'")
        done = console("customer", "update", customer_id, "--name", "New")
    assert (done.exit_code, done.stderr.startswith("Error: Another request or session")) == (1, True)
    assert client.get(f"/api/customers/{customer_id}", headers=ADMIN).json["name"] == "Customer Name"


def test_what_a_command_does_not_use_is_not_loaded(environ, client):
    """What takes longest to import; `make bench` measures the time itself."""
    make_customer(client)
    heavy = "stripe flask_smorest marshmallow limits prometheus_client jose cryptography"
    program = (
        "import sys; from flask.cli import main\n"
        "try: main()\n"
        f"finally: print([m for m in {heavy.split()} if m in sys.modules], file=sys.stderr)"
    )
    for args in (["--help"], ["customer", "list"], ["usage", "show", "--all"]):
        done = subprocess.run(
            [sys.executable, "-c", program, *args], cwd=ROOT, env=clean_environ(environ),
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stderr.splitlines()[-1] == "[]", args
