"""Who may call what: every route has its guard, and no credential opens more than it should."""

import base64
import hashlib
import hmac
import json
import logging
import uuid

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from tests.conftest import ADMIN, ADMIN_KEY
from tests.factories import bearer, make_customer, report_body
from tests.tokens import base64url, claims_of, expired, resign, segment

# What the contract says of each route: who may call it.
GUARDS = {
    "GET /": "public",
    "POST /api/customers": "admin",
    "GET /api/customers": "admin",
    "GET /api/customers/<customer_id>": "own",
    "PATCH /api/customers/<customer_id>": "admin",
    "GET /api/customers/<customer_id>/invoices": "own",
    "POST /api/customers/<customer_id>/portal": "own",
    "POST /api/subscriptions/checkout": "own",
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
    "GET /api/usage/<customer_id>/billing": "own",
    "GET /api/usage/<customer_id>/billing/<day>": "own",
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
RENEWING = {"GET /api/licenses/<customer_id>", "POST /api/usage/report", "POST /api/usage/reports"}
GUARDED = sorted(name for name, guard in GUARDS.items() if guard in ("admin", "own"))
BATCH = "POST /api/usage/reports"  # where each item has a status of its own
UNREAD = {"data": b"{not json", "content_type": "text/plain"}


def call(client, route, headers, customer, **options):
    """Call a route about this customer, with a body that it would take."""
    method, path = route.split(" ")
    customer_id, subscription_id = customer["customerId"], customer["subscription"]["subscriptionId"]
    path = path.replace("<customer_id>", customer_id)
    path = path.replace("<day>", "2026-01-31")
    path = path.replace("<any_id>", subscription_id).replace("<subscription_id>", subscription_id)
    plan = {"customerId": customer_id, "plan": "starter"}
    bodies = {
        "POST /api/customers": {"email": f"{uuid.uuid4().hex}@example.com"},
        "PATCH /api/customers/<customer_id>": {"name": "Changed"},
        "POST /api/subscriptions/checkout": plan,
        "POST /api/subscriptions/create-checkout": plan,
        "POST /api/subscriptions/create-trial": plan,
        "POST /api/subscriptions/<subscription_id>/upgrade": {"plan": "starter"},
        "POST /api/usage/report": report_body(customer_id),
        BATCH: {"reports": [report_body(customer_id, instanceId="batch")]},
    }
    if route in bodies and not options:
        options = {"json": bodies[route]}
    return client.open(path, method=method, headers=headers, **options)


def nobody(customer_id="cust_000000000000"):
    """A customer who does not exist."""
    return {"customerId": customer_id, "subscription": {"subscriptionId": "trial_0000000000000000"}}


def refusal(answer, code):
    """The message of an answer that refuses with this code."""
    assert answer.status_code == code, (answer.request.path, answer.status_code, answer.text)
    assert set(answer.json) == {"code", "status", "message", "requestId"}
    assert code != 401 or answer.headers["WWW-Authenticate"] == "Bearer"
    return answer.json["message"]


@pytest.fixture
def state(sql):
    """What a refused request must leave as it is."""
    return lambda: sql("SELECT (SELECT COUNT(*) FROM audit_log), (SELECT COUNT(*) FROM usage_reports) AS n")


def test_each_route_has_the_guard_that_the_contract_names(app):
    found = {
        f"{method} {rule.rule}": getattr(app.view_functions[rule.endpoint], "guard", None)
        for rule in app.url_map.iter_rules()
        for method in rule.methods - {"HEAD", "OPTIONS"}
    }
    assert found == GUARDS


def test_without_a_credential_that_counts_it_is_401_before_the_body_is_read(app, client, console, state):
    customer, erased = make_customer(client), make_customer(client)
    assert console("customer", "erase", "--id", erased["customerId"], "--yes").exit_code == 0
    token, key = customer["license"], ADMIN_KEY
    basic = base64.b64encode(key.encode()).decode()
    schemes = ("", "Bearer", "Bearer ", f"Basic {basic}", key, f"Token {key}")
    credentials = (
        "wrong", key[:-1], key + "x", key.upper(), f"{key},{key}", f"{key} {key}",
        token[:-4] + ("AAAA" if not token.endswith("AAAA") else "BBBB"),
        expired(app, token, days=31), erased["license"],
    )  # fmt: skip
    always = [{}, *({"Authorization": text} for text in schemes), *map(bearer, credentials)]
    renewing_only = [
        bearer(expired(app, token, days=0.001)), bearer(resign(app, token, jti=str(uuid.uuid4()))),
    ]  # fmt: skip
    before = state()
    for route in GUARDED:
        for headers in always + (renewing_only if route not in RENEWING else []):
            refusal(call(client, route, headers, customer), 401)
        refusal(call(client, route, bearer("wrong"), nobody()), 401)
        refusal(call(client, route, bearer("wrong"), customer, **UNREAD), 401)
    assert state() == before


def test_a_license_opens_only_what_is_its_own_and_none_once_it_is_revoked(client, state):
    customer, stranger, revoked = (make_customer(client) for _ in range(3))
    client.post(f"/api/licenses/{revoked['customerId']}/revoke", headers=ADMIN)
    before = state()
    for route in GUARDED:
        refusal(call(client, route, bearer(revoked["license"]), revoked), 403)
        refusal(call(client, route, bearer(revoked["license"]), revoked, **UNREAD), 403)
        about = (customer, nobody(), nobody("cust_x"), nobody("nobody"))
        answers = [call(client, route, bearer(stranger["license"]), one) for one in about]
        if route == BATCH:
            (of_another,), (of_nobody,) = (answer.json["results"] for answer in answers[:2])
            assert (of_another["status"], of_another) == (403, of_nobody)
        else:  # the same whether it exists or not
            assert len({refusal(answer, 403) for answer in answers}) == 1
    assert state() == before


def test_those_whom_the_contract_names_may_call(client):
    for route in GUARDED:
        customer = make_customer(client)
        assert call(client, route, ADMIN, customer).status_code not in (401, 403)
        answer = call(client, route, bearer(customer["license"]), customer)
        assert (answer.status_code in (401, 403)) is (GUARDS[route] == "admin")


def test_what_is_unknown_or_cannot_be_an_id_is_404(client):
    dots = (".", "..", "%2e%2e")  # they lead to the list above
    for odd in (
        "cust_unknown00000", "x", "%00", "cust_%00", "cust_é", "%F0%9F%98%80", "'; DROP TABLE x; --",
        "x" * 5000, *dots,
    ):  # fmt: skip
        for route in (name for name in GUARDED if "<" in name):
            answer = call(client, route, ADMIN, nobody(odd) | {"subscription": {"subscriptionId": odd}})
            assert answer.status_code in ((200, 404, 405) if odd in dots else (404,)), answer.text
    assert call(client, "POST /api/usage/report", ADMIN, nobody()).status_code == 404


def test_several_admin_keys_at_once_each_with_its_name(make_app, sql):
    keys = ("first-key-0123456789", "second-key-0123456789")  # pragma: allowlist secret
    client = make_app(ADMIN_API_KEY=f"{keys[0]}, {keys[1]} ,").test_client()
    for key in keys:
        for scheme in ("Bearer", "bearer", "BEARER"):
            headers = {"Authorization": f"{scheme} {key}"}
            assert client.get("/api/customers", headers=headers).status_code == 200
        body = {"email": f"{key}@example.com"}
        assert client.post("/api/customers", json=body, headers=bearer(key)).status_code == 201
    names = {f"admin:{hashlib.sha256(key.encode()).hexdigest()[:8]}" for key in keys}
    assert {row["actor"] for row in sql("SELECT DISTINCT actor FROM audit_log")} == names
    for wrong in (",".join(keys), ",", keys[0][:-1], ADMIN_KEY):
        refusal(client.get("/api/customers", headers=bearer(wrong)), 401)


def test_what_is_not_ascii_is_401(client):
    for text in ("é", "\x80", f"{ADMIN_KEY}é", f"é{ADMIN_KEY}", f"{ADMIN_KEY}\xa0"):
        for scheme in ("Bearer ", "Beårer ", ""):
            environ = {"HTTP_AUTHORIZATION": f"{scheme}{text}"}
            refusal(client.get("/api/customers", environ_overrides=environ), 401)


MINE = rsa.generate_private_key(public_exponent=65537, key_size=2048)


class Forge:
    """Makes tokens that are wrong in one way each; with `real` signed by the service's own key."""

    def __init__(self, app, token):
        self.key, self.token = app.extensions["billing.keyring"].signing_key(), token
        self.header, self.claims = segment(token, 0), claims_of(token)
        self.mine = MINE

    def real(self, header=None, claims=None):
        parts = (self.header if header is None else header, self.claims if claims is None else claims)
        octets = (part if isinstance(part, bytes) else json.dumps(part).encode() for part in parts)
        text = ".".join(map(base64url, octets))
        return f"{text}.{base64url(self.key.private.sign(text.encode()))}"

    def unsigned(self, **header):
        return self.real(self.header | header).rpartition(".")[0]

    def hmac(self, secret, algorithm="HS256"):
        text = self.unsigned(alg=algorithm)
        return f"{text}.{base64url(hmac.new(secret, text.encode(), hashlib.sha256).digest())}"

    def with_key_of_mine(self, **header):
        text = self.unsigned(**header)
        return f"{text}.{base64url(self.mine.sign(text.encode(), padding.PKCS1v15(), hashes.SHA256()))}"

    def other_algorithm(self, name):
        """Signed with the real key, by another algorithm of the family."""
        text = self.unsigned(alg=name)
        pad = padding.PSS(padding.MGF1(hashes.SHA256()), 32) if name[0] == "P" else padding.PKCS1v15()
        digest = hashes.SHA384() if name == "RS384" else hashes.SHA256()
        return f"{text}.{base64url(self.key.private.prepared_key.sign(text.encode(), pad, digest))}"


def algorithm_tricks(f):
    for name in ("none", "None", "nOnE", ""):
        text = f.unsigned(alg=name)
        yield from (f"{text}.", f"{text}.{f.token.split('.')[2]}", f.real(f.header | {"alg": name}))
    pem = f.key.public.pem.encode()
    der = serialization.load_pem_public_key(pem).public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    for secret in (pem, pem.strip(), der, base64.b64encode(der), b""):
        yield f.hmac(secret)
    yield from (f.hmac(pem, "RS256"), f.other_algorithm("RS384"), f.other_algorithm("PS256"))
    for name in ("rs256", "RS256 ", "RS512", "ES256", "dir", None, 256, ["RS256"], {"a": 1}):
        yield f.real(f.header | {"alg": name})
    yield from (f.real({"kid": f.header["kid"], "typ": "JWT"}), f.with_key_of_mine())


def header_tricks(f):
    kid = f.header["kid"]
    for odd in (
        "../../../../dev/null", "keys/public-key.pem", "' OR '1'='1", "\x00", f"{kid}\x00", "a" * 4000, "",
        f" {kid}", f"{kid}\n", kid.lower(), "\ud800", "😀" * 43, None, 0, True, 1.5, [], {}, [kid],
    ):  # fmt: skip
        yield from (f.real(f.header | {"kid": odd}), f.with_key_of_mine(kid=odd))
    yield f.real({"alg": "RS256", "typ": "JWT"})
    numbers = f.mine.public_key().public_numbers()
    jwk = {"kty": "RSA", "e": "AQAB", "n": base64url(numbers.n.to_bytes(256)), "alg": "RS256"}
    for extra in (
        {"jku": "http://127.0.0.1:1/"}, {"x5u": "http://127.0.0.1:1/"}, {"jwk": jwk}, {"x5c": ["MIIB"]},
        {"crit": ["exp"]}, {"crit": []}, {"crit": ["b64"], "b64": False}, {"zip": "DEF"}, {"unheard": 1},
    ):  # fmt: skip
        yield from (f.with_key_of_mine(**extra), f.real(f.header | extra))
    for text in (
        f'{{"alg":"none","alg":"RS256","kid":"{kid}"}}', f'{{"alg":"RS256","kid":"{kid}"}}x',
        f'[{{"alg":"RS256","kid":"{kid}"}}]', '"RS256"', "null", "", "{", "NaN", "\x00", "[" * 3000, "{}",
        '{"alg":' * 700 + "1" + "}" * 700, "\xff\xfe",
    ):  # fmt: skip
        yield f.real(text.encode("latin-1"))


def claim_tricks(f):
    def changed(**claims):
        return f.real(claims=f.claims | claims)

    for name in ("iss", "sub", "jti", "iat", "exp"):
        yield f.real(claims={k: v for k, v in f.claims.items() if k != name})
        for value in (None, True, 1.5, [], {}, "", "x", f"{f.claims[name]}\x00", -1, 2**63, 10**400):
            yield changed(**{name: value})
    text = json.dumps(f.claims)
    for name in ("iat", "exp"):
        yield from (changed(**{name: str(f.claims[name])}), changed(**{name: f.claims[name] + 0.5}))
        for value in ("NaN", "Infinity", "1e400", "9" * 5000):
            odd = text.replace(f'"{name}": {f.claims[name]}', f'"{name}": {value}')
            yield f.real(claims=odd.encode())
    for value in (f.claims["iat"] + 3600, 2**63, "x", str(f.claims["iat"]), None, True, []):
        yield changed(nbf=value)
    for sub in ("\ud800", "cust_\ud800", "😀", "%", "cust_" + "a" * 5000, f.claims["sub"].upper()):
        yield changed(sub=sub)
    for jti in ("' OR 1=1 --", f.claims["jti"].upper(), "{" + f.claims["jti"] + "}", f.claims["jti"] + "\n"):
        yield changed(jti=jti)
    yield from (changed(sub="cust_000000000000"), changed(iss="somebody-else"))
    for odd in (
        f'{text[:-1]}, "sub": "{f.claims["sub"]}"}}', f'{text[:-1]}, "exp": 9999999999}}',
        f'{text[:-1]}, "deep": {{"a": 1, "a": 2}}}}', f'{text[:-1]}, "deep": {"[" * 2500}{"]" * 2500}}}',
        f"[{text}]", '"text"', "", text[:-1], f"{text}x",
    ):  # fmt: skip
        yield f.real(claims=odd.encode())
    yield f.real(claims=text.encode("utf-16"))


def text_tricks(f):
    head, body, signature = f.token.split(".")
    for tail in ("=", "==", ".", ".x", "x", "AAAA", "\x00", "%00", "é", ",", "#", "\xa0", "\x85", " x"):
        yield f.token + tail
    yield from (
        f"{head}.{body}", f"{head}=.{body}.{signature}", f"{head}.{body}==.{signature}",
        f"{head}.{body}.{signature[:-5]}+/+/{signature[-1]}", f"{head}. {body}.{signature}",
        f"{head}\t.{body}.{signature}", f"{body}.{head}.{signature}", f"{f.token}.{signature}",
        ".".join([head, body, signature, body, signature]), f".{body}.{signature}", f"{head}..{signature}",
        f"{head}.{body}.", "..", *(f"{head}.{body}.{base64url(bytes(size))}" for size in (1, 256, 2000)),
        json.dumps({"protected": head, "payload": body, "signature": signature}),
        f"{head}.{body}.{'A' * 2**20}", "." * 2**20,
        f.real(claims=f.claims | {"x": "y" * 2**20}), f.real(b"[" * 2**20),
    )  # fmt: skip
    # 256 bytes leave four bits of the last character unused: other spellings of the same signature.
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"  # pragma: allowlist secret
    first = letters.index(signature[-1]) // 16 * 16
    yield from (f.token[:-1] + other for other in letters[first : first + 16] if other != signature[-1])


@pytest.mark.parametrize("tricks", [algorithm_tricks, header_tricks, claim_tricks, text_tricks])
def test_every_forged_or_malformed_token_is_401(app, client, sql, tricks):
    customer = make_customer(client)
    path, forge = f"/api/customers/{customer['customerId']}", Forge(app, customer["license"])
    # The forge itself works: what it signs with nothing changed is let in.
    for good in (forge.real(), forge.real(claims=forge.claims | {"nbf": forge.claims["iat"] - 0.5})):
        assert client.get(path, headers=bearer(good)).status_code == 200
    send = {"path": "/api/usage/report", "method": "POST", "json": report_body(customer["customerId"])}
    for number, token in enumerate(tricks(forge)):
        # As a WSGI server hands it over.
        header = f"Bearer {token}".encode("utf-8", "surrogatepass").decode("latin-1")
        for request in ({"path": path}, {"path": "/api/customers"}, send):
            answer = client.open(environ_overrides={"HTTP_AUTHORIZATION": header}, **request)
            assert (number, token[:200], answer.status_code) == (number, token[:200], 401)
        if len(token) < 60_000 and token.strip() != customer["license"]:
            answer = client.post("/api/licenses/verify", json={"license": token})
            assert (number, answer.status_code, answer.json["valid"]) == (number, 200, False)
    assert sql("SELECT 1 FROM usage_reports") == []


def test_the_id_of_another_customer_with_a_known_license_id_is_401(app, client):
    customer, other = make_customer(client), make_customer(client)
    crossed = resign(app, customer["license"], sub=other["customerId"], customerId=other["customerId"])
    for route in sorted(set(GUARDED) - RENEWING):
        refusal(call(client, route, bearer(crossed), other), 401)


def test_neither_keys_nor_tokens_nor_addresses_reach_a_log(make_app, caplog, capsys):
    app = make_app(LOG_LEVEL="debug")
    logging.getLogger().addHandler(caplog.handler)  # the application has put its own in the place of all
    client, email, name = app.test_client(), "very.secret@example.com", "Erika Mustermann"
    customer = make_customer(client, email=email, name=name, companyName="Geheim AG")
    token = customer["license"]
    for route in GUARDS:
        for headers in (ADMIN, bearer(token), bearer(token + "x"), bearer("wrong-" + ADMIN_KEY), {}):
            call(client, route.replace("<path:path>", "x"), headers, customer).close()
    client.get(f"/api/customers?email={email}", headers=ADMIN)
    for body in ({"email": email, "name": name}, {"email": email, "nmae": name}):
        client.post("/api/customers", json=body, headers=ADMIN)
    client.post("/api/licenses/verify", json={"license": token})
    client.get(f"/api/licenses/{token}", headers=ADMIN)
    for command in (["show"], ["explain"], ["export"], ["erase", "--yes"]):
        args = ["customer", *command, "--id", customer["customerId"]]
        assert app.test_cli_runner().invoke(args=args).exit_code == 0
    text = capsys.readouterr().err
    assert text.count('"logger":"app.access"') > 100
    private = app.extensions["billing.settings"].license_private_key_path.read_text().splitlines()[5]
    lines = [text, *(json.dumps(record.__dict__, default=str) for record in caplog.records)]
    for secret in (email, name, "Geheim AG", ADMIN_KEY, *token.split(".")[1:], private):
        assert not [line for line in lines if secret in line]
