"""Threads that are none: blocking work runs in the event loop, one call after the other.

With real threads a clock that jumps when nothing else happens would jump while they work; with
these it does not, and every run of a test takes the same steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import pytest
import trio

T = TypeVar("T")


async def _run_inline(
    fn: Callable[..., T],
    *args: Any,
    thread_name: str | None = None,
    abandon_on_cancel: bool = False,
    limiter: trio.CapacityLimiter | None = None,
) -> T:
    """Do what `trio.to_thread.run_sync` does: cancellable before the work, not while it runs."""
    await trio.lowlevel.checkpoint_if_cancelled()
    await trio.lowlevel.cancel_shielded_checkpoint()
    return fn(*args)


@pytest.fixture
def inline_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace trio's threads for the length of a test."""
    monkeypatch.setattr(trio.to_thread, "run_sync", _run_inline)
