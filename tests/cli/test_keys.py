"""Signing keys: where they come from, what is refused at the start, rotation, removal."""

import base64
import json
import os
import shlex
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import requests
from click.testing import Result
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from flask import Flask
from flask.testing import FlaskClient

from app import keyring
from app.config import ConfigError, load_settings
from app.keyring import Keyring, load_signing_key
from app.licenses import generate_private_key, parse_private_key
from tests.conftest import ADMIN
from tests.factories import bearer, make_customer
from tests.server import clean_environ, free_port, run_flask, run_gunicorn, serving
from tests.tokens import claims_of, resign, segment

PEM = generate_private_key()
KID = parse_private_key(PEM).public.kid
Sql = Callable[..., list[dict[str, Any]]]
Console = Callable[..., Result]


def private_pem(key: Any, *, password: bytes | None = None) -> bytes:
    hidden = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    form = serialization.PrivateFormat.PKCS8
    return bytes(key.private_bytes(serialization.Encoding.PEM, form, hidden))


def load(environ: Mapping[str, str]) -> str:
    """The id of the key that these settings name."""
    return load_signing_key(load_settings(environ)).public.kid


def paths(folder: Path) -> dict[str, str]:
    return {
        "LICENSE_PRIVATE_KEY_PATH": str(folder / "private-key.pem"),
        "LICENSE_PUBLIC_KEY_PATH": str(folder / "public-key.pem"),
    }


def key_file(folder: Path, pem: bytes, mode: int = 0o600) -> dict[str, str]:
    path = folder / "private-key.pem"
    path.write_bytes(pem)
    path.chmod(mode)
    return paths(folder)


@pytest.fixture
def own_keys(tmp_path: Path, environ: dict[str, str]) -> dict[str, str]:
    """The application under test has a key of its own, to rotate."""
    environ |= paths(tmp_path / "keys")
    assert load_settings(environ).license_private_key_path.parent.name == "keys"
    keyring.write_key_files(load_settings(environ))
    return environ


class TestSources:
    @pytest.mark.parametrize("mode", [0o600, 0o400, 0o640])
    def test_a_file(self, tmp_path: Path, mode: int) -> None:
        assert load(key_file(tmp_path, PEM, mode)) == KID

    def test_a_file_as_openssl_wrote_it_long_ago(self, tmp_path: Path) -> None:
        key = serialization.load_pem_private_key(PEM, None)
        traditional = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
        assert load(key_file(tmp_path, traditional)) == KID

    @pytest.mark.parametrize(
        "text",
        [
            PEM.decode(),
            PEM.decode().strip(),
            PEM.decode().replace("\n", "\r\n"),
            PEM.decode().replace("\n", "\\n"),
            f'"{PEM.decode()}"',
            base64.b64encode(PEM).decode(),
            base64.encodebytes(PEM).decode(),
            base64.b64encode(PEM.replace(b"\n", b"\r\n")).decode(),
        ],
        ids=["lines", "stripped", "CRLF", "one line", "quoted", "base64", "base64 lines", "base64 of CRLF"],
    )
    def test_the_environment(self, tmp_path: Path, text: str) -> None:
        lower_rank = key_file(tmp_path, generate_private_key())
        assert load(lower_rank | {"LICENSE_PRIVATE_KEY": text}) == KID

    def test_a_command_outranks_both(self, tmp_path: Path) -> None:
        (tmp_path / "vault").write_bytes(PEM)
        environ = key_file(tmp_path, generate_private_key())
        environ["LICENSE_PRIVATE_KEY"] = generate_private_key().decode()
        for command in (
            f"cat {tmp_path / 'vault'}",
            f"base64 {tmp_path / 'vault'}",
            f"sh -c 'cat \"{tmp_path / 'vault'}\"'",
            f"{sys.executable} -c 'import json; print(json.dumps(open(\"{tmp_path / 'vault'}\").read()))'",
        ):
            assert load(environ | {"LICENSE_PRIVATE_KEY_COMMAND": command}) == KID

    def test_elsewhere_than_in_files_the_public_file_is_not_looked_at(self, tmp_path: Path) -> None:
        environ = key_file(tmp_path, PEM)
        Path(environ["LICENSE_PUBLIC_KEY_PATH"]).write_bytes(b"not a key")
        assert load(environ | {"LICENSE_PRIVATE_KEY": PEM.decode()}) == KID

    def test_licenses_are_signed_with_the_key_of_the_environment(
        self, make_app: Callable[..., Flask]
    ) -> None:
        client = make_app(LICENSE_PRIVATE_KEY=base64.b64encode(PEM).decode()).test_client()
        assert segment(make_customer(client)["license"], 0)["kid"] == KID
        assert client.get("/api/licenses/public-key").json["kid"] == KID


def refusals(folder: Path) -> dict[str, tuple[dict[str, str], str]]:
    """What must not start: settings, and what the one line says."""

    def files(name: str, pem: bytes, mode: int = 0o600) -> dict[str, str]:
        (folder / name).mkdir()
        return key_file(folder / name, pem, mode)

    mismatch = files("mismatch", PEM)
    other = parse_private_key(generate_private_key()).public.pem
    Path(mismatch["LICENSE_PUBLIC_KEY_PATH"]).write_text(other)
    garbage = files("garbage public", PEM)
    Path(garbage["LICENSE_PUBLIC_KEY_PATH"]).write_text("nonsense")
    weak = private_pem(rsa.generate_private_key(65537, 1024))
    path, public = "LICENSE_PRIVATE_KEY_PATH", "LICENSE_PUBLIC_KEY_PATH"
    env, command = "LICENSE_PRIVATE_KEY", "LICENSE_PRIVATE_KEY_COMMAND"
    fail = f"{sys.executable} -c 'import sys; sys.exit(\"no such secret\")'"
    return {
        "missing": (paths(folder / "nowhere"), f"{path}: .*No such file.*flask keys generate"),
        "open": (files("open", PEM, 0o644), f"{path}: .*open to everyone.*chmod 600"),
        "writable": (files("writable", PEM, 0o602), f"{path}: .*open to everyone"),
        "folder": ({path: str(folder)}, f"{path}: "),
        "empty": (files("empty", b""), f"{path}: not an unencrypted PEM"),
        "weak": (files("weak", weak), f"{path}: 1024 bits; at least 2048"),
        "curve": (
            files("curve", private_pem(ec.generate_private_key(ec.SECP256R1()))),
            f"{path}: not an RSA",
        ),
        "ed": (files("ed", private_pem(ed25519.Ed25519PrivateKey.generate())), f"{path}: not an RSA"),
        "locked": (
            files("locked", private_pem(serialization.load_pem_private_key(PEM, None), password=b"x")),
            f"{path}: not an unencrypted PEM",
        ),
        "public": (files("public", parse_private_key(PEM).public.pem.encode()), f"{path}: not an unenc"),
        "mismatch": (mismatch, f"{public}: .*does not belong to the private key .*openssl rsa"),
        "garbage public": (garbage, f"{public}: not a PEM public key"),
        "garbage env": ({env: "nonsense!"}, f"{env}: neither PEM nor base64"),
        "base64 of garbage": ({env: base64.b64encode(b"nonsense").decode()}, f"{env}: not an unencrypted"),
        "weak env": ({env: weak.decode()}, f"{env}: 1024 bits"),
        "fails": ({command: fail}, f"{command}: exit code 1: no such secret"),
        "silent": ({command: "false"}, f"{command}: exit code 1: no message"),
        "nothing": ({command: "true"}, f"{command}: "),
        "no command": ({command: "/no/such/program --now"}, f"{command}: cannot be run"),
        "no quote": ({command: "sh -c 'unfinished"}, f"{command}: cannot be run"),
        "no text": ({command: "head -c 300 /dev/urandom"}, f"{command}: "),
    }


class TestRefusedAtTheStart:
    def test_one_line_names_the_setting_on_the_console(
        self, tmp_path: Path, make_app: Callable[..., Flask]
    ) -> None:
        for name, (settings, expected) in refusals(tmp_path).items():
            found = make_app(**settings).test_cli_runner().invoke(args=["keys", "list"])
            assert (name, found.exit_code, found.stdout) == (name, 1, "")
            assert len(found.stderr.strip().splitlines()) == 1, (name, found.stderr)
            assert _matches(found.stderr, expected), (name, found.stderr)
            assert "PRIVATE KEY-----" not in found.stderr

    def test_one_line_names_the_setting_for_gunicorn(self, tmp_path: Path, environ: dict[str, str]) -> None:
        cases = refusals(tmp_path)
        some = ["missing", "open", "weak", "curve", "locked", "mismatch", "garbage env", "fails"]

        def start(name: str) -> tuple[str, subprocess.CompletedProcess[str]]:
            return name, run_gunicorn(environ | cases[name][0])

        with ThreadPoolExecutor(2) as pool:
            for name, done in pool.map(start, some):
                assert done.returncode != 0, name
                lines = (done.stdout + done.stderr).strip().splitlines()
                assert len(lines) == 1, (name, lines)
                assert _matches(lines[0], cases[name][1]), (name, lines)

    def test_a_command_that_hangs_is_ended_with_its_children(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(keyring, "COMMAND_SECONDS", 1)
        marker = tmp_path / "pids"
        script = f"echo $$ >> {marker}; sleep 300 & echo $! >> {marker}; wait"
        settings = load_settings({"LICENSE_PRIVATE_KEY_COMMAND": f"sh -c {shlex.quote(script)}"})
        started = time.monotonic()
        with pytest.raises(ConfigError, match="LICENSE_PRIVATE_KEY_COMMAND: no answer within 1 s"):
            load_signing_key(settings)
        assert time.monotonic() - started < 30
        for pid in marker.read_text().split():
            assert _is_gone(int(pid))

    def test_who_comes_after_a_failure_is_told_at_once_and_a_mended_source_is_used(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        counter, vault = tmp_path / "calls", tmp_path / "vault"
        command = f"sh -c 'echo x >> {counter}; cat {vault}'"
        ring = Keyring(load_settings({"LICENSE_PRIVATE_KEY_COMMAND": command}))
        for _ in range(5):
            with pytest.raises(ConfigError, match="exit code 1"):
                ring.signing_key()
        assert counter.read_text() == "x\n"
        vault.write_bytes(PEM)
        monkeypatch.setattr(keyring, "RETRY_SECONDS", 0)
        assert ring.signing_key().public.kid == KID


def _matches(text: str, expected: str) -> bool:
    """`expected` in this order, `.*` between its parts."""
    at = 0
    for part in expected.split(".*"):
        at = text.find(part, at)
        if at < 0:
            return False
    return True


def _is_gone(pid: int) -> bool:
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


class TestGenerate:
    def test_without_a_database_and_never_over_another(self, tmp_path: Path) -> None:
        environ = paths(tmp_path / "a" / "b") | {"DATABASE_URL": "postgresql://nobody@127.0.0.1:1/nothing"}
        done = run_flask("keys", "generate", "--json", environ=environ)
        assert done.returncode == 0, done.stderr
        private, public = map(Path, paths(tmp_path / "a" / "b").values())
        assert stat.S_IMODE(private.stat().st_mode) == 0o600
        assert stat.S_IMODE(public.stat().st_mode) == 0o644
        made = json.loads(done.stdout)
        assert made["kid"] == load(environ)
        assert made["publicKey"] == public.read_text()
        assert private.read_text() not in done.stdout + done.stderr
        bits = serialization.load_pem_private_key(private.read_bytes(), None).key_size  # type: ignore[union-attr]
        assert bits >= 2048

        before = private.read_bytes(), public.read_bytes()
        refused = run_flask("keys", "generate", environ=environ)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "exists already" in refused.stderr
        private.unlink()
        assert run_flask("keys", "generate", environ=environ).returncode == 1
        assert (public.read_bytes(), list(private.parent.iterdir())) == (before[1], [public])


class TestRotate:
    def test_old_licenses_stay_valid_and_both_keys_are_published(
        self, own_keys: dict[str, str], app: Flask, client: FlaskClient, console: Console, sql: Sql
    ) -> None:
        old = make_customer(client)
        done = console("keys", "rotate", "--json")
        assert done.exit_code == 0, done.output
        kids = json.loads(done.stdout)
        assert kids["oldKid"] == segment(old["license"], 0)["kid"] != kids["newKid"]
        assert kids["newKid"] == load(own_keys)
        _follow_now(app)
        new = make_customer(client)
        assert segment(new["license"], 0)["kid"] == kids["newKid"]
        for customer in (old, new):
            path = f"/api/licenses/{customer['customerId']}"
            answer = client.get(path, headers=bearer(customer["license"]))
            assert answer.json["license"] == customer["license"]
            found = client.post("/api/licenses/verify", json={"license": customer["license"]})
            assert found.json["code"] == "VALID"
        published = client.get("/.well-known/jwks.json").json["keys"]
        assert {key["kid"] for key in published} == set(kids.values())
        # The key that comes with a license is the one it was signed with.
        answer = client.get(f"/api/licenses/{old['customerId']}", headers=ADMIN)
        assert answer.json["publicKey"] != client.get("/api/licenses/public-key").json["publicKey"]
        assert sql(
            "SELECT 1 FROM audit_log WHERE action = 'key.rotate' AND subject = %(k)s", k=kids["newKid"]
        )
        assert "PRIVATE" not in json.dumps(sql("SELECT * FROM audit_log"), default=str)

    def test_the_old_key_leaves_the_set_with_its_last_license(
        self, own_keys: dict[str, str], app: Flask, client: FlaskClient, console: Console, sql: Sql
    ) -> None:
        make_customer(client)
        kids = json.loads(console("keys", "rotate", "--json").stdout)
        _follow_now(app)
        assert len(client.get("/.well-known/jwks.json").json["keys"]) == 2
        sql(
            """UPDATE licenses SET issued_at = now() - interval '3 days',
                      renews_at = now() - interval '2 days', expires_at = now() - interval '1 second'"""
        )
        (left,) = client.get("/.well-known/jwks.json").json["keys"]
        assert left["kid"] == kids["newKid"]

    def test_a_key_from_elsewhere_is_not_rotated_here(self, make_app: Callable[..., Flask]) -> None:
        app = make_app(LICENSE_PRIVATE_KEY=PEM.decode())
        done = app.test_cli_runner().invoke(args=["keys", "rotate"])
        assert (done.exit_code, done.stdout) == (1, "")
        assert "LICENSE_PRIVATE_KEY" in done.stderr
        assert "SIGHUP" in done.stderr

    def test_mode_and_owner_of_the_file_stay(self, own_keys: dict[str, str], console: Console) -> None:
        private = Path(own_keys["LICENSE_PRIVATE_KEY_PATH"])
        private.chmod(0o640)
        owner = (12345, 23456) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
        os.chown(private, *owner)
        before = private.read_bytes()
        assert console("keys", "rotate").exit_code == 0
        found = private.stat()
        assert stat.S_IMODE(found.st_mode) == 0o640
        assert (found.st_uid, found.st_gid) == owner
        assert private.read_bytes() != before

    def test_two_rotations_at_once_leave_a_pair_that_belongs_together(
        self, own_keys: dict[str, str], app: Flask, sql: Sql
    ) -> None:
        with ThreadPoolExecutor(4) as pool:
            done = list(pool.map(lambda _: app.test_cli_runner().invoke(args=["keys", "rotate"]), range(4)))
        assert [result.exit_code for result in done] == [0] * 4
        signs = load(own_keys)
        assert signs in {row["kid"] for row in sql("SELECT kid FROM license_keys")}

    def test_a_new_file_that_cannot_be_used_is_told_and_signing_goes_on(
        self,
        own_keys: dict[str, str],
        app: Flask,
        client: FlaskClient,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        kid = segment(make_customer(client)["license"], 0)["kid"]
        Path(own_keys["LICENSE_PRIVATE_KEY_PATH"]).write_bytes(b"half a key")
        _follow_now(app)
        assert segment(make_customer(client)["license"], 0)["kid"] == kid
        assert "LICENSE_PRIVATE_KEY_PATH" in caplog.text

    def test_a_pair_caught_half_way_through_an_exchange_is_looked_at_again(self, tmp_path: Path) -> None:
        environ = key_file(tmp_path, PEM)
        public = Path(environ["LICENSE_PUBLIC_KEY_PATH"])
        public.write_text(parse_private_key(generate_private_key()).public.pem)
        mend = threading.Timer(0.1, public.write_text, [parse_private_key(PEM).public.pem])
        mend.start()
        assert load(environ) == KID
        mend.join()

    def test_under_load_no_request_fails_and_no_license_is_lost(
        self, own_keys: dict[str, str], client: FlaskClient
    ) -> None:
        old = make_customer(client)
        stop, failures, tokens = threading.Event(), [], [old["license"]]

        def ask(url: str, number: int) -> None:
            with requests.Session() as session:
                count = 0
                while not stop.is_set():
                    count += 1
                    email = f"load-{number}-{count}@example.com"
                    made = session.post(f"{url}/api/customers", json={"email": email}, headers=ADMIN)
                    own = session.get(
                        f"{url}/api/licenses/{old['customerId']}", headers=bearer(old["license"])
                    )
                    keys = session.get(f"{url}/.well-known/jwks.json")
                    if (made.status_code, own.status_code, keys.status_code) != (201, 200, 200):
                        failures.append((made.text, own.text, keys.text))
                    else:
                        tokens.append(made.json()["license"])

        with serving(own_keys) as server:
            url = server.url
            with ThreadPoolExecutor(4) as pool:
                asking = [pool.submit(ask, url, number) for number in range(4)]
                time.sleep(1)
                kids = []
                for _ in range(2):
                    done = run_flask("keys", "rotate", "--json", environ=own_keys)
                    assert done.returncode == 0, done.stderr
                    kids.append(json.loads(done.stdout)["newKid"])
                    rotated = time.monotonic()
                    # All workers: not one of the last forty licenses is signed with another key.
                    while {segment(token, 0)["kid"] for token in tokens[-40:]} != {kids[-1]}:
                        assert time.monotonic() - rotated < 30
                        time.sleep(0.1)
                stop.set()
                for waiting in asking:
                    waiting.result()
            published = requests.get(f"{url}/.well-known/jwks.json").json()["keys"]
            assert {key["kid"] for key in published} == {segment(old["license"], 0)["kid"], *kids}
            assert failures == []
            assert {segment(token, 0)["kid"] for token in tokens} == {key["kid"] for key in published}
            sample = tokens[:: max(1, len(tokens) // 60)]
            for token in sample:
                found = requests.post(f"{url}/api/licenses/verify", json={"license": token}).json()
                assert found["code"] == "VALID"
        listed = json.loads(run_flask("keys", "list", "--json", environ=own_keys).stdout)
        assert sum(row["liveTokens"] for row in listed) == len(tokens)
        assert [row["kid"] for row in listed if row["signs"]] == [kids[-1]]


def _follow_now(app: Flask) -> None:
    """As if the seconds between two looks at the key file had passed."""
    app.extensions["billing.keyring"]._looked_at = 0.0


class TestListAndRemove:
    def test_live_licenses_are_counted_per_key(
        self, own_keys: dict[str, str], app: Flask, client: FlaskClient, console: Console, sql: Sql
    ) -> None:
        fresh = json.loads(console("keys", "list", "--json").stdout)
        assert [(row["signs"], row["liveTokens"]) for row in fresh] == [(True, 0)]
        first, revoked, lapsed = (make_customer(client) for _ in range(3))
        client.patch(f"/api/customers/{first['customerId']}", json={"name": "New"}, headers=ADMIN)
        client.get(f"/api/licenses/{first['customerId']}", headers=ADMIN)
        client.post(f"/api/licenses/{revoked['customerId']}/revoke", headers=ADMIN)
        sql(
            """UPDATE licenses SET issued_at = now() - interval '3 days',
                      renews_at = now() - interval '2 days', expires_at = now() - interval '1 second'
                WHERE customer_id = %(id)s""",
            id=lapsed["customerId"],
        )
        kids = json.loads(console("keys", "rotate", "--json").stdout)
        _follow_now(app)
        make_customer(client)
        rows = {row["kid"]: row for row in json.loads(console("keys", "list", "--json").stdout)}
        assert [(rows[k]["signs"], rows[k]["liveTokens"]) for k in (kids["oldKid"], kids["newKid"])] == [
            (False, 2),  # the superseded one is live too
            (True, 1),
        ]
        table = console("keys", "list").stdout
        assert "signs" in table
        assert "verifies" in table

    def test_a_key_with_live_licenses_is_removed_by_force_only(
        self, own_keys: dict[str, str], app: Flask, client: FlaskClient, console: Console, sql: Sql
    ) -> None:
        customer = make_customer(client)
        signing = segment(customer["license"], 0)["kid"]
        for kid, code, said in ((signing, 1, "signs now"), ("nobody", 1, "no key")):
            done = console("keys", "remove", kid, "--force")
            assert (done.exit_code, done.stdout) == (code, "")
            assert said in done.stderr
        console("keys", "rotate")
        _follow_now(app)
        refused = console("keys", "remove", signing)
        assert (refused.exit_code, refused.stdout) == (1, "")
        assert "1 live license(s)" in refused.stderr
        assert sql("SELECT 1 FROM license_keys WHERE removed_at IS NOT NULL") == []

        assert console("keys", "remove", signing, "--force").exit_code == 0
        assert signing not in client.get("/.well-known/jwks.json").text
        answer = client.get(f"/api/licenses/{customer['customerId']}", headers=ADMIN)
        assert segment(answer.json["license"], 0)["kid"] != signing
        assert answer.json["publicKey"] == client.get("/api/licenses/public-key").json["publicKey"]
        assert sql("SELECT 1 FROM audit_log WHERE action = 'key.remove' AND subject = %(k)s", k=signing)

    def test_workers_that_have_seen_the_key_follow_within_a_minute(
        self, own_keys: dict[str, str], make_app: Callable[..., Flask], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert keyring.PUBLIC_KEY_SECONDS <= 60
        worker, other = make_app(), make_app()
        client = worker.test_client()
        customer = make_customer(client)
        path, headers = f"/api/customers/{customer['customerId']}", bearer(customer["license"])
        assert client.get(path, headers=headers).status_code == 200
        runner = other.test_cli_runner()
        assert runner.invoke(args=["keys", "rotate"]).exit_code == 0
        kid = segment(customer["license"], 0)["kid"]
        assert runner.invoke(args=["keys", "remove", kid, "--force"]).exit_code == 0
        clock = time.monotonic
        monkeypatch.setattr(keyring.time, "monotonic", lambda: clock() + 60)
        assert client.get(path, headers=headers).status_code == 401
        found = client.post("/api/licenses/verify", json={"license": customer["license"]})
        assert found.json == {"valid": False, "code": "UNKNOWN_KEY"}
        again = resign(other, customer["license"])
        assert client.get(path, headers=bearer(again)).status_code == 200

    def test_a_removed_key_signs_nothing_more(
        self, own_keys: dict[str, str], make_app: Callable[..., Flask], sql: Sql
    ) -> None:
        """As when the environment of one machine still holds it."""
        stale = make_app(LICENSE_PRIVATE_KEY=Path(own_keys["LICENSE_PRIVATE_KEY_PATH"]).read_text())
        client = stale.test_client()
        customer = make_customer(client)
        runner = make_app().test_cli_runner()
        assert runner.invoke(args=["keys", "rotate"]).exit_code == 0
        kid = segment(customer["license"], 0)["kid"]
        assert runner.invoke(args=["keys", "remove", kid, "--force"]).exit_code == 0
        refused = client.get(f"/api/licenses/{customer['customerId']}", headers=ADMIN)
        assert refused.status_code == 503
        for path in ("/api/licenses/public-key", "/api/licenses/revocations"):
            assert client.get(path).status_code == 503
        assert kid not in client.get("/.well-known/jwks.json").text
        assert len(sql("SELECT 1 FROM licenses")) == 1
        assert claims_of(customer["license"])["sub"] == customer["customerId"]


# As README tells operators to write it.
AWS_COMMAND = "aws secretsmanager get-secret-value --secret-id {id} --query SecretString --output text"
AWS_TOOLS = Path(sys.prefix) / "aws"


@pytest.fixture
def aws(tmp_path: Path) -> Iterator[dict[str, str]]:
    """An environment with the real `aws` on its PATH, and a stand-in for AWS that it talks to."""
    program = tmp_path / "bin" / "aws"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nPYTHONPATH="{AWS_TOOLS}" exec "{sys.executable}" -m awscli "$@"\n')
    program.chmod(0o755)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    stand_in = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", str(port)],
        env=clean_environ({"PYTHONPATH": str(AWS_TOOLS)}),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(300):
            with suppress(requests.ConnectionError):
                requests.get(url, timeout=5)
                break
            time.sleep(0.1)
        yield {
            "PATH": f"{program.parent}:{os.environ['PATH']}",
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "none",  # pragma: allowlist secret
            "AWS_DEFAULT_REGION": "eu-central-1",
        }
    finally:
        stand_in.terminate()
        stand_in.wait(30)


def _aws(environ: Mapping[str, str], *args: str) -> None:
    command = ["aws", "secretsmanager", *args]
    subprocess.run(command, env=clean_environ(environ), check=True, capture_output=True, timeout=60)


def _new_kid(url: str, *, email: str) -> str:
    made = requests.post(f"{url}/api/customers", json={"email": email}, headers=ADMIN, timeout=30)
    assert made.status_code == 201, made.text
    return str(segment(made.json()["license"], 0)["kid"])


class TestFromAws:
    """Only where `make aws` has installed the client and the stand-in; CI does."""

    def the_key_of_aws_signs_and_a_new_one_follows_a_sighup(
        self, environ: dict[str, str], aws: dict[str, str]
    ) -> None:
        environ |= aws | {"LICENSE_PRIVATE_KEY_COMMAND": AWS_COMMAND.format(id="billing/license-key")}
        refused = run_flask("keys", "list", environ=environ)
        assert refused.returncode == 1
        assert refused.stderr.startswith("Error: LICENSE_PRIVATE_KEY_COMMAND: exit code ")
        assert "ResourceNotFoundException" in refused.stderr
        _aws(environ, "create-secret", "--name", "billing/license-key", "--secret-string", PEM.decode())
        with serving(environ) as server:
            assert _new_kid(server.url, email="first@example.com") == KID
            new = generate_private_key()
            _aws(environ, "put-secret-value", "--secret-id", "billing/license-key",
                 "--secret-string", base64.b64encode(new).decode())  # fmt: skip
            server.process.send_signal(signal.SIGHUP)
            found, wanted = KID, parse_private_key(new).public.kid
            for number in range(300):
                found = _new_kid(server.url, email=f"customer{number}@example.com")
                if found == wanted:
                    break
                time.sleep(0.1)
            assert found == wanted
            keys = requests.get(f"{server.url}/.well-known/jwks.json", timeout=30).json()["keys"]
            assert {key["kid"] for key in keys} == {KID, wanted}

    if AWS_TOOLS.is_dir():
        test_the_key_of_aws = the_key_of_aws_signs_and_a_new_one_follows_a_sighup
