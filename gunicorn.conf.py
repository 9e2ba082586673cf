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
from collections import Counter
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


def listen(port: int) -> int:
    """A socket on all addresses of this machine that shares the port with others like it: its descriptor."""
    options: dict[str, Any] = {"backlog": 2048, "reuse_port": True}
    try:
        address = ("::", port)
        found = socket.create_server(address, family=socket.AF_INET6, dualstack_ipv6=True, **options)
    except (OSError, ValueError):  # there is no IPv6
        found = socket.create_server(("", port), **options)
    return found.detach()


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

forked: list[Any] = []  # the workers since this file was loaded
bind = vars(wsgi).get("sockets", [f":{settings.port}"])  # those that `on_starting` made stay at a reload
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

UNREAD_BLOCKS = 32  # of 64 KiB: the 2 MiB that deploy/nginx lets through
UNREAD_SECONDS = 5

# The garbage collector writes to the objects that it visits: each worker would get copies of them.
gc.unfreeze()
gc.collect()
gc.freeze()


def on_starting(server: Any) -> None:
    """With EMBEDDED_POSTGRES the database runs as long as this process; without any the start ends here."""
    wsgi.app.extensions["billing.db"].url  # noqa: B018
    if server.cfg.bind != bind or os.environ.keys() & {"LISTEN_FDS", "GUNICORN_FD"}:
        return  # it listens elsewhere, or has a socket of systemd's or of the master that it replaces
    with suppress(OSError):  # gunicorn tries it again for some seconds, and says what is wrong
        socket.create_server(("", settings.port)).close()  # there is no other service
        count = server.cfg.workers if sys.platform == "linux" else 1  # others do not divide connections up
        made = [f"fd://{listen(settings.port)}" for _ in range(count)]
        vars(wsgi)["sockets"] = made
        server.cfg.set("bind", made)


def pre_fork(server: Any, worker: Any) -> None:
    """Share the sockets out: at a common one a single worker often takes a whole burst of connections.

    The master keeps all of them open, so that what waits at one is for the worker that comes next; it is lost
    with `reuse_port`, see findings/gunicorn-reuse-port-reload.sh. Workers of before a reload do not count.
    """
    forked[:] = [other for other in forked if other in server.WORKERS.values()]
    served = Counter(taken for other in forked for taken in other.sockets[:1])
    sockets, workers = server.LISTENERS, server.cfg.workers
    first = min(range(min(len(sockets), workers)), key=lambda n: served[sockets[n]], default=0)
    worker.sockets = sockets[first::workers]
    forked.append(worker)


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
    on it next would be lost. See findings/gunicorn-unread-body.sh.
    """
    with suppress(ParseException, OSError, ValueError):
        environ["gunicorn.socket"].settimeout(UNREAD_SECONDS)
        for _ in range(UNREAD_BLOCKS):
            if not environ["wsgi.input"].read(65536):
                break


def child_exit(server: Any, worker: Any) -> None:
    multiprocess.mark_process_dead(worker.pid)
