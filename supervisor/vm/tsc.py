"""How fast the host's time-stamp counter runs, for guests that cannot find out themselves.

An emulated processor's counter is the host's own. A kernel measures its rate while it boots,
against a timer that is emulated too; when the host is busy, the measurement can be wrong by a
factor of ten and more, and then every clock and every timeout of that guest is. So an emulated
guest is told (`tsc_early_khz=`, admin-guide/kernel-parameters). With KVM there is `kvm-clock`.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import time
from collections.abc import Callable

import trio

MEASURE_SECONDS = 0.2
"""A reading is good to about a microsecond, so this is good to some ten parts in a million."""
_SUSPENDED_NS = 10_000_000
"""No host is suspended for less, and two readings of clocks are rarely further apart."""
_READINGS = 20

# lfence; rdtsc; shl rdx, 32; or rax, rdx; ret
_RDTSC = bytes.fromhex("0faee8 0f31 48c1e220 4809d0 c3")


class TscMeasurement:
    """One measurement, from the making of this until `wait_khz`; other work may go on meanwhile."""

    def __init__(self) -> None:
        page = _make_page()
        self._counter = None if page is None else _Counter(page)
        self._suspended_ns = _suspended_ns()
        self._began = (0, 0) if self._counter is None else _read_both(self._counter.read)

    async def wait_khz(self) -> int | None:
        """Return the counter's rate; None where there is none, or no code may be made at run time.

        Waits until MEASURE_SECONDS have passed; if more have, it is the more exact. It begins anew
        if the host was suspended meanwhile: then the clock stood still, and the counter may not
        have.
        """
        if self._counter is None:
            return None
        while True:
            began, first = self._began
            spent_seconds = (time.monotonic_ns() - began) / 1e9
            await trio.sleep(max(0.0, MEASURE_SECONDS - spent_seconds))
            ended, last = _read_both(self._counter.read)
            suspended_ns = _suspended_ns()
            if abs(suspended_ns - self._suspended_ns) < _SUSPENDED_NS:
                return round((last - first) * 1_000_000 / (ended - began))
            self._suspended_ns = suspended_ns
            self._began = _read_both(self._counter.read)


class _Counter:
    """Reads the counter by the code in `page`."""

    def __init__(self, page: mmap.mmap) -> None:
        self._anchor = ctypes.c_char.from_buffer(page)  # the page stays while this does
        address = ctypes.addressof(self._anchor)
        self.read: Callable[[], int] = ctypes.CFUNCTYPE(ctypes.c_uint64)(address)


def _make_page() -> mmap.mmap | None:
    if platform.machine() != "x86_64":
        return None
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError:  # forbidden: systemd's MemoryDenyWriteExecute=, SELinux's execmem
        return None
    page.write(_RDTSC)
    return page


def _suspended_ns() -> int:
    """Return for how long the host has been suspended since it booted."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.monotonic_ns()


def _read_both(read: Callable[[], int]) -> tuple[int, int]:
    """Return the time in nanoseconds and the counter, taken as closely together as can be had."""
    best = None
    for _ in range(_READINGS):
        before = time.monotonic_ns()
        counter = read()
        after = time.monotonic_ns()
        if best is None or after - before < best[0]:
            best = (after - before, (before + after) // 2, counter)
    assert best is not None
    return best[1], best[2]
