"""The news that the daemon stops, for the streams that would otherwise go on.

Open requests get a grace period to finish. A follower of a log never finishes by itself, so its
waits are interrupted at once and its stream ends in order; the client resumes where it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio


class Stopping:
    """Set once, by whoever stops the listeners."""

    def __init__(self) -> None:
        self._waits: set[trio.CancelScope] = set()
        self.is_set = False

    def set(self) -> None:
        """Interrupt every wait, now and later. Idempotent."""
        self.is_set = True
        for scope in self._waits:
            scope.cancel(reason="the daemon stops")

    @contextmanager
    def interrupting(self, seconds: float) -> Iterator[trio.CancelScope]:
        """Run a block for at most `seconds`, less if the daemon stops."""
        with trio.move_on_after(seconds) as scope:
            if self.is_set:
                scope.cancel(reason="the daemon stops")
            self._waits.add(scope)
            try:
                yield scope
            finally:
                self._waits.discard(scope)
