"""Settings that are wrong end the start with one line, which names the setting and shows no secret."""

import os
import subprocess
import sys

import pytest

from app import embedded
from app.config import ConfigError, load_settings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATABASE_URL", "mysql://u@h/d"),
        ("DATABASE_URL", "postgresql://u:hunter2%zz@h/d"),  # pragma: allowlist secret
        ("DATABASE_URL", "postgresql://u:hunter2@h/d?sslmod=require"),  # pragma: allowlist secret
        ("DATABASE_URL", "postgresql://u:hunter2@[::1/d"),  # pragma: allowlist secret
        ("ADMIN_API_KEY", "hunter2"),  # of fewer than 8 characters
        ("ADMIN_API_KEY", "long-enough-key,hunter2"),
        ("ADMIN_API_KEY", "hunter2 with spaces"),
        ("STRIPE_SECRET_KEY", "pk_test_publishable"),
        ("STRIPE_WEBHOOK_SECRET", "hunter2"),
        ("RATELIMIT_ADMIN", "²/minute"),
        ("RATELIMIT_ADMIN", "0/minute"),
        ("RATELIMIT_ADMIN", "60/week"),
        ("PORT", "65536"),
        ("PORT", "00000000031000000"),  # as many digits as hid what follows the first twelve
        ("TRIAL_DAYS", "0"),
        ("TRUSTED_PROXIES", "10.0.0.0/8"),
        ("OVERAGE", "maybe"),
        ("STRIPE_TAX", "maybe"),
        ("BASE_URL", "ftp://h"),
        ("BASE_URL", "https://h/base?x=1"),
        ("BASE_URL", "https://u:hunter2@h"),  # pragma: allowlist secret
        ("STRIPE_API_BASE", "https://a b"),
        ("LICENSE_PUBLIC_KEY_PATH", "keys/private-key.pem"),
    ],
)
def test_a_malformed_setting_is_named(name, value):
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
def test_any_url_of_libpq_is_taken(url):
    assert load_settings({"DATABASE_URL": url}).database_url == url


def test_a_folder_for_data_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"^DATA_DIR: .*/file/data: Not a directory$"):
        embedded.start(tmp_path / "file" / "data")


def test_a_dotenv_that_is_no_text_is_one_line(copy_of_service):
    (copy_of_service / ".env").write_bytes(b"BASE_URL=https://caf\xe9.example.com\n")
    done = subprocess.run(
        [sys.executable, "-c", "import wsgi"], cwd=copy_of_service, text=True, capture_output=True,
        check=False, env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(".env: cannot be read as UTF-8 text")
    assert done.stderr.count("\n") == 1
