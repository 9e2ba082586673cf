"""What the tests of the API share: calls that begin together, and the pages of a list."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from flask.testing import FlaskClient

from tests.conftest import ADMIN


def at_once(count: int, act: Callable[[int], Any]) -> list[Any]:
    """What `act(number)` returns in each of so many threads that begin together."""
    together = threading.Barrier(count)

    def run(number: int) -> Any:
        together.wait()
        return act(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


def pages(client: FlaskClient, path: str, **query: Any) -> Iterator[dict[str, Any]]:
    """The answers of a list, from the first page to the last."""
    while True:
        answer = client.get(path, query_string=query, headers=ADMIN)
        assert answer.status_code == 200, answer.json
        yield answer.json
        if answer.json["nextCursor"] is None:
            return
        query["cursor"] = answer.json["nextCursor"]
