"""What the console's tests share: one time zone, and a terminal."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping

import pytest

from tests.server import ROOT, clean_environ

SHORT_RULE = "─" * 41
RULE = "─" * 77
DOUBLE_RULE = "═" * 77


@pytest.fixture(autouse=True)
def in_one_time_zone(monkeypatch):
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def terminal(environ) -> Callable[..., tuple[int, str]]:
    """Run a command as at a terminal, `typed` on its keyboard: exit code, and all that the screen shows."""

    def run(*args: str, typed: str = "", columns: int = 80, lines: int = 500, **more: str) -> tuple[int, str]:
        screen, keyboard = pty.openpty()
        fcntl.ioctl(keyboard, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        settings: Mapping[str, str] = clean_environ(environ | {"TERM": "xterm", "PAGER": "cat"} | more)
        process = subprocess.Popen(
            [sys.executable, "-m", "flask", *args], cwd=ROOT, env=settings,
            stdin=keyboard, stdout=keyboard, stderr=keyboard, start_new_session=True,
        )  # fmt: skip
        os.close(keyboard)
        os.write(screen, typed.encode())
        shown = b""
        try:
            while part := os.read(screen, 65536):
                shown += part
        except OSError:  # Linux's way to say that the other side is closed
            pass
        os.close(screen)
        return process.wait(30), shown.decode().replace("\r\n", "\n")

    return run
