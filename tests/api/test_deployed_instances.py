"""Instances as they are deployed: they read a license once, at start, and never renew it by themselves."""

import os
import stat
import subprocess
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest
from jose import jwt

from app.licenses import generate_private_key, parse_private_key, sign
from tests.conftest import ADMIN
from tests.factories import bearer, make_customer
from tests.server import ROOT, free_port
from tests.tokens import claims_of, expired, kid_of, resign

DAY = 86400
RENEWER = ROOT / "docs" / "verify" / "renew.sh"
UNLICENSED = 2
pytestmark = pytest.mark.usefixtures("own_keys")


class DeployedInstance:
    """Verifies with the PEM it was given; any error leaves it with the figures of an unlicensed one."""

    def __init__(self, environ, days=0.0):
        """`days`: how long after now it starts."""
        self.plan, self.max_devices, self.can_export = "unlicensed", UNLICENSED, False
        try:
            claims = jwt.decode(
                environ["IOTISTIC_LICENSE_KEY"], environ["LICENSE_PUBLIC_KEY"], algorithms=["RS256"],
                options={"verify_exp": False},
            )  # fmt: skip
            if claims["expiresAt"] < time.time() + days * DAY:
                raise ValueError("the license has expired")
            if claims["subscription"]["status"] == "canceled":
                raise ValueError("the subscription has been canceled")
            self.plan = claims["plan"]
            self.max_devices = claims["features"]["maxDevices"]
            self.can_export = claims["features"]["canExportData"] is True
        except Exception as error:  # noqa: BLE001 -- as they do: an instance that fails to read goes on
            self.problem = error

    def can_connect(self, connected):
        return connected < self.max_devices


@pytest.fixture
def environ(environ):
    return environ | {"OVERAGE": "on"}


def variables(client, customer_id):
    """What an operator, or the renewer, writes into the environment of an instance now."""
    answer = client.get(f"/api/licenses/{customer_id}", headers=ADMIN)
    assert answer.status_code == 200, answer.json
    return {"IOTISTIC_LICENSE_KEY": answer.json["license"], "LICENSE_PUBLIC_KEY": answer.json["publicKey"]}


def started(client, customer_id):
    """Plan and devices of an instance that starts with the current license; in every state it can export."""
    instance = DeployedInstance(variables(client, customer_id))
    assert instance.can_export, instance.problem
    assert instance.can_connect(instance.max_devices - 1)
    assert not instance.can_connect(instance.max_devices)
    return instance.plan, instance.max_devices


def works_until(environ, days):
    """Whether an instance that nobody renews works nearly so long, and not much longer."""
    before, after = (DeployedInstance(environ, days=days + more).max_devices for more in (-0.1, 0.1))
    return before > UNLICENSED == after


def test_trials(client, console, sql):
    customer_id = make_customer(client)["customerId"]
    assert started(client, customer_id) == ("trial", 5)
    body = {"customerId": customer_id, "plan": "professional"}
    answer = client.post("/api/subscriptions/create-trial", json=body, headers=ADMIN)
    assert started(client, customer_id) == ("professional", 50)
    assert works_until(variables(client, customer_id), 14)
    path = f"/api/subscriptions/{answer.json['subscription']['subscriptionId']}/cancel"
    assert client.post(path, json={}, headers=ADMIN).json["subscription"]["status"] == "canceled"
    assert started(client, customer_id) == ("trial", 5)

    customer_id = make_customer(client, plan="enterprise")["customerId"]
    assert started(client, customer_id) == ("enterprise", 999_999)
    assert console("customer", "override", "--id", customer_id, "--max-devices", "250").exit_code == 0
    assert started(client, customer_id) == ("enterprise", 250)
    sql("UPDATE subscriptions SET trial_ends_at = now() - interval '1 hour'")
    assert started(client, customer_id) == ("trial", 5)


def test_a_paid_subscription_up_and_down_and_canceled(shop, sql):
    customer_id, subscription_id = shop.subscribe("starter")
    assert started(shop.client, customer_id) == ("starter", 10)
    old = variables(shop.client, customer_id)
    # A month and seven days of grace, for an instance that nobody renews.
    assert DeployedInstance(old, days=34).max_devices == 10
    assert DeployedInstance(old, days=39).max_devices == UNLICENSED
    for plan, devices in (("professional", 50), ("starter", 10)):
        assert shop.act(subscription_id, "upgrade", {"plan": plan}).status_code == 200
        assert started(shop.client, customer_id) == (plan, devices)
    for status in ("unpaid", "paused", "incomplete", "incomplete_expired", "active"):
        sql("UPDATE subscriptions SET status = %(status)s WHERE paid", status=status)
        assert started(shop.client, customer_id) == (("starter", 10) if status == "active" else ("trial", 5))
    assert shop.act(subscription_id, "cancel", {"atPeriodEnd": True}).status_code == 200
    assert started(shop.client, customer_id) == ("starter", 10)
    assert shop.act(subscription_id, "cancel").status_code == 200
    assert shop.subscription(customer_id)["status"] == "canceled"
    assert started(shop.client, customer_id) == ("trial", 5)
    license_token = variables(shop.client, customer_id)["IOTISTIC_LICENSE_KEY"]
    assert claims_of(license_token)["subscription"]["status"] == "expired"


def test_a_payment_that_fails(shop):
    customer_id, _ = shop.subscribe("professional")
    shop.sandbox.set_card(shop.stripe_id(customer_id), "decline")
    shop.sandbox.advance(days=32)
    shop.deliver()
    assert shop.plan_and_status(customer_id) == ("professional", "past_due")
    assert started(shop.client, customer_id) == ("professional", 50)
    assert works_until(variables(shop.client, customer_id), 7)
    shop.sandbox.advance(days=30)
    shop.deliver()
    assert shop.plan_and_status(customer_id) == ("trial", "canceled")
    assert started(shop.client, customer_id) == ("trial", 5)


def test_overage_up_to_the_cap(shop, console):
    customer_id, _ = shop.subscribe("professional")
    done = console("customer", "overage", "--id", customer_id, "--on", "--cap", "80")
    assert done.exit_code == 0, done.output
    assert started(shop.client, customer_id) == ("professional", 80)
    assert console("customer", "overage", "--id", customer_id, "--off").exit_code == 0
    assert started(shop.client, customer_id) == ("professional", 50)


def test_revoked_reinstated_and_erased(client, console):
    """It looks at no revocation list: it stops when the license it has expires."""
    customer_id = make_customer(client, plan="professional")["customerId"]
    old = variables(client, customer_id)
    client.post(f"/api/licenses/{customer_id}/revoke", headers=ADMIN)
    assert client.get(f"/api/licenses/{customer_id}", headers=ADMIN).status_code == 403
    assert works_until(old, 14)
    client.post(f"/api/licenses/{customer_id}/reinstate", headers=ADMIN)
    assert started(client, customer_id) == ("professional", 50)
    last = variables(client, customer_id)
    assert console("customer", "erase", "--id", customer_id, "--yes").exit_code == 0
    headers = bearer(last["IOTISTIC_LICENSE_KEY"])
    assert client.get(f"/api/licenses/{customer_id}", headers=headers).status_code == 401
    assert works_until(last, 14)


def rotate_and_renew(client, console, customer_id, company="New"):
    """The variables after a rotation, once a changed customer has caused a license with the new key."""
    before = client.get("/api/licenses/public-key").json["kid"]
    assert console("keys", "rotate", "--now", "--yes").exit_code == 0
    client.patch(f"/api/customers/{customer_id}", json={"companyName": company}, headers=ADMIN)
    renewed = variables(client, customer_id)
    assert kid_of(renewed["IOTISTIC_LICENSE_KEY"]) != before
    return renewed


def test_a_rotated_key(client, console):
    customer_id = make_customer(client, plan="professional")["customerId"]
    old = variables(client, customer_id)
    new = rotate_and_renew(client, console, customer_id)
    assert new["LICENSE_PUBLIC_KEY"] != old["LICENSE_PUBLIC_KEY"]
    for environ in (old, new):
        assert DeployedInstance(environ).max_devices == 50
    # The two belong together: this is how an instance stops when only the license is replaced.
    mixed = old | {"IOTISTIC_LICENSE_KEY": new["IOTISTIC_LICENSE_KEY"]}
    assert DeployedInstance(mixed).max_devices == UNLICENSED


class Host:
    """A machine with an instance and the renewer beside it."""

    def __init__(self, folder, url, customer_id, license_token):
        folder.mkdir()
        self.folder, self.customer_id, self.url = folder, customer_id, url
        self.file, self.restarts = folder / "license.env", folder / "restarts"
        self.write(license_token)
        self.said = ""

    def write(self, license_token):
        self.file.write_text(f"IOTISTIC_LICENSE_KEY={license_token}\n")

    def renew(self, *count, restart=None, **more):
        restart = restart or f'printf "%s\\n" "$IOTISTIC_LICENSE_KEY" >>{self.restarts}'
        environ = {"PATH": os.environ["PATH"], "BILLING_API_URL": self.url, "CUSTOMER_ID": self.customer_id}
        done = subprocess.run(
            ["sh", str(RENEWER), str(self.file), restart, *count], env=environ | more,
            capture_output=True, text=True, timeout=100, check=False,
        )  # fmt: skip
        self.said = done.stderr
        left_behind = {path.name for path in self.folder.iterdir()} - {"license.env", "restarts"}
        assert left_behind <= {"license.env.restart"}
        return done.returncode

    def refuses(self, reason):
        """A run that fails for this reason, restarts nothing and leaves the file as it was."""
        before, restarts = self.file.read_bytes(), len(self.restarted_with)
        assert self.renew() == 1
        assert reason in self.said
        return (self.file.read_bytes(), len(self.restarted_with)) == (before, restarts)

    @property
    def environ(self):
        """What a shell makes of the file."""
        script = f'. {self.file}; printf "%s\\0" "$IOTISTIC_LICENSE_KEY" "$LICENSE_PUBLIC_KEY"'
        license_token, key, _ = subprocess.check_output(["sh", "-c", script], text=True).split("\0")
        return {"IOTISTIC_LICENSE_KEY": license_token, "LICENSE_PUBLIC_KEY": key}

    @property
    def restarted_with(self):
        return self.restarts.read_text().split() if self.restarts.exists() else []


@pytest.fixture
def customer(client):
    return make_customer(client, plan="professional")


@pytest.fixture
def host(tmp_path, url, customer):
    return Host(tmp_path / "host", url, customer["customerId"], customer["license"])


class TestRenewer:
    def test_a_changed_license_is_written_once_and_the_instance_restarted(
        self, host, app, client, console, customer
    ):
        host.file.chmod(0o640)
        client.patch(f"/api/customers/{host.customer_id}", json={"companyName": "Changed"}, headers=ADMIN)
        assert host.renew() == 0, host.said
        current = variables(client, host.customer_id)
        assert {name: text.strip() for name, text in current.items()} == host.environ
        assert host.restarted_with == [current["IOTISTIC_LICENSE_KEY"]]
        assert DeployedInstance(host.environ).max_devices == 50
        assert stat.S_IMODE(host.file.stat().st_mode) == 0o640
        assert host.renew() == 0, host.said
        assert len(host.restarted_with) == 1

        for company in ("One", "Two"):  # a rotated key comes with its license
            new = rotate_and_renew(client, console, host.customer_id, company)
            assert host.renew() == 0, host.said
            assert host.environ == {name: text.strip() for name, text in new.items()}
            assert host.restarted_with[-1] == new["IOTISTIC_LICENSE_KEY"]

        old = expired(app, customer["license"], days=1)  # day 15 of a trial
        host.write(old)
        stopped = DeployedInstance(variables(client, host.customer_id) | {"IOTISTIC_LICENSE_KEY": old})
        assert (stopped.max_devices, str(stopped.problem)) == (UNLICENSED, "the license has expired")
        assert host.renew() == 0, host.said
        assert DeployedInstance(host.environ).plan == "professional"

    def test_usage_is_reported_with_the_license(self, host, client):
        def usage():
            return client.get(f"/api/usage/{host.customer_id}", headers=ADMIN).json

        assert host.renew("echo 4 5", INSTANCE_ID="shop-floor") == 0, host.said
        report = usage()["reports"][0]
        assert (report["instanceId"], report["activeDevices"], report["totalDevices"]) == ("shop-floor", 4, 5)
        for count in ("false", "echo nonsense", "echo 6 5"):
            assert host.renew(count) == 1
            assert "renew.sh: " in host.said
        assert usage()["summary"]["totalReports"] == 1

    def test_a_restart_that_failed_is_repeated(self, host):
        assert host.renew(restart="exit 3") == 1
        assert "restart failed" in host.said
        assert DeployedInstance(host.environ).max_devices == 50
        for _ in range(2):
            assert host.renew() == 0, host.said
            assert len(host.restarted_with) == 1

    def test_what_is_wrong_on_this_machine_or_refused_by_the_service(self, host, client):
        stored = host.file.read_text()
        host.file.write_text(f"{stored}POSTGRES_PASSWORD=x\n")
        assert host.refuses("other settings")
        host.file.write_text("")
        assert host.refuses("no IOTISTIC_LICENSE_KEY")
        host.file.write_text(stored)
        assert host.renew(BILLING_API_URL="") == 2
        assert host.said.startswith("usage: ")
        client.post(f"/api/licenses/{host.customer_id}/revoke", headers=ADMIN)
        assert host.refuses("403")
        host.write(make_customer(client)["license"])
        assert host.refuses("403")
        host.write("not.a.license")
        assert host.refuses("401")
        host.url = f"http://127.0.0.1:{free_port()}"
        assert host.refuses("no license came")
        assert host.renew("echo 4 5") == 1

    def test_an_answer_that_is_no_license_for_this_instance(self, host, app, client, customer, answering):
        token, key = customer["license"], variables(client, host.customer_id)["LICENSE_PUBLIC_KEY"]
        other = parse_private_key(generate_private_key())
        host.url = answering.url
        forged = resign(app, token, plan="enterprise").rpartition(".")[0] + "." + token.rpartition(".")[2]
        for license_token, public_key in (
            ("", key), ("not a license", key), (token.rpartition(".")[0], key), (token[:-10], key),
            (forged, key), (sign(claims_of(token), other), key), (token, other.public.pem), (token, ""),
            (token, f"';touch {host.folder}/run;'\n{key}"), (make_customer(client)["license"], key),
        ):  # fmt: skip
            answering.body = app.json.dumps({"license": license_token, "publicKey": public_key})
            assert host.refuses("no license for")
        answering.body = "<html>Sign in to the network</html>"
        assert host.refuses("no license for")
        answering.body = app.json.dumps({"license": token, "publicKey": key})
        assert host.renew() == 0, host.said


@pytest.fixture
def answering():
    """A server that answers every GET with `body`: a broken service, or a network's sign-in page."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(server.body.encode())

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        server.url = f"http://127.0.0.1:{server.server_port}"
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_the_line_for_reporting_in_the_documentation_works_as_pasted(url, client, customer):
    page = (ROOT / "docs" / "instances.md").read_text()
    line = next(block for block in page.split("```bash\n") if block.startswith("curl")).partition("```")[0]
    environ = {
        "PATH": os.environ["PATH"], "BILLING_API_URL": url, "CUSTOMER_ID": customer["customerId"],
        "LICENSE_JWT": customer["license"],
    }  # fmt: skip
    done = subprocess.run(["sh", "-c", line], env=environ, capture_output=True, text=True, check=False)
    assert '"reportId"' in done.stdout, done
    usage = client.get(f"/api/usage/{customer['customerId']}", headers=bearer(customer["license"])).json
    assert [report["activeDevices"] for report in usage["reports"]] == [42]
