"""The rate of the host's time-stamp counter."""

from __future__ import annotations

import mmap
import platform
from typing import Any

import pytest

from supervisor.vm import tsc


async def test_the_rate_is_the_same_each_time_it_is_measured() -> None:
    long = tsc.TscMeasurement()
    first, second = await tsc.TscMeasurement().wait_khz(), await long.wait_khz()
    assert first is not None
    assert second is not None
    assert abs(first - second) <= first / 1000


async def test_a_window_in_which_the_host_was_suspended_is_not_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asleep_ns = iter([0, 3_600 * 10**9, 3_600 * 10**9])
    readings = iter([(0, 0), (10**9, 9 * 10**12), (2 * 10**9, 10**13), (3 * 10**9, 10**13 + 10**9)])
    monkeypatch.setattr(tsc, "_suspended_ns", lambda: next(asleep_ns))
    monkeypatch.setattr(tsc, "_read_both", lambda _: next(readings))
    assert await tsc.TscMeasurement().wait_khz() == 10**6


async def test_a_host_that_forbids_code_made_at_run_time_has_no_rate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> mmap.mmap:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(mmap, "mmap", refuse)
    assert await tsc.TscMeasurement().wait_khz() is None


async def test_a_host_of_another_architecture_has_no_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert await tsc.TscMeasurement().wait_khz() is None
