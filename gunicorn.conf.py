"""Settings of the web server; `gunicorn wsgi:app` reads this file by itself.

The application is loaded here, in the master, so that its workers share the memory of all modules. SIGHUP
loads settings and keys again and replaces the workers; when a setting is wrong, the log names it and the
service goes on with the old ones.
"""

import atexit
import gc
import logging
import os
import shutil
import socket
import sys
import tempfile
from contextlib import suppress
from typing import Any

is_reload = "wsgi" in sys.modules
shared_memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None

if not is_reload:  # prometheus_client reads the variable when it is imported
    metrics_dir = tempfile.mkdtemp(prefix="zemfyre-metrics-", dir=shared_memory)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = metrics_dir
    master_pid = os.getpid()
    atexit.register(lambda: os.getpid() == master_pid and shutil.rmtree(metrics_dir, ignore_errors=True))

from gunicorn.http.errors import ParseException
from prometheus_client import multiprocess

import app.stripe_gateway  # noqa: F401 - here, so that the workers share its memory
import wsgi
from app import create_app, migrations
from app.config import KEEP_ALIVE_SECONDS, ConfigError
from app.errors import Unavailable


def listen_addresses(port: int) -> list[str]:
    """All addresses of this machine: of IPv6 and IPv4 where there is IPv6, else of IPv4."""
    ipv4, ipv6 = f"0.0.0.0:{port}", f"[::]:{port}"
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::", 0))
            excludes_ipv4 = probe.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
    except OSError:
        return [ipv4]
    return [ipv6, ipv4] if excludes_ipv4 else [ipv6]


settings = wsgi.app.extensions["billing.settings"]
try:
    loaded = create_app() if is_reload else wsgi.app
    if not loaded.extensions["billing.settings"].admin_api_keys:
        raise ConfigError("ADMIN_API_KEY: not set; expected one or several keys, comma-separated")
    loaded.extensions["billing.keyring"].signing_key()
    settings, wsgi.app = loaded.extensions["billing.settings"], loaded  # the next workers are forked with it
except ConfigError as error:
    if not is_reload:
        raise
    logging.getLogger("gunicorn.error").error("not reloaded: %s", error)

bind = listen_addresses(settings.port)
# With a socket for each worker (reuse_port) Linux resets the connections that wait at a worker which ends,
# unless the sysctl net.ipv4.tcp_migrate_req is 1.
reuse_port = False
worker_class = "gthread"
workers = settings.web_concurrency
threads = settings.web_threads
worker_connections = 500  # well below the usual limit of 1024 open files
timeout = 60
graceful_timeout = 30  # for requests under way after SIGTERM
keepalive = KEEP_ALIVE_SECONDS
forwarded_allow_ips = ""
errorlog = None  # the application configures the logger `gunicorn.error`
loglevel = settings.log_level
proc_name = "zemfyre-billing"
worker_tmp_dir = shared_memory
control_socket_disable = True

REST_BLOCKS = 32  # of 64 KiB: the 2 MiB that deploy/nginx lets through
REST_SECONDS = 5

# The garbage collector writes to the objects that it visits: each worker would get copies of them.
gc.unfreeze()
gc.collect()
gc.freeze()


def on_starting(server: Any) -> None:
    """With EMBEDDED_POSTGRES the database runs as long as this process; without any the start ends here."""
    wsgi.app.extensions["billing.db"].url  # noqa: B018


def when_ready(server: Any) -> None:
    server.log.info("slow clients occupy threads: put a proxy that buffers requests in front (deploy/nginx)")
    database = wsgi.app.extensions["billing.db"]
    with suppress(Unavailable), wsgi.app.app_context():
        if role := migrations.superuser(database):
            server.log.warning("DATABASE_URL: the role %s is a superuser; the service needs none", role)
    database.close()  # the workers that are forked from here on open their own


def post_request(worker: Any, req: Any, environ: dict[str, Any], resp: Any) -> None:
    """Read what the application left unread of a body, as of one that is too large.

    gunicorn has said keep-alive, but closes a connection with more than 64 KiB unread: what the proxy sends
    on it next would be lost.
    """
    with suppress(ParseException, OSError, ValueError):
        environ["gunicorn.socket"].settimeout(REST_SECONDS)
        for _ in range(REST_BLOCKS):
            if not environ["wsgi.input"].read(65536):
                break


def child_exit(server: Any, worker: Any) -> None:
    multiprocess.mark_process_dead(worker.pid)
