"""Test tools that more than one suite uses."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import pytest
import trio


class _CancelAt(trio.abc.Instrument):
    """Cancels `scope` before the n-th step of a task and its descendants."""

    def __init__(self, root: trio.lowlevel.Task, scope: trio.CancelScope, n: int) -> None:
        self._root = root
        self._scope = scope
        self._n = n
        self._seen = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if _is_under(task, self._root):
            self._seen += 1
            if self._seen == self._n:
                self._scope.cancel(reason=f"sweep {self._n}")


def _is_under(task: trio.lowlevel.Task | None, root: trio.lowlevel.Task) -> bool:
    while task is not None:
        if task is root:
            return True
        nursery = task.parent_nursery
        task = nursery.parent_task if nursery is not None else None
    return False


async def cancel_at_every_checkpoint(
    operation: Callable[[], Awaitable[object]],
    check: Callable[[int], Awaitable[None]],
    *,
    most: int = 500,
) -> int:
    """Run `operation` again and again, cancelled one step later each time, until it runs to its
    end.

    After each round `check(n)` asserts that nothing is left behind. Returns how many points were
    swept.
    """
    for n in itertools.count(1):
        assert n <= most, f"the operation did not finish within {most} steps"
        with trio.CancelScope() as scope:
            instrument = _CancelAt(trio.lowlevel.current_task(), scope, n)
            trio.lowlevel.add_instrument(instrument)
            try:
                await operation()
            finally:
                trio.lowlevel.remove_instrument(instrument)
        await check(n)
        if not scope.cancel_called:
            return n - 1
    raise AssertionError("unreachable")


def bound_tests(items: Iterable[pytest.Item], path: Path, seconds: float) -> None:
    """Let no async test in or below `path` run longer: for `pytest_collection_modifyitems`.

    It bounds a hang and judges no speed. (A fixture cannot do this: one that the test does not name
    is torn down before the test runs.)
    """
    for item in items:
        if (
            isinstance(item, pytest.Function)
            and path in (item.path, *item.path.parents)
            and inspect.iscoroutinefunction(item.obj)
        ):
            item.obj = _bounded(item.obj, seconds)


def _bounded(
    test: Callable[..., Awaitable[None]], seconds: float
) -> Callable[..., Awaitable[None]]:
    @functools.wraps(test)
    async def run(*args: object, **kwargs: object) -> None:
        with trio.fail_after(seconds):
            await test(*args, **kwargs)

    return run
