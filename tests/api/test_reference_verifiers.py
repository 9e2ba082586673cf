"""The pages in `docs/verify` that instances copy, each run as its reader would run it."""

import json
import shutil
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from app.licenses import generate_private_key, parse_private_key, sign
from tests.conftest import ADMIN
from tests.factories import make_customer
from tests.tokens import base64url, claims_of, expired, resign, segment

PAGES = Path(__file__).resolve().parents[2] / "docs" / "verify"
JOSE = "jose@6.2.17"
DAY = 86400
pytestmark = pytest.mark.usefixtures("own_keys")


@pytest.fixture(scope="session")
def node_page(tmp_path_factory):
    """The page beside the one package it needs."""
    folder = tmp_path_factory.mktemp("node")
    shutil.copy(PAGES / "verify.mjs", folder)
    try:
        subprocess.run(
            ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(folder), JOSE],
            check=True, timeout=60, stdin=subprocess.DEVNULL, capture_output=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"npm cannot install {JOSE} here: {error}")
    return folder / "verify.mjs"


@pytest.fixture(params=["python", "node"])
def page(request):
    if request.param == "python":
        return [sys.executable, str(PAGES / "verify.py")]
    return ["node", str(request.getfixturevalue("node_page"))]


class Instance:
    """One deployed instance: its customer, its state file, the page it runs; `said` is its last stderr."""

    def __init__(self, page, file, customer_id):
        self.page, self.file, self.customer_id = page, file, customer_id

    def start(self, *args):
        return subprocess.run([*self.page, *args], capture_output=True, text=True, timeout=60, check=False)

    def run(self, *args):
        done = self.start(str(self.file), self.customer_id, *args)
        self.said = done.stderr
        assert done.stdout, done.stderr
        decision = json.loads(done.stdout)
        licensed = decision["code"] == "VALID"
        assert done.returncode == (not licensed), done.stderr
        assert licensed or (decision["plan"], decision["features"]["maxDevices"]) == ("trial", 5)
        return decision

    def code(self, *args):
        return self.run(*args)["code"]

    @property
    def state(self):
        return json.loads(self.file.read_text())

    def set_state(self, **changes):
        self.file.write_text(json.dumps(self.state | changes))


@pytest.fixture
def customer(client):
    return make_customer(client, plan="professional")


@pytest.fixture
def instance(page, tmp_path, url, customer):
    """One that has been set up by its operator, and has been online once."""
    made = Instance(page, tmp_path / "state.json", customer["customerId"])
    assert made.code("--refresh", url, "--install", customer["license"]) == "VALID"
    return made


def a_list(app, *revoked, age=0, **changes):
    """A revocation list as the service would have signed it that long ago."""
    at = int(time.time() - age)
    served = app.test_client().get("/api/licenses/revocations").json["revocations"]
    return resign(app, served, iat=at, exp=at + DAY, revoked=list(revoked), **changes)


def answer_instead(app, path, view):
    """From now on the service answers there as `view` does."""
    endpoint = next(rule.endpoint for rule in app.url_map.iter_rules() if rule.rule == path)
    app.view_functions[endpoint] = view


def test_help_and_wrong_usage_are_plain_lines(page, tmp_path):
    given = Instance(page, tmp_path / "missing" / "state.json", "cust_0123456789ab")
    shown = given.start("--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "--refresh" in shown.stdout
    for args, reason in (
        ([], "usage"),
        (["--frobnicate"], "usage" if page[0] != "node" else "--frobnicate"),
        ([str(given.file), given.customer_id], f"there is no folder {given.file.parent}"),
        ([str(tmp_path), given.customer_id], "directory"),
    ):
        refused = given.start(*args)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert reason in refused.stderr
        assert "Traceback" not in refused.stderr
        assert "    at " not in refused.stderr
    assert not given.file.parent.exists()


def test_a_damaged_state_file_counts_as_none(instance, url, customer):
    whole = instance.state
    wrong_types = ({"license": 7}, {"newestIat": "0"}, {"list": None}, {"keys": [7]})
    for damage in ("", "null", json.dumps(whole)[:-9], *(json.dumps(whole | odd) for odd in wrong_types)):
        instance.file.write_text(damage)
        assert (damage, instance.code(), instance.said) == (damage, "NO_LICENSE", "")
    assert instance.code("--refresh", url, "--install", customer["license"]) == "VALID"
    assert instance.state["license"] == customer["license"]
    assert [path.name for path in instance.file.parent.glob("state*")] == ["state.json"]


def test_before_the_first_contact_online_then_offline(page, tmp_path, app, url, customer):
    fresh = Instance(page, tmp_path / "state.json", customer["customerId"])
    assert fresh.code("--install", customer["license"]) == "NO_LICENSE"
    assert "UNKNOWN_KEY" in fresh.said  # no key was fetched yet
    assert not fresh.file.exists()
    claims = claims_of(customer["license"])
    decision = fresh.run("--refresh", url, "--install", customer["license"])
    assert decision == {
        "code": "VALID", "plan": "professional",
        "features": claims["features"], "limits": claims["limits"],
    }  # fmt: skip
    assert fresh.run() == decision
    assert fresh.run("--refresh", "http://127.0.0.1:1") == decision
    assert len(fresh.said.splitlines()) == 3
    keys = fresh.state["keys"]
    for bad in ({"keys": None}, {"keys": [{"kty": "RSA"}]}, []):  # an answer without keys changes nothing
        answer_instead(app, "/.well-known/jwks.json", lambda bad=bad: bad)
        assert fresh.run("--refresh", url) == decision
        assert fresh.state["keys"] == keys


def test_a_changed_license_is_fetched_and_no_older_one_is_taken_again(instance, app, url, customer, sql):
    sql("UPDATE subscriptions SET status = 'canceled', ended_at = now()")
    better = resign(app, customer["license"], iat=claims_of(customer["license"])["iat"] - 5)
    assert instance.run("--refresh", url)["plan"] == "trial"
    newest = instance.state["license"]
    assert newest != customer["license"]
    assert instance.code("--install", better) == "VALID"
    assert "OLDER" in instance.said
    assert instance.state["license"] == newest
    assert instance.run()["plan"] == "trial"


def test_a_rotated_key_is_fetched(instance, client, url, customer, console):
    old = client.get("/api/licenses/public-key").json["kid"]
    assert console("keys", "rotate", "--now", "--yes").exit_code == 0
    new = client.get("/api/licenses/public-key").json["kid"]
    path = f"/api/customers/{customer['customerId']}"
    assert client.patch(path, json={"companyName": "Changed"}, headers=ADMIN).status_code == 200
    assert instance.code("--refresh", url) == "VALID"
    assert {key["kid"] for key in instance.state["keys"]} == {old, new}
    assert segment(instance.state["license"], 0)["kid"] == new
    unknown = parse_private_key(generate_private_key())
    assert instance.code("--install", sign(claims_of(customer["license"]), unknown)) == "VALID"
    assert "UNKNOWN_KEY" in instance.said


def test_a_revoked_license_is_known_offline_and_a_reinstated_one_online(instance, client, url, customer):
    client.post(f"/api/licenses/{customer['customerId']}/revoke", headers=ADMIN)
    assert instance.code() == "VALID"  # it has not been online since
    assert instance.code("--refresh", url) == "REVOKED"
    assert instance.code() == "REVOKED"
    back = client.post(f"/api/licenses/{customer['customerId']}/reinstate", headers=ADMIN)
    # The revoked one fetches nothing any more: an operator brings the new one.
    assert instance.code("--refresh", url) == "REVOKED"
    assert instance.code("--install", back.json["license"]) == "VALID"


def test_expiry_with_leeway_and_renewal_with_the_expired_license(instance, app, url, customer):
    for seconds_ago, code in ((-5, "VALID"), (30, "VALID"), (120, "EXPIRED"), (20 * DAY, "EXPIRED")):
        instance.set_state(license=expired(app, customer["license"], days=seconds_ago / DAY), newestIat=0)
        assert (seconds_ago, instance.code()) == (seconds_ago, code)
    assert instance.code("--refresh", url) == "VALID"
    expires = claims_of(instance.state["license"])["exp"]
    assert time.time() < expires < time.time() + 20 * DAY
    # A clock that was set back gains nothing: the signed times are those of a later present.
    instance.set_state(list=claims_of(a_list(app, age=-20 * DAY)))
    assert instance.code() == "EXPIRED"


def test_the_age_of_the_revocation_list(instance, app, customer):
    jti = claims_of(customer["license"])["jti"]
    for age, revoked, code in (
        (0, [], "VALID"),
        (6.9 * DAY, [], "VALID"),
        (7.1 * DAY, [], "LIST_TOO_OLD"),
        (30 * DAY, [jti], "REVOKED"),
    ):
        instance.set_state(list=claims_of(a_list(app, *revoked, age=age)))
        assert instance.code() == code
    instance.set_state(list={"iat": 0, "revoked": []})
    assert instance.code() == "VALID"
    instance.set_state(license=resign(app, customer["license"], iat=int(time.time() - 8 * DAY)))
    assert instance.code() == "LIST_TOO_OLD"


def test_no_list_is_taken_that_is_old_or_no_list(instance, app, customer, url):
    jti = claims_of(customer["license"])["jti"]
    held = {"iat": int(time.time()) - 60, "revoked": [jti]}
    instance.set_state(list=held)
    good = a_list(app)
    refused = (
        a_list(app, age=3600),  # from before the license was revoked
        a_list(app, iss="somebody-else"),
        sign(claims_of(good), parse_private_key(generate_private_key())),
        customer["license"],
        "nonsense",
    )
    served: list[str] = []
    answer_instead(app, "/api/licenses/revocations", lambda: {"revocations": served[-1]})
    for bad in refused:
        served.append(bad)
        assert instance.code("--refresh", url) == "REVOKED", bad
        assert "fetch_list" in instance.said
        assert instance.state["list"] == held
    served.append(good)
    assert instance.code("--refresh", url) == "VALID"
    assert instance.state["list"]["revoked"] == []


def test_what_no_instance_takes(instance, app, client, customer):
    token, other = customer["license"], make_customer(client)
    head, body, signature = token.split(".")
    key = app.extensions["billing.keyring"].signing_key()
    header = segment(token, 0)

    def signed(header, claims):
        text = f"{base64url(json.dumps(header).encode())}.{base64url(json.dumps(claims).encode())}"
        return f"{text}.{base64url(key.private.sign(text.encode()))}"

    claims = claims_of(token)
    bad = {
        "OTHER_CUSTOMER": [other["license"]],
        "MALFORMED": [
            "x", f"{head}.{body}", f"{head}.{body}.{signature}AAAA",
            f"{base64url(json.dumps(header | {'alg': 'none'}).encode())}.{body}.",
            signed(header | {"alg": "HS256"}, claims),
            signed(header | {"crit": ["exp"]}, claims),
            signed(header | {"jku": "http://127.0.0.1:1/"}, claims),
            signed(header, claims | {"iss": "somebody-else"}),
            resign(app, token, plan="enterprise").rpartition(".")[0] + "." + signature,
            resign(app, token, filler="x" * 9000),
            a_list(app),
        ],
        "UNKNOWN_KEY": [signed(header | {"kid": str(uuid.uuid4())}, claims)],
    }  # fmt: skip
    for code, tokens in bad.items():
        for text in tokens:
            assert instance.code("--install", text) == "VALID"
            assert f"install: {code}" in instance.said, text
            assert instance.state["license"] == token
        # Nor does one count that was smuggled into the file.
        instance.set_state(license=tokens[-1])
        assert instance.code() == code
        instance.set_state(license=token)
