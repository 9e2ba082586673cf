"""Production settings of the web server; `gunicorn wsgi:app` reads this file by itself."""

import os
import shutil
import tempfile
from typing import Any

from prometheus_client import multiprocess

from app import embedded
from app.config import load_settings, require_admin_key
from app.keyring import load_signing_key
from app.observe import logging_config
from app.services.health import STOPPING

settings = load_settings()

bind = f"0.0.0.0:{settings.port}"
worker_class = "gthread"
workers = int(os.environ.get("WEB_CONCURRENCY", "0")) or max(2, os.cpu_count() or 1)
threads = int(os.environ.get("WEB_THREADS", "16"))
# Requests in flight get this long after SIGTERM.
graceful_timeout = 30
timeout = 60
keepalive = 15
max_requests_jitter = 0
limit_request_line = 4094
limit_request_field_size = 16380
forwarded_allow_ips = ""
logconfig_dict = logging_config(settings.log_level, settings.log_format)
accesslog = None  # one line a request is written by the application, which knows the route and who called
proc_name = "zemfyre-billing"
worker_tmp_dir = "/dev/shm" if os.path.isdir("/dev/shm") else None


def on_starting(server: Any) -> None:
    """Refuse a start that cannot serve, with one line; keep the embedded database as long as we live."""
    require_admin_key(settings)
    load_signing_key(settings)
    if settings.database_url is None:
        os.environ["DATABASE_URL"] = embedded.start(settings.data_dir)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = tempfile.mkdtemp(prefix="zemfyre-metrics-")


def worker_int(worker: Any) -> None:
    os.environ[STOPPING] = "1"


def child_exit(server: Any, worker: Any) -> None:
    multiprocess.mark_process_dead(worker.pid)


def on_exit(server: Any) -> None:
    shutil.rmtree(os.environ.get("PROMETHEUS_MULTIPROC_DIR", ""), ignore_errors=True)
