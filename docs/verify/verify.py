"""How an instance checks its license, offline first. Copy this page into yours.

    pip install "python-jose[cryptography]" requests
    python verify.py STATE_FILE CUSTOMER_ID [--install LICENSE] [--refresh BILLING_API_URL]

`refresh` at start and every hour or so, with the network; `check` as often as you like, without it.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import requests
from jose import jwt
from jose.exceptions import JOSEError

ISSUER = "zemfyre-billing"
LEEWAY = 60  # seconds that two clocks may differ
LIST_MAX_AGE = 7 * 86400  # seconds without a newer revocation list; None where there is never a network
MAX_TOKEN = 8192
EMPTY_LIST: dict[str, Any] = {"iat": 0, "revoked": []}
# What is left when no license holds: the trial's figures. Data is kept, whatever happens.
UNLICENSED = {
    "plan": "trial",
    "features": {
        "maxDevices": 5, "dataRetentionDays": 30, "canExportData": True, "hasAdvancedAlerts": False,
        "hasApiAccess": True, "hasMqttAccess": True, "hasCustomBranding": False,
    },
    "limits": {"maxUsers": 5, "maxAlertRules": 25, "maxDashboards": 10},
}  # fmt: skip


class Refused(Exception):
    """MALFORMED, UNKNOWN_KEY, OTHER_CUSTOMER, OLDER, REVOKED, EXPIRED, LIST_TOO_OLD or NO_LICENSE."""


class LicenseHolder:
    """The license of one instance; all it knows is in one JSON file."""

    def __init__(self, file: Path, customer_id: str) -> None:
        self.file, self.customer_id = file, customer_id
        self.state: dict[str, Any] = {"license": None, "newestIat": 0, "list": EMPTY_LIST, "keys": []}
        if file.exists():
            self.state |= json.loads(file.read_text())

    def check(self) -> dict[str, Any]:
        """What may be used now, and why: `code` is VALID or what `Refused` says. Needs no network."""
        try:
            claims, listed = self._license(self.state["license"]), self.state["list"]
            # A clock that was set back gains nothing: what was signed has happened.
            now = max(time.time(), claims["iat"], listed["iat"])
            if claims["jti"] in listed["revoked"]:
                raise Refused("REVOKED")
            if now >= claims["exp"] + LEEWAY:
                raise Refused("EXPIRED")
            if LIST_MAX_AGE is not None and now - (listed["iat"] or claims["iat"]) > LIST_MAX_AGE:
                raise Refused("LIST_TOO_OLD")
            return {"code": "VALID", **{name: claims[name] for name in UNLICENSED}}
        except Refused as why:
            return {"code": str(why), **UNLICENSED}

    def install(self, token: str) -> None:
        """Take a license: from the operator, from `refresh`, or out of the answer to a usage report."""
        claims = self._license(token)
        if claims["iat"] < self.state["newestIat"]:
            raise Refused("OLDER")  # nobody goes back to the better plan of last year
        self._save(license=token, newestIat=claims["iat"])

    def refresh(self, url: str) -> list[str]:
        """Fetch keys, revocation list and license. What fails is told, and what was held stays."""
        problems = []
        for step in (self._fetch_keys, self._fetch_list, self._fetch_license):
            try:
                step(url)
            except (requests.RequestException, Refused, ValueError, KeyError) as error:
                problems.append(f"{step.__name__[1:]}: {error}")
        return problems

    def _fetch_keys(self, url: str) -> None:
        self._save(keys=_get(f"{url}/.well-known/jwks.json")["keys"])

    def _fetch_list(self, url: str) -> None:
        claims = self._read(_get(f"{url}/api/licenses/revocations")["revocations"])
        if "revoked" not in claims or claims["exp"] + LEEWAY <= time.time():
            raise Refused("LIST_TOO_OLD")
        if claims["iat"] < self.state["list"]["iat"]:
            raise Refused("OLDER")
        # From here on it is honoured whatever its age: what it names stays revoked.
        self._save(list={"iat": claims["iat"], "revoked": claims["revoked"]})

    def _fetch_license(self, url: str) -> None:
        held = self.state["license"]
        if held:  # an expired one serves here for thirty days
            self.install(_get(f"{url}/api/licenses/{self.customer_id}", held)["license"])

    def _license(self, token: str | None) -> dict[str, Any]:
        if token is None:
            raise Refused("NO_LICENSE")
        claims = self._read(token) if len(token) <= MAX_TOKEN else {}
        if "jti" not in claims or "features" not in claims:
            raise Refused("MALFORMED")
        if claims["sub"] != self.customer_id:
            raise Refused("OTHER_CUSTOMER")
        return claims

    def _read(self, token: str) -> dict[str, Any]:
        """The claims, if a key of ours signed them. Time is for the caller to judge."""
        try:
            header = jwt.get_unverified_header(token)
            keys = [key for key in self.state["keys"] if key["kid"] == header["kid"]]
            if header.keys() - {"alg", "kid", "typ"}:
                raise Refused("MALFORMED")
            if not keys:
                raise Refused("UNKNOWN_KEY")
            return jwt.decode(
                token, keys[0], algorithms=["RS256"], issuer=ISSUER, options={"verify_exp": False}
            )
        except (JOSEError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise Refused("MALFORMED") from error

    def _save(self, **changes: Any) -> None:
        self.state |= changes
        new = self.file.with_suffix(".new")
        new.write_text(json.dumps(self.state))
        os.replace(new, self.file)  # a crash leaves the old file or the new one


def _get(url: str, token: str | None = None) -> Any:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    answer = requests.get(url, headers=headers, timeout=10)
    answer.raise_for_status()
    return answer.json()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("state", type=Path)
    parser.add_argument("customer_id")
    parser.add_argument("--refresh", metavar="URL")
    parser.add_argument("--install", metavar="LICENSE")
    given = parser.parse_args()
    holder = LicenseHolder(given.state, given.customer_id)
    for problem in holder.refresh(given.refresh) if given.refresh else []:
        print(problem, file=sys.stderr)
    if given.install:
        try:
            holder.install(given.install)
        except Refused as why:
            print(f"install: {why}", file=sys.stderr)
    decision = holder.check()
    print(json.dumps(decision))
    sys.exit(decision["code"] != "VALID")
