"""Where the license keys are: the signing key from command, environment or file; public keys on record."""

import base64
import logging
import os
import shlex
import signal
import stat
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from app.config import ConfigError, Settings
from app.licenses import InvalidKey, PublicKey, SigningKey, parse_private_key, parse_public_key

COMMAND_SECONDS: Final = 15
CHECK_SECONDS: Final = 2
"""How often the key files are looked at, and a key that could not be loaded is tried again."""
PUBLISHED_SECONDS: Final = 330
"""How long a new key is published before it signs: the JWK Set's max-age, and half a minute."""
log = logging.getLogger(__name__)


class Keyring:
    """One per process. Follows the key files, so that a rotation needs no restart."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._keys: list[SigningKey] = []
        self._failure = ConfigError("no signing key")
        self._loaded_from: object = None
        self._checked_at = float("-inf")
        self.public_keys: dict[str, tuple[PublicKey, float]] = {}
        """By id, those that were looked up, and when."""

    def signing_key(self) -> SigningKey:
        """The current one. Raises ConfigError, one plain line, when there is none or it cannot be used."""
        return self.keys()[0]

    def keys(self) -> list[SigningKey]:
        """See `load_keys`; changed key files are noticed within seconds. Raises ConfigError."""
        with self._lock:
            if time.monotonic() - self._checked_at > CHECK_SECONDS:
                self._load_if_changed()
                self._checked_at = time.monotonic()
            if not self._keys:
                raise self._failure
            return self._keys

    def _load_if_changed(self) -> None:
        settings, source = self._settings, None
        if self._keys and key_is_elsewhere(settings):
            return
        with suppress(OSError):
            info = settings.license_private_key_path.stat()
            source = info.st_mtime_ns, info.st_ino, _waits_for_caches(settings)
        if self._keys and source == self._loaded_from:
            return
        try:
            self._keys, self._loaded_from = load_keys(settings), source
        except ConfigError as error:
            self._failure = error
            if self._keys:
                log.error("the changed key file cannot be used, the old key goes on signing: %s", error)


def load_signing_key(settings: Settings) -> SigningKey:
    """The one that signs. Raises ConfigError with one line that names the setting."""
    return load_keys(settings)[0]


def load_keys(settings: Settings) -> list[SigningKey]:
    """The key that signs, by command over environment over file; then the file's next or previous key.

    Raises ConfigError with one line that names the setting.
    """
    source = key_is_elsewhere(settings)
    if source:
        command = settings.license_private_key_command
        return [_parse(source, _run(source, command) if command else settings.license_private_key or "")]
    newest, waits = newest_key(settings), _waits_for_caches(settings)
    try:
        previous = _read_private(previous_key_path(settings))
    except ConfigError:
        if waits:
            raise
        return [newest]
    return [previous, newest] if waits else [newest, previous]


def newest_key(settings: Settings) -> SigningKey:
    """The key of LICENSE_PRIVATE_KEY_PATH, which may have to wait until it signs. Raises ConfigError."""
    private, public = settings.license_private_key_path, settings.license_public_key_path
    key = _read_private(private)
    try:
        kid = parse_public_key(public.read_bytes()).kid
    except FileNotFoundError:
        return key
    except (OSError, InvalidKey) as error:
        raise ConfigError(f"LICENSE_PUBLIC_KEY_PATH: {public}: {error}") from None
    if kid != key.public.kid:
        raise ConfigError(
            f"LICENSE_PUBLIC_KEY_PATH: {public} does not belong to the private key {private}; "
            f"to write it again: openssl rsa -in {private} -pubout -out {public}"
        )
    return key


def key_is_elsewhere(settings: Settings) -> str | None:
    """The setting that outranks the key file, if one does."""
    if settings.license_private_key_command:
        return "LICENSE_PRIVATE_KEY_COMMAND"
    return "LICENSE_PRIVATE_KEY" if settings.license_private_key else None


def previous_key_path(settings: Settings) -> Path:
    """The key before the last rotation, which signs until caches have the new one."""
    path = settings.license_private_key_path
    return path.with_name(f"{path.name}.previous")


def write_key_files(settings: Settings, pem: bytes, *, keep_previous: bool = False) -> SigningKey:
    """Write a key pair to the configured paths, each file by an atomic rename, private ones with mode 0600.

    With `keep_previous` the key that is there goes on signing until the new one was published long enough.
    Raises ConfigError when a file cannot be written.
    """
    key, path = parse_private_key(pem), settings.license_private_key_path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        settings.license_public_key_path.parent.mkdir(parents=True, exist_ok=True)
        if keep_previous:
            _write(previous_key_path(settings), path.read_bytes(), 0o600)
        else:
            previous_key_path(settings).unlink(missing_ok=True)
        _write(path, pem, 0o600)
        _write(settings.license_public_key_path, key.public.pem.encode(), 0o644)
    except OSError as error:
        raise ConfigError(f"LICENSE_PRIVATE_KEY_PATH: {error.filename}: {error.strerror}") from None
    return key


def _waits_for_caches(settings: Settings) -> bool:
    """Whether the newest key is published, but caches of the JWK Set may not have it yet.

    The previous key's file is as old as the rotation. The newest one's may be younger: put back, or replaced.
    """
    try:
        rotated_at = previous_key_path(settings).stat().st_mtime
    except OSError:
        return False
    return 0 <= time.time() - rotated_at < PUBLISHED_SECONDS


def _read_private(path: Path) -> SigningKey:
    try:
        if path.stat().st_mode & stat.S_IRWXO:
            raise ConfigError(f"LICENSE_PRIVATE_KEY_PATH: {path} is open to everyone; run: chmod 600 {path}")
        return parse_private_key(path.read_bytes())
    except InvalidKey as error:
        raise ConfigError(f"LICENSE_PRIVATE_KEY_PATH: {path}: {error}") from None
    except OSError as error:
        hint = "; run: flask keys generate" if isinstance(error, FileNotFoundError) else ""
        raise ConfigError(f"LICENSE_PRIVATE_KEY_PATH: {path}: {error.strerror}{hint}") from None


def _parse(name: str, text: str) -> SigningKey:
    """PEM as it is, on one line with ``\\n`` for line ends, or in base64."""
    text = text.strip().strip('"').replace("\\n", "\n")
    try:
        is_pem = text.startswith("-----BEGIN")
        return parse_private_key(
            text.encode() if is_pem else base64.b64decode("".join(text.split()), validate=True)
        )
    except InvalidKey as error:
        raise ConfigError(f"{name}: {error}") from None
    except ValueError:
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
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its children have the pipes open too
            raise ConfigError(f"{name}: no answer within {COMMAND_SECONDS} s") from None
    if process.returncode != 0:
        lines = err.strip().splitlines() or ["no message"]
        raise ConfigError(f"{name}: exit code {process.returncode}: {lines[-1]}")
    return out


def _write(path: Path, content: bytes, mode: int) -> None:
    new = path.with_name(f".{path.name}.{os.getpid()}")
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
