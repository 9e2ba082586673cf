"""Runs tests through PgBouncer in transaction pooling: `python -m tests.bench.pgbouncer [pytest arguments]`.

Every transaction gets a server connection of its own (server_lifetime = 0): what relied on the session of
the one before would fail. PgBouncer comes from the distribution: apt-get install pgbouncer.
"""

import os
import pwd
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, urlsplit

from tests.bench.checkout import ROOT, free_port, postgres

DEFAULT: Final = ["tests/api/test_usage.py"]
CONFIG: Final = """
[databases]
* = host={sockets} user=billing
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 4
max_client_conn = 500
server_lifetime = 0
logfile = {folder}/pgbouncer.log
ignore_startup_parameters = extra_float_digits
"""


def main() -> None:
    program = shutil.which("pgbouncer") or "/usr/sbin/pgbouncer"
    if not Path(program).exists():
        raise SystemExit("PgBouncer is needed: apt-get install pgbouncer")
    port = free_port()
    with postgres() as (url, folder):
        sockets = parse_qs(urlsplit(url).query)["host"][0]
        own = folder / "pgbouncer"
        own.mkdir()
        (own / "pgbouncer.ini").write_text(CONFIG.format(sockets=sockets, port=port, folder=own))
        options: dict[str, str | int] = {}
        if os.geteuid() == 0:  # PgBouncer refuses to run as root
            owner = Path(sockets).stat()
            os.chown(own, owner.st_uid, owner.st_gid)
            options = {"user": pwd.getpwuid(owner.st_uid).pw_name, "group": owner.st_gid}
        pooler = subprocess.Popen([program, own / "pgbouncer.ini"], **options)  # type: ignore[call-overload]
        try:
            time.sleep(1)
            done = subprocess.run(
                [sys.executable, "-m", "pytest", "-n0", *(sys.argv[1:] or DEFAULT)],
                cwd=ROOT,
                env=os.environ | {"TEST_DATABASE_URL": f"postgresql://billing@127.0.0.1:{port}/billing"},
                check=False,
            )
        finally:
            pooler.terminate()
            pooler.wait(10)
    raise SystemExit(done.returncode)


if __name__ == "__main__":
    main()
