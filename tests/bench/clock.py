"""How long something takes."""

import time
from collections.abc import Callable


def milliseconds(run: Callable[[], object], times: int) -> list[float]:
    """Of each run, one after the other."""
    took = []
    for _ in range(times):
        began = time.perf_counter()
        run()
        took.append((time.perf_counter() - began) * 1000)
    return took
