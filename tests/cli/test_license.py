"""`flask license …`."""

import json

from tests.conftest import ADMIN
from tests.factories import make_customer
from tests.tokens import claims_of


def test_show(console, client):
    made = make_customer(client, plan="starter")
    who = ("--customer", made["customerId"])
    assert console("license", "show", *who, "--raw").stdout == f"{made['license']}\n"
    lines = console("license", "show", *who).stdout.splitlines()
    assert {"Plan:             STARTER", "📜 License JWT:", made["license"]} <= set(lines)
    shown = json.loads(console("license", "show", *who, "--json").stdout)
    assert (shown["license"], shown["jti"]) == (made["license"], claims_of(made["license"])["jti"])


def test_revoke_history_reinstate(console, client, terminal):
    made = make_customer(client, name="Ada", email="ada@example.com")
    path, who = f"/api/licenses/{made['customerId']}", made["customerId"]
    refused = console("license", "reinstate", who)
    assert (refused.exit_code, refused.stdout, "not revoked" in refused.stderr) == (1, "", True)
    code, screen = terminal("license", "revoke", who, typed="no\n", columns=200)
    assert (code, f"Ada <ada@example.com> ({who})" in screen) == (1, True)
    assert client.get(path, headers=ADMIN).status_code == 200

    done = console("license", "revoke", who, "--reason", "leaked", "--json")
    assert json.loads(done.stdout)["revoked"] is True
    assert client.get(path, headers=ADMIN).status_code == 403
    for args, shown in ((["show", who], ""), (["verify", made["license"]], "❌ REVOKED")):
        done = console("license", *args)
        assert (done.exit_code, done.stdout.partition("\n")[0]) == (1, shown)
    done = console("license", "reinstate", who)
    token = client.get(path, headers=ADMIN).json["license"]
    assert (done.exit_code, done.stdout.splitlines()[-1]) == (0, token)
    rows = [row for row in console("license", "history", who).stdout.splitlines() if who[:4] not in row]
    states = [row.rpartition("|")[2].strip() for row in rows if row.count("|") == 4]
    assert states == ["State", "current", "revoked"]
    assert console("license", "revoke", who).exit_code == 0
    back = json.loads(console("license", "reinstate", who, "--json").stdout)
    assert back["license"] == client.get(path, headers=ADMIN).json["license"]


def test_verify(app, console, client):
    token = make_customer(client)["license"]
    for args, given in ((["-"], token.encode()), ([token], None)):
        done = app.test_cli_runner().invoke(args=["license", "verify", *args, "--json"], input=given)
        assert (done.exit_code, json.loads(done.stdout)["code"]) == (0, "VALID")
    assert console("license", "verify", token).stdout.startswith("✅ VALID\n{")
    for given in (b"nonsense", b"\xff\xfe"):
        done = app.test_cli_runner().invoke(args=["license", "verify", "-"], input=given)
        assert (done.exit_code, done.stdout) == (1, "❌ MALFORMED\n")
