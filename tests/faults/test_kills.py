"""Signals under load: a reload loses nothing; after `kill -9` what was acknowledged is there, the rest can be
sent again, and it recovers.
"""

import os
import signal

from tests.conftest import ADMIN
from tests.server import wait_until


def test_a_worker_then_the_database_then_everything(server, postgres, load):
    load.wait_for_more()
    victim = server.workers()[0]
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: victim not in server.workers() and len(server.workers()) == 2)
    load.wait_for_more()
    postgres.kill()
    wait_until(lambda: server.get("/health/ready").status_code == 503)
    assert server.get("/health").status_code == 200
    postgres.start()
    wait_until(lambda: server.get("/health/ready").status_code == 200)
    load.wait_for_more()
    server.kill()
    postgres.kill()
    postgres.start()
    server.restart()
    load.wait_for_more()
    load.check(postgres)
    assert server.get(f"/api/licenses/{load.customer_id}", headers=ADMIN).status_code == 200


def test_reloads_lose_no_request(server, load):
    """Each comes on a connection of its own, also while old workers take no more."""
    for _ in range(3):
        load.wait_for_more()
        server.reload()
    load.wait_for_more()
    load.stop()
    assert set(load.answers.values()) == {201}
