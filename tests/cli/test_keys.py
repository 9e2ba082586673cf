"""Signing keys: where they come from, what is refused at the start, rotation, removal."""

import base64
import itertools
import json
import os
import re
import shlex
import signal
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import requests
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from app import keyring
from app.config import ConfigError, load_settings
from app.keyring import Keyring, load_signing_key, write_key_files
from app.licenses import generate_private_key, parse_private_key
from app.services import licenses
from tests.conftest import ADMIN, key_paths
from tests.factories import bearer, make_customer
from tests.server import clean_environ, free_port, run_flask, serving, wait_until
from tests.tokens import kid_of, resign

PEM = generate_private_key()
KID = parse_private_key(PEM).public.kid
OTHER = generate_private_key()


def private_pem(key, *, password=None, form=serialization.PrivateFormat.PKCS8):
    hidden = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, form, hidden)


def load(environ):
    """The id of the key that these settings name."""
    return load_signing_key(load_settings(environ)).public.kid


def is_refused(done, said):
    return (done.exit_code, done.stdout, said in done.stderr) == (1, "", True)


def key_file(folder, pem, mode=0o600):
    folder.mkdir(exist_ok=True)
    path = folder / "private-key.pem"
    path.write_bytes(pem)
    path.chmod(mode)
    return key_paths(folder)


def rotate(console, *options):
    done = console("keys", "rotate", "--json", *options)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def let_caches_fetch(private_key_file):
    """As if the last rotation were as long ago as caches may keep the older set."""
    at = time.time() - keyring.PUBLISHED_SECONDS
    os.utime(f"{private_key_file}.previous", (at, at))


def let_licenses_expire(sql, customer_id=None):
    sql(
        """
        UPDATE licenses
           SET issued_at = now() - INTERVAL '3 days', renews_at = now() - INTERVAL '2 days',
               expires_at = now() - INTERVAL '1 second'
         WHERE %(id)s IS NULL OR customer_id = %(id)s
        """,
        id=customer_id,
    )


def published(client):
    return {key["kid"] for key in client.get("/.well-known/jwks.json").json["keys"]}


def states(console):
    return {row["kid"]: row["state"] for row in json.loads(console("keys", "list", "--json").stdout)}


def test_a_key_from_a_file_that_the_environment_outranks_and_that_a_command(tmp_path):
    traditional = private_pem(
        serialization.load_pem_private_key(PEM, None), form=serialization.PrivateFormat.TraditionalOpenSSL
    )
    for pem, mode in itertools.product((PEM, traditional), (0o600, 0o400, 0o640)):
        assert load(key_file(tmp_path / f"{len(pem)}-{mode}", pem, mode)) == KID

    environ, text = key_file(tmp_path / "other", OTHER), PEM.decode()
    Path(environ["LICENSE_PUBLIC_KEY_PATH"]).write_bytes(b"not looked at")
    for spelled in (
        text, text.replace("\n", "\r\n"), text.replace("\n", "\\n"), f'"{text}"',
        base64.b64encode(PEM).decode(), base64.encodebytes(PEM).decode(),
    ):  # fmt: skip
        assert load(environ | {"LICENSE_PRIVATE_KEY": spelled}) == KID

    vault = tmp_path / "vault"
    vault.write_bytes(PEM)
    environ["LICENSE_PRIVATE_KEY"] = OTHER.decode()
    for command in (f"cat {vault}", f"base64 {vault}", f"sh -c 'cat \"{vault}\"'"):
        assert load(environ | {"LICENSE_PRIVATE_KEY_COMMAND": command}) == KID


def test_licenses_are_signed_with_the_key_of_the_environment(make_app):
    app = make_app(LICENSE_PRIVATE_KEY=base64.b64encode(PEM).decode())
    assert kid_of(make_customer(app.test_client())["license"]) == KID
    done = app.test_cli_runner().invoke(args=["keys", "rotate"])
    assert is_refused(done, "LICENSE_PRIVATE_KEY")
    assert "SIGHUP" in done.stderr


def test_a_key_that_cannot_be_used_is_one_line_that_names_the_setting(tmp_path, make_app):
    private, public = "LICENSE_PRIVATE_KEY_PATH", "LICENSE_PUBLIC_KEY_PATH"
    text, command = "LICENSE_PRIVATE_KEY", "LICENSE_PRIVATE_KEY_COMMAND"
    locked = private_pem(serialization.load_pem_private_key(PEM, None), password=b"x")
    weak = private_pem(rsa.generate_private_key(65537, 1024))
    mismatch, garbage = (key_file(tmp_path / name, PEM) for name in ("mismatch", "garbage"))
    Path(mismatch[public]).write_text(parse_private_key(OTHER).public.pem)
    Path(garbage[public]).write_text("nonsense")
    not_pem = "not an unencrypted PEM"
    files = [
        (PEM, 0o644, ["open to everyone", "chmod 600"]),
        (weak, 0o600, ["1024 bits; at least 2048"]),
        (private_pem(ec.generate_private_key(ec.SECP256R1())), 0o600, ["not an RSA"]),
        (locked, 0o600, [not_pem]),
        (parse_private_key(PEM).public.pem.encode(), 0o600, [not_pem]),
    ]
    fail = f"{sys.executable} -c 'import sys; sys.exit(\"no such secret\")'"
    # Settings, and what the one line says, in this order.
    for settings, parts in (
        (key_paths(tmp_path / "nowhere"), [private, "No such file", "flask keys generate"]),
        ({private: str(tmp_path)}, [private]),
        *(
            (key_file(tmp_path / str(number), pem, mode), [private, *said])
            for number, (pem, mode, said) in enumerate(files)
        ),
        (mismatch, [public, "does not belong to the private key", "openssl rsa"]),
        (garbage, [public, "not a PEM public key"]),
        ({text: "nonsense!"}, [text, "neither PEM nor base64"]),
        ({text: base64.b64encode(b"nonsense").decode()}, [text, not_pem]),
        ({command: fail}, [command, "exit code 1: no such secret"]),
        ({command: "false"}, [command, "exit code 1: no message"]),
        ({command: "/no/such/program --now"}, [command, "cannot be run"]),
        ({command: "sh -c 'unfinished"}, [command, "cannot be run"]),
        ({command: "head -c 300 /dev/urandom"}, [command]),
    ):
        done = make_app(**settings).test_cli_runner().invoke(args=["keys", "list"])
        assert (parts, done.exit_code, done.stdout) == (parts, 1, "")
        assert re.fullmatch(".*".join(["", *map(re.escape, parts), "\n"]), done.stderr), done.stderr
        assert "PRIVATE KEY-----" not in done.stderr


def test_a_command_that_hangs_is_ended_with_its_children(tmp_path, monkeypatch):
    monkeypatch.setattr(keyring, "COMMAND_SECONDS", 1)
    marker = tmp_path / "pids"
    script = f"echo $$ >> {marker}; sleep 300 & echo $! >> {marker}; wait"
    settings = load_settings({"LICENSE_PRIVATE_KEY_COMMAND": f"sh -c {shlex.quote(script)}"})
    with pytest.raises(ConfigError, match="LICENSE_PRIVATE_KEY_COMMAND: no answer within 1 s"):
        load_signing_key(settings)

    pids = set(map(int, marker.read_text().split()))
    wait_until(
        lambda: all(
            process.info["status"] == psutil.STATUS_ZOMBIE
            for process in psutil.process_iter(["status"])
            if process.pid in pids
        )
    )


def test_a_source_that_fails_is_not_asked_again_at_once_and_is_used_once_it_works(tmp_path, monkeypatch):
    monkeypatch.setattr(keyring, "CHECK_SECONDS", 1000)
    counter, vault = tmp_path / "calls", tmp_path / "vault"
    command = f"sh -c 'echo x >> {counter}; cat {vault}'"
    ring = Keyring(load_settings({"LICENSE_PRIVATE_KEY_COMMAND": command}))
    for _ in range(5):
        with pytest.raises(ConfigError, match="exit code 1"):
            ring.signing_key()
    assert counter.read_text() == "x\n"
    vault.write_bytes(PEM)
    monkeypatch.setattr(keyring, "CHECK_SECONDS", -1)
    assert ring.signing_key().public.kid == KID


def test_generate_needs_no_database_and_never_overwrites(tmp_path):
    folder = tmp_path / "a" / "b"
    environ = key_paths(folder) | {"DATABASE_URL": ""}
    done = run_flask("keys", "generate", "--json", environ=environ)
    assert done.returncode == 0, done.stderr
    private, public = map(Path, key_paths(folder).values())
    assert [stat.S_IMODE(path.stat().st_mode) for path in (private, public)] == [0o600, 0o644]
    made = json.loads(done.stdout)
    assert (made["kid"], made["publicKey"]) == (load(environ), public.read_text())
    assert private.read_text() not in done.stdout + done.stderr
    private.unlink()  # the public one alone is not overwritten either
    refused = run_flask("keys", "generate", environ=environ)
    assert (refused.returncode, refused.stdout, "exists already" in refused.stderr) == (1, "", True)
    assert (public.read_text(), list(folder.iterdir())) == (made["publicKey"], [public])
    with pytest.raises(ConfigError, match="LICENSE_PRIVATE_KEY_PATH"):  # no folder, so it cannot be written
        write_key_files(load_settings(key_paths(public)), PEM)


class TestRotate:
    def test_the_new_key_is_published_first_and_signs_when_caches_have_it(
        self, own_keys, client, console, make_app, sql
    ):
        old = make_customer(client)
        kids = rotate(console)
        assert kids["oldKid"] == kid_of(old["license"]) != kids["newKid"]
        assert published(client) == set(kids.values())
        assert kid_of(make_customer(client)["license"]) == kids["oldKid"]
        assert client.get("/api/licenses/public-key").json["kid"] == kids["oldKid"]
        assert states(console) == {kids["oldKid"]: "signs", kids["newKid"]: "next"}
        assert is_refused(console("keys", "rotate"), "--now")

        let_caches_fetch(own_keys)
        new = make_customer(client)
        assert kid_of(new["license"]) == kids["newKid"]
        assert client.get("/api/licenses/public-key").json["kid"] == kids["newKid"]
        assert published(client) == set(kids.values())
        assert states(console) == {kids["oldKid"]: "verifies", kids["newKid"]: "signs"}
        assert re.search(r"(?s)signs.*verifies|verifies.*signs", console("keys", "list").stdout)
        for customer in (old, new):
            found = client.post("/api/licenses/verify", json={"license": customer["license"]})
            assert found.json["code"] == "VALID"
        # The key that comes with a license is the one it was signed with.
        path, own = f"/api/licenses/{old['customerId']}", bearer(old["license"])
        answer = client.get(path, headers=own)
        assert answer.json["license"] == old["license"]
        assert answer.json["publicKey"] != client.get("/api/licenses/public-key").json["publicKey"]
        audit = console("audit", "list", "--json").stdout
        assert "key.rotate" in audit
        assert kids["newKid"] in audit
        assert "PRIVATE" not in json.dumps(sql("SELECT * FROM audit_log"), default=str)

        # A database that was restored need not know the keys of the files.
        sql("DELETE FROM licenses")
        sql("DELETE FROM license_keys")
        restarted = make_app().test_client()
        assert published(restarted) == set(kids.values())
        for customer in (old, new):
            found = restarted.post("/api/licenses/verify", json={"license": customer["license"]})
            assert found.json["code"] == "SUPERSEDED"
        assert kid_of(restarted.get(path, headers=own).json["license"]) == kids["newKid"]

    def test_after_a_compromise_it_signs_at_once_and_the_old_key_leaves_with_its_last_license(
        self, own_keys, client, console, sql
    ):
        first = kid_of(make_customer(client)["license"])
        waiting = rotate(console)["newKid"]
        new = rotate(console, "--now")["newKid"]
        sql("UPDATE license_keys SET created_at = created_at - INTERVAL '1 day'")
        assert {first, new} <= published(client)
        let_licenses_expire(sql)
        assert published(client) == {new}
        assert kid_of(make_customer(client)["license"]) == new not in (first, waiting)
        assert stat.S_IMODE(own_keys.stat().st_mode) == 0o600
        assert {path.name for path in own_keys.parent.iterdir()} == {"private-key.pem", "public-key.pem"}

    def test_at_once_they_leave_a_pair_and_a_file_that_is_spoiled_later_ends_no_signing(
        self, own_keys, app, client, environ, console, caplog
    ):
        args = ["keys", "rotate", "--now"]
        with ThreadPoolExecutor(4) as pool:
            done = list(pool.map(lambda _: app.test_cli_runner().invoke(args=args), range(4)))
        assert [result.exit_code for result in done] == [0] * 4
        kid = load(environ)
        assert states(console)[kid] == "signs"
        own_keys.write_bytes(b"half a key")
        assert kid_of(make_customer(client)["license"]) == kid
        assert "LICENSE_PRIVATE_KEY_PATH" in caplog.text

    def test_a_key_put_there_by_hand_signs_and_none_of_an_earlier_rotation(self, own_keys, client, console):
        kids = rotate(console)
        let_caches_fetch(own_keys)
        public = own_keys.with_name("public-key.pem")
        own_keys.write_bytes(OTHER)
        public.write_text(parse_private_key(OTHER).public.pem)
        assert kid_of(make_customer(client)["license"]) == parse_private_key(OTHER).public.kid
        assert kids["oldKid"] not in {kid for kid, state in states(console).items() if state == "signs"}

        rotate(console)
        previous = own_keys.with_name(f"{own_keys.name}.previous")
        previous.write_text("damaged")
        assert is_refused(console("keys", "rotate"), str(previous))

    def test_of_several_at_once_one_is_done_and_the_others_are_refused_before_they_ask(
        self, own_keys, app, client, console, terminal
    ):
        first = kid_of(make_customer(client)["license"])
        with ThreadPoolExecutor(4) as pool:
            done = list(pool.map(lambda _: app.test_cli_runner().invoke(args=["keys", "rotate"]), range(4)))
        assert sorted(result.exit_code for result in done) == [0, 1, 1, 1]
        assert states(console)[first] == "signs"
        code, screen = terminal("keys", "rotate", typed="n\n", columns=200)
        assert (code, "--now" in screen, "Replace" in screen) == (1, True, False)

    def test_under_load_no_request_fails_and_no_license_is_lost(self, own_keys, environ, client):
        old = make_customer(client)
        stop, tokens, failures = threading.Event(), [], []

        def ask(server, number):
            count = 0
            while not stop.is_set():
                count += 1
                body = {"email": f"load-{number}-{count}@example.com"}
                answers = [
                    server.post("/api/customers", body, headers=ADMIN),
                    server.get(f"/api/licenses/{old['customerId']}", headers=bearer(old["license"])),
                    server.get("/.well-known/jwks.json"),
                ]
                failures.extend(answer.text for answer in answers if not answer.ok)
                tokens.append(answers[0].json().get("license"))

        with serving(environ) as server, ThreadPoolExecutor(2) as pool:
            asking = [pool.submit(ask, server, number) for number in range(2)]
            wait_until(lambda: len(tokens) > 3)
            done = run_flask("keys", "rotate", "--now", "--json", environ=environ)
            assert done.returncode == 0, done.stderr
            new = json.loads(done.stdout)["newKid"]
            # All workers: not one of the last twenty licenses is signed with another key.
            wait_until(lambda: {kid_of(token) for token in tokens[-20:]} == {new})
            stop.set()
            for waiting in asking:
                waiting.result()
            assert failures == []
            assert {kid_of(token) for token in tokens} == {kid_of(old["license"]), new}
            codes = {
                server.post("/api/licenses/verify", {"license": token}).json()["code"]
                for token in tokens[:: len(tokens) // 10]
            }
        assert codes == {"VALID"}


class TestListAndRemove:
    def test_live_licenses_are_counted_and_their_key_is_removed_by_force_only(
        self, own_keys, client, console, sql
    ):
        customer, revoked, lapsed = (make_customer(client) for _ in range(3))
        client.patch(f"/api/customers/{customer['customerId']}", json={"name": "New"}, headers=ADMIN)
        client.get(f"/api/licenses/{customer['customerId']}", headers=ADMIN)
        client.post(f"/api/licenses/{revoked['customerId']}/revoke", headers=ADMIN)
        let_licenses_expire(sql, lapsed["customerId"])
        kid = kid_of(customer["license"])
        for named, said in ((kid, "signs now"), ("nobody", "no key")):
            assert is_refused(console("keys", "remove", named, "--force"), said)
        new = rotate(console, "--now")["newKid"]
        make_customer(client)
        rows = json.loads(console("keys", "list", "--json").stdout)
        # The superseded one is live too.
        assert {row["kid"]: row["liveTokens"] for row in rows} == {kid: 2, new: 1}
        assert is_refused(console("keys", "remove", kid), "2 live license(s)")
        assert states(console)[kid] == "verifies"

        assert console("keys", "remove", kid, "--force").exit_code == 0
        assert states(console)[kid] == "removed"
        assert published(client) == {new}
        answer = client.get(f"/api/licenses/{customer['customerId']}", headers=ADMIN)
        assert kid_of(answer.json["license"]) == new
        assert answer.json["publicKey"] == client.get("/api/licenses/public-key").json["publicKey"]
        assert "key.remove" in console("audit", "list", "--json").stdout

    def test_a_removed_key_serves_and_signs_nothing_more(self, own_keys, make_app, client, monkeypatch):
        """Nor in a worker that has seen it, nor on a machine that has it in its environment still."""
        assert licenses.PUBLIC_KEY_SECONDS <= 60
        stale, other = make_app(LICENSE_PRIVATE_KEY=own_keys.read_text()).test_client(), make_app()
        customer = make_customer(stale)
        kid, headers = kid_of(customer["license"]), bearer(customer["license"])
        path, license_path = (f"/api/{noun}/{customer['customerId']}" for noun in ("customers", "licenses"))
        assert client.get(path, headers=headers).status_code == 200
        for args in (["rotate", "--now"], ["remove", kid, "--force"]):
            assert other.test_cli_runner().invoke(args=["keys", *args]).exit_code == 0
        monkeypatch.setattr(licenses, "PUBLIC_KEY_SECONDS", -1)  # as if a minute had passed
        assert client.get(path, headers=headers).status_code == 401
        found = client.post("/api/licenses/verify", json={"license": customer["license"]})
        assert found.json == {"valid": False, "code": "UNKNOWN_KEY"}
        again = resign(other, customer["license"])
        assert client.get(path, headers=bearer(again)).status_code == 200
        for signing in (license_path, "/api/licenses/public-key", "/api/licenses/revocations"):
            assert stale.get(signing, headers=ADMIN).status_code == 503
        assert kid not in published(stale)
        assert kid_of(client.get(license_path, headers=ADMIN).json["license"]) != kid


# As README tells operators to write it.
AWS_COMMAND = "aws secretsmanager get-secret-value --secret-id {id} --query SecretString --output text"
AWS_TOOLS = Path(sys.prefix) / "aws"


@pytest.fixture
def aws(tmp_path):
    """An environment with the real `aws` on its PATH, and a stand-in for AWS that it talks to."""
    program = tmp_path / "bin" / "aws"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nPYTHONPATH="{AWS_TOOLS}" exec "{sys.executable}" -m awscli "$@"\n')
    program.chmod(0o755)
    url = f"http://127.0.0.1:{free_port()}"
    stand_in = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", url.rpartition(":")[2]],
        env=clean_environ({"PYTHONPATH": str(AWS_TOOLS)}),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_until(lambda: requests.get(url, timeout=5))
        yield {
            "PATH": f"{program.parent}:{os.environ['PATH']}", "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "none",  # pragma: allowlist secret
            "AWS_DEFAULT_REGION": "eu-central-1",
        }  # fmt: skip
    finally:
        stand_in.terminate()
        stand_in.wait(30)


@pytest.mark.skipif(not AWS_TOOLS.is_dir(), reason="the AWS client is not installed: make aws")
def test_the_key_of_aws_signs_and_a_new_one_follows_a_sighup(environ, aws):
    def secret(action, *args):
        command = ["aws", "secretsmanager", action, *args]
        subprocess.run(command, env=clean_environ(aws), check=True, capture_output=True, timeout=60)

    def new_kid(server):
        email = f"customer{time.monotonic_ns()}@example.com"
        return kid_of(server.post("/api/customers", {"email": email}, headers=ADMIN).json()["license"])

    environ |= aws | {"LICENSE_PRIVATE_KEY_COMMAND": AWS_COMMAND.format(id="billing/license-key")}
    refused = run_flask("keys", "list", environ=environ)
    assert "LICENSE_PRIVATE_KEY_COMMAND: exit code " in refused.stderr
    assert "ResourceNotFoundException" in refused.stderr
    secret("create-secret", "--name", "billing/license-key", "--secret-string", PEM.decode())
    with serving(environ) as server:
        assert new_kid(server) == KID
        encoded = base64.b64encode(OTHER).decode()
        secret("put-secret-value", "--secret-id", "billing/license-key", "--secret-string", encoded)
        server.send(signal.SIGHUP)
        wait_until(lambda: new_kid(server) == parse_private_key(OTHER).public.kid)
        assert {key["kid"] for key in server.get("/.well-known/jwks.json").json()["keys"]} == {
            KID, parse_private_key(OTHER).public.kid,
        }  # fmt: skip
