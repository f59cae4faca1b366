"""What a guest prints on its serial line: evidence for people, and a hint of how far the boot is.

The image's init prints `hypeman: <seconds since the kernel started> <name of the moment>`. A guest
may print anything, so these lines are a hint and never a fact: the worst that a false one does is
that a connection is tried too early in the guest that printed it.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import trio

from supervisor.runtime.tail import Tail

KEPT_BYTES = 8192
MAX_LINE_BYTES = 256
MAX_STAMPS = 32

UP = "handover"
"""The moment when the drivers are loaded and the agent is about to start."""

_STAMP = re.compile(rb"hypeman: ([0-9]{1,6}\.[0-9]{1,3}) ([a-z-]{1,32})\r?")


class Console:
    """The output of one serial line, in bounded memory. `on_up` is called when the guest is up."""

    def __init__(self, on_up: Callable[[], None] = lambda: None) -> None:
        self._tail = Tail(KEPT_BYTES)
        self._on_up = on_up
        self._line = bytearray()
        self.stamps: dict[str, float] = {}
        """Seconds since the guest's kernel started, by the name of the moment; the first counts."""
        self._up = trio.Event()

    def feed(self, data: bytes) -> None:
        """Take what the guest printed."""
        self._tail.add(data)
        *lines, last = data.split(b"\n")
        for line in lines:
            self._add(line)
            self._end_line()
        self._add(last)

    def tail(self) -> str:
        """Return the last that was printed, as text."""
        return self._tail.text()

    async def wait_up(self) -> None:
        """Wait for the line that says that the guest's drivers work."""
        await self._up.wait()

    def _add(self, data: bytes) -> None:
        self._line += data[: MAX_LINE_BYTES - len(self._line)]

    def _end_line(self) -> None:
        # `search`: the firmware may have left an unfinished line before it.
        match = _STAMP.search(bytes(self._line))
        self._line.clear()
        if match is None or len(self.stamps) >= MAX_STAMPS:
            return
        name = match[2].decode()
        self.stamps.setdefault(name, float(match[1]))
        if name == UP and not self._up.is_set():
            self._up.set()
            self._on_up()
