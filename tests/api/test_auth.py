"""The front door: every route has its guard, and no credential opens more than it should."""

import base64
import hashlib
import hmac
import json
import logging
import socket
import string
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from flask import Flask
from flask.testing import FlaskClient
from jose import jws
from werkzeug.test import TestResponse

from app.keyring import Keyring
from tests.conftest import ADMIN, ADMIN_KEY
from tests.factories import bearer, make_customer, report_body
from tests.server import serving
from tests.tokens import base64url, claims_of, expired, resign, segment

# What the contract says of each route: who may call it.
GUARDS = {
    "POST /api/customers": "admin",
    "GET /api/customers": "admin",
    "GET /api/customers/<customer_id>": "own",
    "PATCH /api/customers/<customer_id>": "admin",
    "POST /api/customers/<customer_id>/portal": "own",
    "POST /api/subscriptions/create-checkout": "own",
    "POST /api/subscriptions/create-trial": "admin",
    "GET /api/subscriptions/<any_id>": "own",
    "POST /api/subscriptions/<subscription_id>/upgrade": "admin",
    "POST /api/subscriptions/<subscription_id>/cancel": "admin",
    "POST /api/subscriptions/<subscription_id>/resume": "admin",
    "GET /api/licenses/<customer_id>": "own",
    "POST /api/licenses/<customer_id>/revoke": "admin",
    "POST /api/licenses/<customer_id>/reinstate": "admin",
    "POST /api/licenses/verify": "public",
    "GET /api/licenses/public-key": "public",
    "GET /api/licenses/revocations": "public",
    "GET /.well-known/jwks.json": "public",
    "POST /api/usage/report": "own",
    "POST /api/usage/reports": "own",
    "GET /api/usage/<customer_id>": "own",
    "GET /api/usage": "admin",
    "POST /webhooks/stripe": "stripe",
    "GET /checkout/success": "public",
    "GET /checkout/cancel": "public",
    "GET /checkout/back": "public",
    "GET /health": "public",
    "GET /health/ready": "public",
    "GET /metrics": "public",
    "GET /openapi.json": "public",
    "GET /docs": "public",
    "GET /docs/": "public",
    "GET /docs/<path:path>": "public",
}
EXPIRED_SERVES = {
    "GET /api/licenses/<customer_id>",
    "POST /api/usage/report",
    "POST /api/usage/reports",
}
GUARDED = sorted(name for name, guard in GUARDS.items() if guard in ("admin", "own"))
OWN = sorted(name for name, guard in GUARDS.items() if guard == "own")


def routes(app: Flask) -> Iterator[tuple[str, Any]]:
    for rule in app.url_map.iter_rules():
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}:
            yield f"{method} {rule.rule}", app.view_functions[rule.endpoint]


def call(
    client: FlaskClient, route: str, headers: dict[str, str], customer: dict[str, Any], **options: Any
) -> TestResponse:
    """Call a route about this customer, with a body that it would take."""
    method, path = route.split(" ")
    customer_id, subscription_id = customer["customerId"], customer["subscription"]["subscriptionId"]
    path = path.replace("<customer_id>", customer_id).replace("<any_id>", subscription_id)
    path = path.replace("<subscription_id>", subscription_id)
    bodies: dict[str, Any] = {
        "POST /api/customers": {"email": f"{uuid.uuid4().hex}@example.com"},
        "PATCH /api/customers/<customer_id>": {"name": "Changed"},
        "POST /api/subscriptions/create-checkout": {"customerId": customer_id, "plan": "starter"},
        "POST /api/subscriptions/create-trial": {"customerId": customer_id, "plan": "starter"},
        "POST /api/subscriptions/<subscription_id>/upgrade": {"plan": "starter"},
        "POST /api/usage/report": report_body(customer_id),
        "POST /api/usage/reports": {"reports": [report_body(customer_id, instanceId="batch")]},
    }
    if route in bodies and not options:
        options = {"json": bodies[route]}
    return client.open(path, method=method, headers=headers, **options)


def nobody(customer_id: str = "cust_000000000000") -> dict[str, Any]:
    """A customer who does not exist."""
    return {"customerId": customer_id, "subscription": {"subscriptionId": "trial_0000000000000000"}}


def refused(answer: TestResponse, code: int = 401) -> bool:
    assert answer.status_code == code, (answer.request.path, answer.status_code, answer.text)
    if code == 401:
        assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert answer.json is not None
    assert set(answer.json) == {"code", "status", "message", "requestId"}
    return True


class TestEveryRoute:
    def test_each_has_the_guard_that_the_contract_names(self, app: Flask) -> None:
        found = {route: getattr(view, "guard", None) for route, view in routes(app)}
        assert found == GUARDS

    def test_without_a_credential_that_counts_it_is_401_before_the_body_is_read(
        self, app: Flask, client: FlaskClient, sql: Callable[..., Any]
    ) -> None:
        for route in GUARDED:
            customer, gone = make_customer(client), make_customer(client)
            token, key = customer["license"], ADMIN_KEY
            app.test_cli_runner().invoke(args=["customer", "erase", "--id", gone["customerId"], "--yes"])
            headers = [
                {},
                {"Authorization": ""},
                {"Authorization": "Bearer"},
                {"Authorization": "Bearer "},
                {"Authorization": f"Basic {base64.b64encode(key.encode()).decode()}"},
                {"Authorization": key},
                {"Authorization": f"Token {key}"},
                bearer("wrong"),
                bearer(key[:-1]),
                bearer(key + "x"),
                bearer(key.upper()),
                bearer(f"{key},{key}"),
                bearer(f"{key} {key}"),
                bearer(token[:-4] + ("AAAA" if not token.endswith("AAAA") else "BBBB")),
                bearer(expired(app, token, days=31)),
                bearer(gone["license"]),
                bearer(resign(app, token, jti=str(uuid.uuid4()))),
            ]
            if route not in EXPIRED_SERVES:
                headers.append(bearer(expired(app, token, days=0.001)))
            before = sql("SELECT COUNT(*) AS n FROM audit_log")
            for given in headers:
                assert refused(call(client, route, given, customer))
                if route != "POST /api/usage/reports":  # each item is judged on its own
                    assert refused(call(client, route, given, nobody()))
            unread = call(
                client, route, bearer("wrong"), customer, data=b"{not json", content_type="text/plain"
            )
            assert refused(unread)
            assert sql("SELECT COUNT(*) AS n FROM audit_log") == before
            assert sql("SELECT 1 FROM usage_reports") == []

    def test_a_revoked_license_serves_for_nothing(self, client: FlaskClient) -> None:
        for route in GUARDED:
            customer = make_customer(client)
            client.post(f"/api/licenses/{customer['customerId']}/revoke", headers=ADMIN)
            assert refused(call(client, route, bearer(customer["license"]), customer), 403)

    def test_what_is_anothers_is_403_whether_it_exists_or_not(
        self, client: FlaskClient, sql: Callable[..., Any]
    ) -> None:
        for route in GUARDED:
            customer, stranger = make_customer(client), make_customer(client)
            before = sql("SELECT COUNT(*) AS n FROM audit_log")
            if route == "POST /api/usage/reports":  # each item is judged on its own
                answers = [call(client, route, bearer(stranger["license"]), c) for c in (customer, nobody())]
                assert [a.json["results"][0]["status"] for a in answers] == [403, 403]
                assert answers[0].json == answers[1].json
            else:
                answers = [
                    call(client, route, bearer(stranger["license"]), about)
                    for about in (customer, nobody(), nobody("cust_x"), nobody("nobody"))
                ]
                messages = {answer.json["message"] for answer in answers if refused(answer, 403)}
                assert len(messages) == 1
            assert sql("SELECT COUNT(*) AS n FROM audit_log") == before
            assert sql("SELECT 1 FROM usage_reports") == []

    def test_whom_the_contract_lets_in_comes_in(self, client: FlaskClient) -> None:
        for route in GUARDED:
            customer = make_customer(client)
            assert call(client, route, ADMIN, customer).status_code not in (401, 403)
            answer = call(client, route, bearer(customer["license"]), customer)
            assert (answer.status_code in (401, 403)) is (GUARDS[route] == "admin")

    def test_an_id_that_is_none_is_404_for_an_operator_and_never_500(self, client: FlaskClient) -> None:
        for route in OWN:
            for odd in (
                "%00",
                "cust_%00",
                "%F0%9F%98%80",
                "'; DROP TABLE customers; --",
                "x" * 5000,
                "%ff",
                ".",
            ):
                answer = call(client, route, ADMIN, nobody(odd) | {"subscription": {"subscriptionId": odd}})
                assert answer.status_code in (200, 404, 405, 422), (odd, answer.text)


class TestAdminKeys:
    def test_several_at_once_and_each_has_its_name(
        self, make_app: Callable[..., Flask], sql: Callable[..., Any]
    ) -> None:
        client = make_app(ADMIN_API_KEY="first-key-0123456789, second-key-0123456789 ,").test_client()
        for key in ("first-key-0123456789", "second-key-0123456789"):
            for scheme in ("Bearer", "bearer", "BEARER"):
                headers = {"Authorization": f"{scheme} {key}"}
                assert client.get("/api/customers", headers=headers).status_code == 200
            body = {"email": f"{key}@example.com"}
            assert client.post("/api/customers", json=body, headers=bearer(key)).status_code == 201
        actors = sql("SELECT DISTINCT actor FROM audit_log ORDER BY actor")
        digests = [
            hashlib.sha256(k.encode()).hexdigest() for k in ("first-key-0123456789", "second-key-0123456789")
        ]
        assert [row["actor"] for row in actors] == sorted(f"admin:{digest[:8]}" for digest in digests)
        for wrong in (
            "first-key-0123456789,second-key-0123456789",
            "",
            ",",
            "first-key-012345678",
            ADMIN_KEY,
        ):
            assert refused(client.get("/api/customers", headers=bearer(wrong)))

    @pytest.mark.parametrize(
        "text",
        ["é", "ÿ" * 100, "\x80", "\xa0", "key\xe9", f"{ADMIN_KEY}é", f"é{ADMIN_KEY}", f"{ADMIN_KEY}\xa0"],
    )
    def test_what_is_not_ascii_is_401(self, client: FlaskClient, text: str) -> None:
        for scheme in ("Bearer ", "Beårer ", ""):
            environ = {"HTTP_AUTHORIZATION": f"{scheme}{text}"}
            assert refused(client.get("/api/customers", environ_overrides=environ))


def encode(part: Any) -> str:
    return base64url(part if isinstance(part, bytes) else json.dumps(part).encode())


class Forge:
    """Makes tokens that are wrong in one way each; with `real` signed by the service's own key."""

    def __init__(self, app: Flask, token: str) -> None:
        ring: Keyring = app.extensions["billing.keyring"]
        self.key, self.token = ring.signing_key(), token
        self.header, self.claims = segment(token, 0), claims_of(token)
        self.mine = rsa.generate_private_key(public_exponent=65537, key_size=2048)

    def real(self, header: Any, claims: Any) -> str:
        text = f"{encode(header)}.{encode(claims)}"
        return f"{text}.{base64url(self.key.private.sign(text.encode()))}"

    def pem(self) -> bytes:
        return self.key.public.pem.encode()

    def der(self) -> bytes:
        return serialization.load_pem_public_key(self.pem()).public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def hmac(self, secret: bytes, algorithm: str = "HS256") -> str:
        text = f"{encode(self.header | {'alg': algorithm})}.{encode(self.claims)}"
        return f"{text}.{base64url(hmac.new(secret, text.encode(), hashlib.sha256).digest())}"

    def with_key_of_mine(self, header: dict[str, Any], pad: Any = None, digest: Any = None) -> str:
        text = f"{encode(header)}.{encode(self.claims)}"
        signature = self.mine.sign(text.encode(), pad or padding.PKCS1v15(), digest or hashes.SHA256())
        return f"{text}.{base64url(signature)}"

    def other_algorithm(self, name: str) -> str:
        """Signed with the real key, by another algorithm of the family."""
        private = self.key.private.prepared_key
        text = f"{encode(self.header | {'alg': name})}.{encode(self.claims)}"
        pad = padding.PSS(padding.MGF1(hashes.SHA256()), 32) if name[0] == "P" else padding.PKCS1v15()
        digest = hashes.SHA384() if name == "RS384" else hashes.SHA256()
        return f"{text}.{base64url(private.sign(text.encode(), pad, digest))}"


def jwk_of(key: rsa.RSAPrivateKey) -> dict[str, str]:
    numbers = key.public_key().public_numbers()
    return {"kty": "RSA", "e": "AQAB", "n": base64url(numbers.n.to_bytes(256)), "alg": "RS256"}


def algorithm_tricks(f: Forge) -> Iterator[tuple[str, str]]:
    for name in ("none", "None", "NONE", "nOnE", ""):
        text = f"{encode(f.header | {'alg': name})}.{encode(f.claims)}"
        yield f"alg {name!r} without signature", f"{text}."
        yield f"alg {name!r} with the old signature", f"{text}.{f.token.split('.')[2]}"
        yield f"alg {name!r} truly signed", f.real(f.header | {"alg": name}, f.claims)
    yield "two segments", f.token.rpartition(".")[0]
    yield "HS256 with the PEM", f.hmac(f.pem())
    yield "HS256 with the PEM stripped", f.hmac(f.pem().strip())
    yield "HS256 with the DER", f.hmac(f.der())
    yield "HS256 with the DER in base64", f.hmac(base64.b64encode(f.der()))
    yield "HS256 with nothing", f.hmac(b"")
    yield "RS256 that is an HMAC", f.hmac(f.pem(), "RS256")
    for name in ("RS384", "PS256"):
        yield name, f.other_algorithm(name)
    for name in ("rs256", "RS256 ", "RS512", "ES256", "EdDSA", "dir", None, 256, ["RS256"], {"a": 1}):
        yield f"alg {name!r}", f.real(f.header | {"alg": name}, f.claims)
    yield "no alg", f.real({"kid": f.header["kid"], "typ": "JWT"}, f.claims)
    yield "a key of mine", f.with_key_of_mine(f.header)
    yield (
        "a key of mine with PSS",
        f.with_key_of_mine(f.header | {"alg": "PS256"}, padding.PSS(padding.MGF1(hashes.SHA256()), 32)),
    )


def header_tricks(f: Forge) -> Iterator[tuple[str, str]]:
    kids = [
        "../../../../dev/null", "/dev/null", "keys/public-key.pem", "' OR '1'='1", "x' UNION SELECT 'y' --",
        "\x00", f"{f.header['kid']}\x00", "a" * 4000, "", " ", f" {f.header['kid']}", f"{f.header['kid']}\n",
        f.header["kid"].lower(), "\ud800", "😀" * 43, "%s", "{}",
        None, 0, True, 1.5, [], {}, [f.header["kid"]],
    ]  # fmt: skip
    for kid in kids:
        yield f"kid {str(kid)[:30]!r}", f.real(f.header | {"kid": kid}, f.claims)
        yield f"kid {str(kid)[:30]!r}, a key of mine", f.with_key_of_mine(f.header | {"kid": kid})
    yield "no kid", f.real({"alg": "RS256", "typ": "JWT"}, f.claims)
    for extra in (
        {"jku": "http://127.0.0.1:1/jwks.json"},
        {"x5u": "http://127.0.0.1:1/cert.pem"},
        {"jwk": jwk_of(f.mine)},
        {"x5c": ["MIIB"]},
        {"crit": ["exp"]},
        {"crit": []},
        {"crit": ["b64"], "b64": False},
        {"zip": "DEF"},
        {"cty": "JWT"},
        {"enc": "A128GCM"},
        {"unheard": 1},
    ):
        yield f"header {extra}, a key of mine", f.with_key_of_mine(f.header | extra)
        yield f"header {extra}, truly signed", f.real(f.header | extra, f.claims)
    kid = json.dumps(f.header["kid"])
    for text in (
        f'{{"alg":"none","alg":"RS256","kid":{kid}}}',
        f'{{"alg":"RS256","alg":"none","kid":{kid}}}',
        f'{{"alg":"RS256","kid":"other","kid":{kid}}}',
        f'{{"alg":"RS256","kid":{kid}}}x',
        f'[{{"alg":"RS256","kid":{kid}}}]',
        '"RS256"', "null", "5", "", "{", "NaN", "\x00", "[" * 3000, "{}",
        '{"alg":' * 700 + "1" + "}" * 700,
    ):  # fmt: skip
        yield f"header {text[:40]!r}", f.real(text.encode(), f.claims)
    yield "header is no UTF-8", f.real(b"\xff\xfe", f.claims)


def claim_tricks(f: Forge) -> Iterator[tuple[str, str]]:
    for name in ("iss", "sub", "jti", "iat", "exp"):
        rest = {k: v for k, v in f.claims.items() if k != name}
        yield f"no {name}", f.real(f.header, rest)
        for value in (
            None,
            True,
            False,
            1.5,
            [],
            {},
            "",
            "x",
            str(f.claims[name]) + "\x00",
            -1,
            2**63,
            10**400,
        ):
            yield f"{name} is {str(value)[:30]!r}", f.real(f.header, f.claims | {name: value})
    for name in ("iat", "exp"):
        yield f"{name} is text", f.real(f.header, f.claims | {name: str(f.claims[name])})
        yield f"{name} is a fraction", f.real(f.header, f.claims | {name: f.claims[name] + 0.5})
        text = json.dumps(f.claims).replace(f'"{name}": {f.claims[name]}', f'"{name}": NaN')
        yield f"{name} is NaN", f.real(f.header, text.encode())
        yield f"{name} is Infinity", f.real(f.header, text.replace("NaN", "Infinity").encode())
        yield f"{name} is 1e400", f.real(f.header, text.replace("NaN", "1e400").encode())
        yield f"{name} has 5000 digits", f.real(f.header, text.replace("NaN", "9" * 5000).encode())
    for sub in ("\ud800", "cust_\ud800", "😀", "*", "%", "cust_" + "a" * 5000, f.claims["sub"].upper()):
        yield f"sub {sub[:20]!r}", f.real(f.header, f.claims | {"sub": sub})
    for jti in ("' OR 1=1 --", f.claims["jti"].upper(), "{" + f.claims["jti"] + "}", f.claims["jti"] + "\n"):
        yield f"jti {jti!r}", f.real(f.header, f.claims | {"jti": jti})
    yield "jti not on record", f.real(f.header, f.claims | {"jti": str(uuid.uuid4())})
    yield "another issuer", f.real(f.header, f.claims | {"iss": "somebody-else"})
    text = json.dumps(f.claims)
    for name, raw in (
        ("sub twice", text[:-1] + f', "sub": "{f.claims["sub"]}"}}'),
        ("exp twice", text[:-1] + ', "exp": 9999999999}'),
        ("a twice inside", text[:-1] + ', "deep": {"a": 1, "a": 2}}'),
        ("nested without end", text[:-1] + ', "deep": ' + "[" * 2500 + "]" * 2500 + "}"),
        ("claims are a list", f"[{text}]"),
        ("claims are text", json.dumps("text")),
        ("claims are nothing", ""),
        ("claims are cut", text[:-1]),
        ("claims have a tail", text + "x"),
    ):
        yield name, f.real(f.header, raw.encode())
    yield "claims are no UTF-8", f.real(f.header, text.encode("utf-16"))


def text_tricks(f: Forge) -> Iterator[tuple[str, str]]:
    head, body, signature = f.token.split(".")
    last = string.ascii_uppercase + string.ascii_lowercase + string.digits + "-_"
    for tail in ("=", "==", ".", ".x", "x", "AAAA", "\x00", "%00", "é", ",", ";", "#", "\xa0", "\x85", " x"):
        yield f"{tail!r} at the end", f.token + tail
    yield from (
        ("padding inside", f"{head}=.{body}.{signature}"),
        ("padding after the claims", f"{head}.{body}==.{signature}"),
        ("plain base64", f"{head}.{body}.{signature[:-5]}+/+/{signature[-1]}"),
        ("a space inside", f"{head}. {body}.{signature}"),
        ("a tab inside", f"{head}\t.{body}.{signature}"),
        ("segments swapped", f"{body}.{head}.{signature}"),
        ("four segments", f"{head}.{body}.{signature}.{signature}"),
        ("five segments, as JWE has", ".".join([head, body, signature, body, signature])),
        ("no header", f".{body}.{signature}"),
        ("no claims", f"{head}..{signature}"),
        ("no signature", f"{head}.{body}."),
        ("only dots", ".."),
        ("signature of zeros", f"{head}.{body}.{base64url(bytes(256))}"),
        ("short signature", f"{head}.{body}.{base64url(bytes(1))}"),
        ("long signature", f"{head}.{body}.{base64url(bytes(2000))}"),
        ("JSON serialisation", json.dumps({"protected": head, "payload": body, "signature": signature})),
    )
    # 256 bytes leave four bits of the last character unused: other spellings of the same signature.
    for char in last:
        if char != signature[-1] and last.index(char) // 16 == last.index(signature[-1]) // 16:
            yield f"signature spelled with {char}", f"{head}.{body}.{signature[:-1]}{char}"
    yield "a megabyte", f"{head}.{body}.{'A' * 2**20}"
    yield "a megabyte of dots", "." * 2**20
    yield "a megabyte of claims", f.real(f.header, f.claims | {"x": "y" * 2**20})
    yield "a megabyte of nesting", f.real(f.header, b"[" * 2**20)


@pytest.mark.parametrize("tricks", [algorithm_tricks, header_tricks, claim_tricks, text_tricks])
def test_every_trick_ends_in_401(
    app: Flask, client: FlaskClient, sql: Callable[..., Any], tricks: Callable[[Forge], Any]
) -> None:
    customer = make_customer(client)
    forge = Forge(app, customer["license"])
    # The forge itself works: what it signs with nothing changed is let in.
    good = forge.real(forge.header, forge.claims)
    assert client.get(f"/api/customers/{customer['customerId']}", headers=bearer(good)).status_code == 200
    for name, token in tricks(forge):
        for path in (f"/api/customers/{customer['customerId']}", "/api/customers"):
            answer = client.get(path, environ_overrides={"HTTP_AUTHORIZATION": _latin(token)})
            assert (name, answer.status_code) == (name, 401)
            assert answer.headers["WWW-Authenticate"] == "Bearer"
        report = client.post(
            "/api/usage/report",
            json=report_body(customer["customerId"]),
            environ_overrides={"HTTP_AUTHORIZATION": _latin(token)},
        )
        assert (name, report.status_code) == (name, 401)
        if len(token) < 60_000:
            answer = client.post("/api/licenses/verify", json={"license": token})
            assert answer.status_code == 200
            # Surrounding white space is no part of the token there.
            if token.strip() != customer["license"]:
                assert (name, answer.json["valid"]) == (name, False)
    assert sql("SELECT 1 FROM usage_reports") == []


def _latin(token: str) -> str:
    """`Bearer` and the token as a WSGI server would hand it over."""
    return f"Bearer {token}".encode("utf-8", "surrogatepass").decode("latin-1")


def test_the_id_of_another_with_a_known_jti_is_401(app: Flask, client: FlaskClient) -> None:
    customer, other = make_customer(client), make_customer(client)
    crossed = resign(app, customer["license"], sub=other["customerId"], customerId=other["customerId"])
    for about in (customer, other):
        for route in OWN:
            assert refused(call(client, route, bearer(crossed), about))


def test_a_known_signature_is_not_asked_again_but_its_standing_is(app: Flask, client: FlaskClient) -> None:
    customer = make_customer(client)
    path, headers = f"/api/customers/{customer['customerId']}", bearer(customer["license"])
    assert client.get(path, headers=headers).status_code == 200
    assert client.get(path, headers=headers).status_code == 200
    client.post(f"/api/licenses/{customer['customerId']}/revoke", headers=ADMIN)
    assert client.get(path, headers=headers).status_code == 403


def test_neither_keys_nor_tokens_nor_addresses_reach_a_log(
    make_app: Callable[..., Flask], caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    app = make_app(LOG_LEVEL="debug")
    caplog.set_level(logging.DEBUG)
    logging.getLogger().addHandler(caplog.handler)  # the application has put its own in the place of all
    client = app.test_client()
    email, name = "very.secret@example.com", "Erika Mustermann"
    customer = make_customer(client, email=email, name=name, companyName="Geheim AG")
    token = customer["license"]
    headers = [ADMIN, bearer(token), bearer(token + "x"), bearer("wrong-" + ADMIN_KEY), {}]
    for route in GUARDS:
        for given in headers:
            call(client, route.replace("<path:path>", "x"), given, customer)
    client.get(f"/api/customers?email={email}", headers=ADMIN)
    client.post("/api/customers", json={"email": email, "name": name}, headers=ADMIN)
    client.post("/api/customers", json={"email": email, "nmae": name}, headers=ADMIN)
    client.post("/api/licenses/verify", json={"license": token})
    client.get(f"/api/licenses/{token}", headers=ADMIN)
    client.patch(f"/api/customers/{customer['customerId']}", json={"email": "a" + email}, headers=ADMIN)
    app.test_cli_runner().invoke(args=["customer", "erase", "--id", customer["customerId"], "--yes"])
    text = capsys.readouterr().err
    assert text.count('"logger":"app.access"') > 100
    private = app.extensions["billing.settings"].license_private_key_path.read_text().splitlines()[5]
    records = [(record.name, json.dumps(record.__dict__, default=str)) for record in caplog.records]
    for logger, line in [*records, ("stderr", text)]:
        for secret in (
            email,
            name,
            "Geheim AG",
            ADMIN_KEY,
            token.split(".")[1],
            token.split(".")[2],
            private,
        ):
            assert secret not in line, logger


def test_a_signature_library_that_would_take_another_algorithm_is_not_asked(app: Flask) -> None:
    """The forged ones are good by the letter: with their own algorithm allowed, the library takes them."""
    client = app.test_client()
    forge = Forge(app, make_customer(client)["license"])
    assert jws.verify(forge.other_algorithm("RS384"), forge.key.public.pem, ["RS384"])
    assert jws.verify(forge.hmac(b"secret"), "secret", ["HS256"])


def test_odd_headers_at_the_real_server_open_nothing_and_leave_nothing_in_its_log(
    environ: dict[str, str],
) -> None:
    key = ADMIN_KEY.encode()
    cases = {
        b"Authorization: Bearer " + key: b"200",
        b"Authorization: Bearer \t " + key + b" \t": b"200",
        b"Authorization: Bearer " + key + b"\r\nAuthorization: Bearer " + key: b"401",
        b"Authorization: Bearer " + key + b"\xff": b"401",
        b"Authorization: Bearer " + key + b"A" * 16_000: b"401",
        # What gunicorn refuses by itself.
        b"Authorization: Bearer " + key + b"\x00": b"400",
        b"Authorization: Bearer\r\n " + key: b"400",
        b"Authorization Bearer " + key: b"400",
        b"Authorization : Bearer " + key: b"400",
        b"Authorization: Bearer " + key + b"A" * 2**20: b"431",
    }
    with serving(environ | {"LOG_LEVEL": "debug"}) as server:
        for header, status in cases.items():
            start = b"GET /api/customers HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
            answer = _send(server.url, start + header)
            assert answer.split(b" ")[1] == status, (header[:80], answer[:200])
        written = server.log.read_bytes()
    assert b"GET" in written
    assert key not in written


def _send(url: str, head: bytes) -> bytes:
    """A request sent by hand; the answer as it came."""
    at = urlsplit(url)
    with socket.create_connection((str(at.hostname), int(at.port or 0)), 20) as connection:
        with suppress(OSError):
            connection.sendall(head + b"\r\n\r\n")
        answer = b""
        with suppress(ConnectionResetError):
            while part := connection.recv(65536):
                answer += part
        return answer
