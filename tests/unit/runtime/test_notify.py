"""The service manager's notifications."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
import trio
import trio.testing

from supervisor.runtime.notify import keep_watchdog_fed, notify


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield sock


def heard(manager: socket.socket) -> list[bytes]:
    messages = []
    while True:
        try:
            messages.append(manager.recv(4096))
        except BlockingIOError:
            return messages


def test_a_manager_hears_what_is_said(manager: socket.socket) -> None:
    notify("READY=1", "STATUS=two builds")
    assert heard(manager) == [b"READY=1\nSTATUS=two builds"]


def test_an_abstract_address_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"hypeman-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0{name}")
        sock.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        notify("READY=1")
        assert heard(sock) == [b"READY=1"]


def test_without_a_manager_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")


def test_a_manager_that_has_gone_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "absent"))
    notify("READY=1")


async def test_the_watchdog_is_fed_twice_per_period(
    manager: socket.socket,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.testing.MockClock,
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "10000000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    with trio.move_on_after(12):
        await keep_watchdog_fed()
    assert heard(manager) == [b"WATCHDOG=1"] * 3


async def test_out_of_descriptors_the_watchdog_is_fed_all_the_same(
    manager: socket.socket,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.testing.MockClock,
) -> None:
    def refuse(*_: object) -> NoReturn:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setenv("WATCHDOG_USEC", "10000000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_watchdog_fed)
        await trio.sleep(1)
        monkeypatch.setattr(socket, "socket", refuse)
        await trio.sleep(11)
        notify("STOPPING=1")  # that nobody hears it is no reason to fail
        nursery.cancel_scope.cancel(reason="seen enough")
    assert heard(manager) == [b"WATCHDOG=1"] * 3


async def test_a_stuck_event_loop_does_not_feed_it(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "2000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_watchdog_fed)
        await trio.testing.wait_all_tasks_blocked()
        assert heard(manager)
        manager.settimeout(0.1)  # fifty periods, in which this very loop is stuck in `recv`
        with pytest.raises(TimeoutError):
            manager.recv(4096)
        nursery.cancel_scope.cancel(reason="seen enough")


@pytest.mark.parametrize(("period", "pid"), [(None, None), ("", None), ("10000000", "1")], ids=str)
async def test_no_watchdog_of_ours_is_not_fed(
    period: str | None, pid: str | None, manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("WATCHDOG_USEC", period), ("WATCHDOG_PID", pid)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    await keep_watchdog_fed()
    assert heard(manager) == []
