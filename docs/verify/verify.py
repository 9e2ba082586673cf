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
# What is left when no license is valid: the trial's figures. Data is kept, whatever happens.
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
        self.state = read_state(file)

    def check(self) -> dict[str, Any]:
        """What may be used now, and why: `code` is VALID or one of `Refused`. Needs no network."""
        try:
            claims, listed = self._read_license(self.state["license"]), self.state["list"]
            # A clock that was set back gains nothing: the present is not before what was signed.
            now = max(time.time(), claims["iat"], listed["iat"])
            if claims["jti"] in listed["revoked"]:
                raise Refused("REVOKED")
            if now >= claims["exp"] + LEEWAY:
                raise Refused("EXPIRED")
            if LIST_MAX_AGE is not None and now - (listed["iat"] or claims["iat"]) > LIST_MAX_AGE:
                raise Refused("LIST_TOO_OLD")
            return {"code": "VALID", **{name: claims[name] for name in UNLICENSED}}
        except Refused as reason:
            return {"code": str(reason), **UNLICENSED}

    def install(self, token: str) -> None:
        """Take a license: from the operator, from `refresh`, or out of the answer to a usage report."""
        claims = self._read_license(token)
        if claims["iat"] < self.state["newestIat"]:
            raise Refused("OLDER")  # the license of a better plan does not come back after a downgrade
        self._save(license=token, newestIat=claims["iat"])

    def refresh(self, url: str) -> list[str]:
        """Fetch keys, revocation list and license; answers what failed. A failure changes nothing."""
        problems = []
        for step in (self._fetch_keys, self._fetch_list, self._fetch_license):
            try:
                step(url)
            except (OSError, Refused, ValueError, KeyError, TypeError) as error:
                problems.append(f"{step.__name__[1:]}: {error}")
        return problems

    def _fetch_keys(self, url: str) -> None:
        keys = _get(f"{url}/.well-known/jwks.json")["keys"]
        if not all(isinstance(key["kid"], str) for key in keys):
            raise ValueError("a key without kid")
        self._save(keys=keys)

    def _fetch_list(self, url: str) -> None:
        claims = self._read(_get(f"{url}/api/licenses/revocations")["revocations"])
        if "revoked" not in claims or claims["exp"] + LEEWAY <= time.time():
            raise Refused("LIST_TOO_OLD")
        if claims["iat"] < self.state["list"]["iat"]:
            raise Refused("OLDER")
        # From here on it counts whatever its age: what it names stays revoked.
        self._save(list={"iat": claims["iat"], "revoked": claims["revoked"]})

    def _fetch_license(self, url: str) -> None:
        token = self.state["license"]
        if token:  # an expired one still serves here for thirty days
            self.install(_get(f"{url}/api/licenses/{self.customer_id}", token)["license"])

    def _read_license(self, token: str | None) -> dict[str, Any]:
        if token is None:
            raise Refused("NO_LICENSE")
        claims = self._read(token) if len(token) <= MAX_TOKEN else {}
        if "jti" not in claims or "features" not in claims:
            raise Refused("MALFORMED")
        if claims["sub"] != self.customer_id:
            raise Refused("OTHER_CUSTOMER")
        return claims

    def _read(self, token: str) -> dict[str, Any]:
        """The claims, if one of the service's keys signed them. The caller checks the times."""
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
        write_file(self.file, json.dumps(self.state))


def read_state(file: Path) -> dict[str, Any]:
    """The stored state. A damaged file counts as none: `--install` and `--refresh` fill it again."""
    state = {"license": None, "newestIat": 0, "list": {"iat": 0, "revoked": []}, "keys": []}
    try:
        stored = json.loads(file.read_text())
        listed = stored["list"]
        if (
            isinstance(stored["license"], str | None)
            and type(stored["newestIat"]) is type(listed["iat"]) is int
            and isinstance(listed["revoked"], list)
            and all(isinstance(key["kid"], str) for key in stored["keys"])
        ):
            return {name: stored[name] for name in state}
    except (FileNotFoundError, KeyError, TypeError, ValueError, RecursionError):
        pass
    return state


def write_file(file: Path, text: str) -> None:
    """Replace the file; after a crash or a power cut it is the old one or the new one, whole."""
    new = file.with_name(file.name + ".new")
    with new.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    new.replace(file)
    folder = os.open(file.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def _get(url: str, token: str | None = None) -> Any:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    answer = requests.get(url, headers=headers, timeout=10)
    answer.raise_for_status()
    return answer.json()


def main() -> int:
    parser = argparse.ArgumentParser(description="Check a license, offline first.")
    parser.add_argument("state", type=Path, help="file that keeps license, keys and revocation list")
    parser.add_argument("customer_id")
    parser.add_argument("--refresh", metavar="URL", help="address of the billing service")
    parser.add_argument("--install", metavar="LICENSE")
    given = parser.parse_args()
    if not given.state.parent.is_dir():
        parser.error(f"there is no folder {given.state.parent}")
    holder = LicenseHolder(given.state, given.customer_id)
    for problem in holder.refresh(given.refresh) if given.refresh else []:
        print(problem, file=sys.stderr)
    if given.install:
        try:
            holder.install(given.install)
        except Refused as reason:
            print(f"install: {reason}", file=sys.stderr)
    decision = holder.check()
    print(json.dumps(decision))
    return int(decision["code"] != "VALID")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except OSError as error:  # the state file cannot be read or written
        print(f"verify.py: {error}", file=sys.stderr)
        sys.exit(2)
