"""Where the license keys are: the signing key from file, environment or command, public ones on record."""

import base64
import binascii
import os
import shlex
import stat
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from app.config import ConfigError, Settings
from app.licenses import (
    InvalidKey,
    PublicKey,
    SigningKey,
    generate_private_key,
    parse_private_key,
    parse_public_key,
)

COMMAND_SECONDS: Final = 15
RELOAD_SECONDS: Final = 2
PUBLIC_KEY_SECONDS: Final = 60


class Keyring:
    """One per process. Follows the key file, so that a rotation needs no restart."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._signing: SigningKey | None = None
        self._file_stamp: tuple[int, int] | None = None
        self._looked_at = 0.0
        self._public: dict[str, tuple[PublicKey, float]] = {}

    def signing_key(self) -> SigningKey:
        """The current one; a changed key file is noticed within seconds.

        Raises ConfigError, one plain line, when there is none or it cannot be used.
        """
        with self._lock:
            if self._signing is None:
                self._signing, self._file_stamp = load_signing_key(self._settings), self._stamp()
                self._looked_at = time.monotonic()
            elif time.monotonic() - self._looked_at > RELOAD_SECONDS:
                self._looked_at = time.monotonic()
                self._follow_file()
            return self._signing

    def public_key(self, kid: str, look_up: Callable[[str], PublicKey | None]) -> PublicKey | None:
        """The key with this id; `look_up` asks the record for one not seen in the last minute."""
        known = self._public.get(kid)
        if known and time.monotonic() - known[1] < PUBLIC_KEY_SECONDS:
            return known[0]
        found = look_up(kid)
        if found is None:
            self._public.pop(kid, None)
            return None
        # Keep the parsed object: parsing costs more than a hundred verifications.
        kept = known[0] if known and known[0] == found else found
        self._public[kid] = (kept, time.monotonic())
        return kept

    def _stamp(self) -> tuple[int, int] | None:
        if self._settings.license_private_key_command or self._settings.license_private_key:
            return None
        try:
            info = self._settings.license_private_key_path.stat()
        except OSError:
            return None
        return info.st_mtime_ns, info.st_ino

    def _follow_file(self) -> None:
        stamp = self._stamp()
        if stamp is None or stamp == self._file_stamp:
            return
        try:
            self._signing, self._file_stamp = (
                load_signing_key(self._settings, check_public=False),
                stamp,
            )
        except ConfigError:
            return  # half-way through an exchange: go on with the one we have, look again soon


def load_signing_key(settings: Settings, *, check_public: bool = True) -> SigningKey:
    """Command over environment over file. Raises ConfigError with one line that names the setting."""
    source, pem = _read_private_key(settings)
    try:
        key = parse_private_key(pem)
    except InvalidKey as error:
        raise ConfigError(f"{source}: {error}") from None
    if check_public and source == "LICENSE_PRIVATE_KEY_PATH" and settings.license_public_key_path.exists():
        try:
            public = parse_public_key(settings.license_public_key_path.read_bytes())
        except InvalidKey as error:
            raise ConfigError(f"LICENSE_PUBLIC_KEY_PATH: {error}") from None
        if public.kid != key.public.kid:
            raise ConfigError(
                f"LICENSE_PUBLIC_KEY_PATH: {settings.license_public_key_path} does not belong to "
                f"the private key {settings.license_private_key_path}"
            )
    return key


def write_key_files(settings: Settings, pem: bytes | None = None) -> SigningKey:
    """Write a fresh pair (or `pem`) to the configured paths, each by an atomic rename, mode 0600."""
    pem = pem or generate_private_key()
    key = parse_private_key(pem)
    _write(settings.license_private_key_path, pem, 0o600)
    _write(settings.license_public_key_path, key.public.pem.encode(), 0o644)
    return key


def key_is_elsewhere(settings: Settings) -> str | None:
    """The setting that outranks the key file, if one does: then files of ours would not be used."""
    if settings.license_private_key_command:
        return "LICENSE_PRIVATE_KEY_COMMAND"
    return "LICENSE_PRIVATE_KEY" if settings.license_private_key else None


def _read_private_key(settings: Settings) -> tuple[str, bytes]:
    if settings.license_private_key_command:
        name = "LICENSE_PRIVATE_KEY_COMMAND"
        return name, _decoded(name, _run(name, settings.license_private_key_command))
    if settings.license_private_key:
        return "LICENSE_PRIVATE_KEY", _decoded("LICENSE_PRIVATE_KEY", settings.license_private_key)
    path = settings.license_private_key_path
    try:
        if path.stat().st_mode & stat.S_IRWXO:
            raise ConfigError(f"LICENSE_PRIVATE_KEY_PATH: {path} is open to everyone; run: chmod 600 {path}")
        return "LICENSE_PRIVATE_KEY_PATH", path.read_bytes()
    except OSError as error:
        hint = "; run: flask keys generate" if isinstance(error, FileNotFoundError) else ""
        raise ConfigError(f"LICENSE_PRIVATE_KEY_PATH: {path}: {error.strerror}{hint}") from None


def _decoded(name: str, text: str) -> bytes:
    """PEM as it is, on one line with ``\\n`` for line ends, or in base64."""
    text = text.strip().strip('"').replace("\\n", "\n")
    if text.startswith("-----BEGIN"):
        return text.encode()
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise ConfigError(f"{name}: neither PEM nor base64 of PEM") from None


def _run(name: str, command: str) -> str:
    try:
        done = subprocess.run(
            shlex.split(command), capture_output=True, text=True, timeout=COMMAND_SECONDS,
            stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise ConfigError(f"{name}: no answer within {COMMAND_SECONDS} s") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{name}: cannot be run: {error}") from None
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        raise ConfigError(f"{name}: exit code {done.returncode}: {said[-1] if said else 'no message'}")
    return done.stdout


def _write(path: Path, content: bytes, mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with open(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    new.replace(path)
