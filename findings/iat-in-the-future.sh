#!/bin/sh
# A token whose `iat` is three seconds ahead: which libraries take it?  (seen 2026-11-27)
#
# RFC 7519, section 4.1.6, defines `iat` and asks nobody to compare it with a clock. A token that is used in the
# second it was made, on a machine whose clock is behind, is nevertheless refused by
#   PyJWT 2.15.1, Authlib 1.9.10, joserfc 1.8.0, google-auth 2.63.0 (PyPI), jsrsasign 11.1.5 (npm),
# each with its default leeway of none, and taken with 60 seconds of leeway. jose 6.2.18 (npm) takes it, but refuses
# it as soon as `maxTokenAge` is given. python-jose 3.5.0 and jwcrypto 1.6.1 (PyPI), jsonwebtoken 9.0.3 and
# fast-jwt 6.3.6 (npm) take it.
#
# Needs python3 with venv, node and npm. Exit code 1 when a library behaves in another way.

set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check PyJWT==2.15.1 Authlib==1.9.10 joserfc==1.8.0 \
  google-auth==2.63.0 "python-jose[cryptography]==3.5.0" jwcrypto==1.6.1 cryptography==50.0.2
npm install --silent --no-audit --no-fund jose@6.2.18 jsrsasign@11.1.5 jsonwebtoken@9.0.3 fast-jwt@6.3.6

cat >check.py <<'PY'
import time, warnings
import google.auth.jwt, jose.jwt, joserfc.jwk, joserfc.jwt, jwcrypto.jwk, jwcrypto.jwt, jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

warnings.simplefilter("ignore")
from authlib.jose import JsonWebToken

private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
pem = private.public_key().public_bytes(
    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
).decode()


def fresh():
    now = int(time.time())
    return jwt.encode({"iat": now + 3, "exp": now + 3600}, private, "RS256", headers={"kid": "k"})


def authlib(token, leeway):
    JsonWebToken(["RS256"]).decode(token, pem).validate(leeway=leeway)


def joserfc_(token, leeway):
    found = joserfc.jwt.decode(token, joserfc.jwk.RSAKey.import_key(pem), algorithms=["RS256"])
    joserfc.jwt.JWTClaimsRegistry(leeway=leeway).validate(found.claims)


def jwcrypto_(token, leeway):
    reader = jwcrypto.jwt.JWT(algs=["RS256"])
    reader.leeway = leeway
    reader.deserialize(token, jwcrypto.jwk.JWK.from_pem(pem.encode()))


LIBRARIES = {
    "PyJWT": (lambda token, leeway: jwt.decode(token, pem, algorithms=["RS256"], leeway=leeway), "refused"),
    "Authlib": (authlib, "refused"),
    "joserfc": (joserfc_, "refused"),
    "google-auth": (
        lambda token, leeway: google.auth.jwt.decode(token, certs={"k": pem}, clock_skew_in_seconds=leeway), "refused",
    ),
    "python-jose": (
        lambda token, leeway: jose.jwt.decode(token, pem, algorithms="RS256", options={"leeway": leeway}), "taken",
    ),
    "jwcrypto": (jwcrypto_, "taken"),
}
changed = False
for name, (verify, expected) in LIBRARIES.items():
    seen = {}
    for leeway in (0, 60):
        try:
            verify(fresh(), leeway)
            seen[leeway] = "taken"
        except Exception as error:
            seen[leeway] = "refused"
            print(f"{name}: {type(error).__name__}: {error}")
    print(f"{name}: without leeway {seen[0]}, with 60 s {seen[60]}")
    changed |= seen != {0: expected, 60: "taken"}
raise SystemExit(changed)
PY

cat >check.mjs <<'JS'
import { createSign, generateKeyPairSync } from "node:crypto";
import { createVerifier } from "fast-jwt";
import * as jose from "jose";
import jsonwebtoken from "jsonwebtoken";
import rs from "jsrsasign";

const { publicKey, privateKey } = generateKeyPairSync("rsa", { modulusLength: 2048 });
const pem = publicKey.export({ type: "spki", format: "pem" });
const encode = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
const fresh = () => {
  const now = Math.floor(Date.now() / 1000);
  const text = `${encode({ alg: "RS256", typ: "JWT", kid: "k" })}.${encode({ iat: now + 3, exp: now + 3600 })}`;
  return `${text}.${createSign("sha256").update(text).sign(privateKey, "base64url")}`;
};
const jsrsasign = (token, gracePeriod) => {
  const taken = rs.KJUR.jws.JWS.verifyJWT(token, rs.KEYUTIL.getKey(pem), { alg: ["RS256"], gracePeriod });
  if (!taken) throw new Error("verifyJWT answers false");
};
const options = { algorithms: ["RS256"] };
const aged = { ...options, maxTokenAge: "1h" };
const libraries = [
  ["jose", (token, s) => jose.jwtVerify(token, publicKey, { ...options, clockTolerance: s }), "taken"],
  ["jose, maxTokenAge", (token, s) => jose.jwtVerify(token, publicKey, { ...aged, clockTolerance: s }), "refused"],
  ["jsrsasign", jsrsasign, "refused"],
  ["jsonwebtoken", (token, s) => jsonwebtoken.verify(token, pem, { ...options, clockTolerance: s }), "taken"],
  ["fast-jwt", (token, s) => createVerifier({ key: pem, ...options, clockTolerance: s * 1000 })(token), "taken"],
];
let changed = false;
for (const [name, verify, expected] of libraries) {
  const seen = [];
  for (const leeway of [0, 60]) {
    try {
      await verify(fresh(), leeway);
      seen.push("taken");
    } catch (error) {
      seen.push("refused");
      console.log(`${name}: ${error.message}`);
    }
  }
  console.log(`${name}: without leeway ${seen[0]}, with 60 s ${seen[1]}`);
  changed ||= seen[0] !== expected || seen[1] !== "taken";
}
process.exit(changed ? 1 : 0);
JS

venv/bin/python check.py
node check.mjs
echo "as seen"
