"""Settings that are wrong end the start with one line, which names the setting and tells no secret."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.config import ConfigError, load_settings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATABASE_URL", "mysql://u@h/d"),
        ("DATABASE_URL", "postgresql://u:hunter2%zz@h/d"),  # pragma: allowlist secret
        ("DATABASE_URL", "postgresql://u:hunter2@h/d?sslmod=require"),  # pragma: allowlist secret
        ("DATABASE_URL", "postgresql://u:hunter2@[::1/d"),  # pragma: allowlist secret
        ("RATELIMIT_ADMIN", "²/minute"),
        ("RATELIMIT_ADMIN", "0/minute"),
        ("RATELIMIT_ADMIN", "60/week"),
        ("PORT", "65536"),
        ("TRIAL_DAYS", "0"),
        ("BASE_URL", "ftp://h"),
    ],
)
def test_a_malformed_setting_is_named(name: str, value: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_settings({name: value})
    line = str(refused.value)
    assert line.startswith(f"{name}: ")
    assert "\n" not in line
    assert "hunter2" not in line


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://billing@/billing?host=/run/postgresql",
        "postgres://u:p%25ss@one:5432,two:5433/d?target_session_attrs=read-write",  # pragma: allowlist secret
    ],
)
def test_any_url_of_libpq_is_taken(url: str) -> None:
    assert load_settings({"DATABASE_URL": url}).database_url == url


def test_a_dotenv_that_is_no_text_is_one_line(copy_of_service: Path) -> None:
    (copy_of_service / ".env").write_bytes(b"BASE_URL=https://caf\xe9.example.com\n")
    done = subprocess.run(
        [sys.executable, "-c", "import wsgi"], cwd=copy_of_service, text=True, capture_output=True,
        check=False, env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(".env: cannot be read as UTF-8 text")
    assert done.stderr.count("\n") == 1
