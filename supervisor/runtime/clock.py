"""Wall-clock time for records. Durations and deadlines use `trio.current_time` instead."""

from __future__ import annotations

import time
from collections.abc import Callable

Clock = Callable[[], float]
"""Returns Unix seconds. Passed to whoever writes records, so that tests choose the time."""


def wall_clock() -> float:
    """Return the present time in Unix seconds."""
    return time.time()
