"""Production settings of the web server; `gunicorn wsgi:app` reads this file by itself.

A setting that is wrong ends the start with one line. SIGHUP reads everything anew, keys too; what
is wrong then is told in the log, and the service goes on as before.
"""

import atexit
import logging
import os
import resource
import shutil
import sys
import tempfile
import time
from typing import Any

memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None

# Before the first import of prometheus_client, which looks for it once.
if "wsgi" not in sys.modules:
    metrics_dir = tempfile.mkdtemp(prefix="zemfyre-metrics-", dir=memory)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = metrics_dir
    master = os.getpid()
    atexit.register(lambda: os.getpid() == master and shutil.rmtree(metrics_dir, ignore_errors=True))

from flask import Flask
from prometheus_client import multiprocess

from app import create_app, embedded
from app.config import ConfigError, Settings, require_admin_key
from app.observe import logging_config
from app.services import health


def _check(app: Flask) -> Settings:
    """What only the web service needs. Raises ConfigError, which is one line and an exit."""
    settings: Settings = app.extensions["billing.settings"]
    require_admin_key(settings)
    app.extensions["billing.keyring"].signing_key()
    return settings


if "wsgi" not in sys.modules:
    import wsgi

    settings = _check(wsgi.app)
else:
    import wsgi

    try:
        renewed = create_app()
        settings = _check(renewed)
        wsgi.app = renewed  # the workers to come are forked from here
    except ConfigError as error:
        logging.getLogger("gunicorn.error").error("not reloaded: %s", error)
        settings = wsgi.app.extensions["billing.settings"]

bind = f"0.0.0.0:{settings.port}"
worker_class = "app.worker.PatientWorker"
workers = settings.web_concurrency
threads = settings.web_threads
worker_connections = 1000
# Requests in flight get this long after SIGTERM.
graceful_timeout = 30
timeout = 60
keepalive = 15
limit_request_line = 4094
limit_request_field_size = 16380
sendfile = False  # which waits for slow readers in a thread
forwarded_allow_ips = ""
logconfig_dict = logging_config(settings.log_level, settings.log_format)
logger_class = "app.worker.Log"
proc_name = "zemfyre-billing"
worker_tmp_dir = memory
control_socket_disable = True


def _allow_open_files(wanted: int) -> None:
    """As many as the connections need, where the usual 1024 are too few; as many as may be, at most."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


_allow_open_files(2 * worker_connections)


def on_starting(server: Any) -> None:
    """Without DATABASE_URL: run the embedded database for as long as we live."""
    if settings.database_url is None:
        embedded.start(settings.data_dir)


def when_ready(server: Any) -> None:
    """On SIGTERM say so at /health/ready, and take requests until the load balancer has seen it."""
    stop_at_once = server.handle_term

    def handle_term() -> None:
        health.announce_stop()
        time.sleep(wsgi.app.extensions["billing.settings"].drain_seconds)
        stop_at_once()

    server.handle_term = handle_term


def child_exit(server: Any, worker: Any) -> None:
    multiprocess.mark_process_dead(worker.pid)
