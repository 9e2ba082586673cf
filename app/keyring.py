"""Where the license keys are: the signing key from file, environment or command, public ones on record."""

import base64
import binascii
import logging
import os
import shlex
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
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
RETRY_SECONDS: Final = 5
EXCHANGE_SECONDS: Final = 0.5
PUBLIC_KEY_SECONDS: Final = 60
log = logging.getLogger(__name__)


class Keyring:
    """One per process. Follows the key file, so that a rotation needs no restart."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._signing: SigningKey | None = None
        self._failure: tuple[float, ConfigError] | None = None
        self._file_stamp: tuple[int, int] | None = None
        self._looked_at = 0.0
        self._public: dict[str, tuple[PublicKey, float]] = {}

    def signing_key(self) -> SigningKey:
        """The current one; a changed key file is noticed within seconds.

        Raises ConfigError, one plain line, when there is none or it cannot be used.
        """
        with self._lock:
            if self._signing is None:
                self._file_stamp = self._stamp()
                self._signing = self._load()
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

    def _load(self) -> SigningKey:
        """The first load; after a failed one, whoever asks within seconds is told the same at once."""
        if self._failure and time.monotonic() - self._failure[0] < RETRY_SECONDS:
            raise self._failure[1]
        try:
            return load_signing_key(self._settings)
        except ConfigError as error:
            self._failure = time.monotonic(), error
            raise

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
            self._signing = load_signing_key(self._settings, check_public=False)
            self._file_stamp = stamp
        except ConfigError as error:
            log.error("the changed key file cannot be used, signing goes on with the old key: %s", error)


def load_signing_key(settings: Settings, *, check_public: bool = True) -> SigningKey:
    """Command over environment over file. Raises ConfigError with one line that names the setting."""
    key = _private_key(settings)
    if not check_public or key_is_elsewhere(settings) or _public_file_matches(settings, key):
        return key
    # A rotation exchanges two files, one after the other: look once more.
    time.sleep(EXCHANGE_SECONDS)
    key = _private_key(settings)
    if not _public_file_matches(settings, key):
        private, public = settings.license_private_key_path, settings.license_public_key_path
        raise ConfigError(
            f"LICENSE_PUBLIC_KEY_PATH: {public} does not belong to the private key {private}; "
            f"to write it anew: openssl rsa -in {private} -pubout -out {public}"
        )
    return key


def _private_key(settings: Settings) -> SigningKey:
    source, pem = _read_private_key(settings)
    try:
        return parse_private_key(pem)
    except InvalidKey as error:
        raise ConfigError(f"{source}: {error}") from None


def _public_file_matches(settings: Settings, key: SigningKey) -> bool:
    """Also when there is none: what the private key says is enough."""
    try:
        return parse_public_key(settings.license_public_key_path.read_bytes()).kid == key.public.kid
    except FileNotFoundError:
        return True
    except OSError as error:
        path = settings.license_public_key_path
        raise ConfigError(f"LICENSE_PUBLIC_KEY_PATH: {path}: {error.strerror}") from None
    except InvalidKey as error:
        raise ConfigError(f"LICENSE_PUBLIC_KEY_PATH: {error}") from None


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
        process = subprocess.Popen(
            shlex.split(command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, errors="replace", start_new_session=True,
        )  # fmt: skip
    except (OSError, ValueError, IndexError) as error:
        raise ConfigError(f"{name}: cannot be run: {error}") from None
    with process:
        try:
            out, err = process.communicate(timeout=COMMAND_SECONDS)
        except subprocess.TimeoutExpired:
            # Its own children too: they hold the pipes, and would be waited for.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise ConfigError(f"{name}: no answer within {COMMAND_SECONDS} s") from None
    if process.returncode != 0:
        said = err.strip().splitlines()
        raise ConfigError(f"{name}: exit code {process.returncode}: {said[-1] if said else 'no message'}")
    return out


def _write(path: Path, content: bytes, mode: int) -> None:
    """Put a file in its place at once. It keeps the owner and the group's access of the one before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "wb") as file:
        with suppress(FileNotFoundError):
            before = path.stat()
            mode |= before.st_mode & (stat.S_IRGRP | stat.S_IRUSR | stat.S_IWUSR)
            if os.geteuid() == 0:
                os.fchown(descriptor, before.st_uid, before.st_gid)
        os.fchmod(descriptor, mode)
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    new.replace(path)
