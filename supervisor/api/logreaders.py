"""How many clients read the log of a build just now: event streams, websockets, and the text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class LogReaders:
    """Counts them, for the metrics."""

    def __init__(self) -> None:
        self.count = 0

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Be one of them while the block lasts."""
        self.count += 1
        try:
            yield
        finally:
            self.count -= 1
