"""The daemon's owner: readiness, other mirrors, and an early end, with a stand-in for BuildKit."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import trio
import trio.testing

from agent import rootless
from agent.buildkit import Daemon
from agent.spawn import spawn
from tests.kit import cancel_at_every_checkpoint

READY = "READY=1"
SCRIPT = """
import socket, sys, time
path, says = sys.argv[1:]
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notify.sendto(b"STATUS=loading\\n", path)
if says.startswith("READY=1"):
    notify.sendto(says.encode(), path)
    time.sleep(600)
sys.exit(says)
"""
Starter = Callable[[Sequence[str]], rootless.Started]


class StandIn:
    """Starts stand-ins, and remembers them. Each says on the socket what `says` is at that time."""

    def __init__(self, directory: Path) -> None:
        self.says = READY
        self.mirrors: list[Sequence[str]] = []
        self.pids: list[int] = []
        self._directory = directory

    def __call__(self, mirrors: Sequence[str]) -> rootless.Started:
        self.mirrors.append(tuple(mirrors))
        path = str(self._directory / f"notify{len(self.mirrors)}")
        notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        notify.bind(path)
        process = spawn([sys.executable, "-ISc", SCRIPT, path, self.says], {})
        self.pids.append(process.pid)
        return rootless.Started(process, notify.detach())

    @property
    def running(self) -> list[int]:
        return [pid for pid in self.pids if Path(f"/proc/{pid}").exists()]


@pytest.fixture
def start(tmp_path: Path) -> StandIn:
    return StandIn(tmp_path)


async def test_a_daemon_that_says_so_is_ready(nursery: trio.Nursery, start: StandIn) -> None:
    daemon = Daemon(start)
    nursery.start_soon(daemon.run, start(rootless.DEFAULT_MIRRORS))
    with trio.fail_after(30):
        assert await daemon.wait_ready(rootless.DEFAULT_MIRRORS) == ""
        assert await daemon.wait_ready(list(rootless.DEFAULT_MIRRORS)) == ""
    assert len(start.pids) == 1
    assert daemon.exit == ""
    nursery.cancel_scope.cancel(reason="enough")


async def test_other_mirrors_start_it_once_more(nursery: trio.Nursery, start: StandIn) -> None:
    daemon = Daemon(start)
    nursery.start_soon(daemon.run, start(rootless.DEFAULT_MIRRORS))
    with trio.fail_after(30):
        await daemon.wait_ready(rootless.DEFAULT_MIRRORS)
        assert await daemon.wait_ready(["other.example"]) == ""
    assert start.mirrors[1:] == [("other.example",)]
    assert start.running == start.pids[1:]
    nursery.cancel_scope.cancel(reason="enough")


async def test_mirrors_wanted_before_it_is_owned_are_not_forgotten(
    nursery: trio.Nursery, start: StandIn
) -> None:
    daemon = Daemon(start)
    nursery.start_soon(daemon.wait_ready, ["other.example"])
    await trio.testing.wait_all_tasks_blocked()
    nursery.start_soon(daemon.run, start(rootless.DEFAULT_MIRRORS))
    with trio.fail_after(30):
        assert await daemon.wait_ready(["other.example"]) == ""
    assert start.mirrors == [rootless.DEFAULT_MIRRORS, ("other.example",)]
    nursery.cancel_scope.cancel(reason="enough")


async def test_a_daemon_that_ends_says_how(nursery: trio.Nursery, start: StandIn) -> None:
    start.says = "the disk is on fire"
    daemon = Daemon(start)
    nursery.start_soon(daemon.run, start(rootless.DEFAULT_MIRRORS))
    with trio.fail_after(30):
        why = await daemon.wait_ready(rootless.DEFAULT_MIRRORS)
    assert why == "buildkitd ended with exit status 1; it said last: the disk is on fire"
    assert daemon.exit == why


async def test_a_daemon_that_cannot_be_started_again_says_why(
    nursery: trio.Nursery, start: StandIn
) -> None:
    def refuse(mirrors: Sequence[str]) -> rootless.Started:
        raise OSError("no more processes")

    daemon = Daemon(refuse)
    nursery.start_soon(daemon.run, start(rootless.DEFAULT_MIRRORS))
    with trio.fail_after(30):
        why = await daemon.wait_ready(["other.example"])
    assert why == "buildkitd could not be started: no more processes"


async def test_cancelling_anywhere_leaves_no_daemon(start: StandIn) -> None:
    async def operation() -> None:
        daemon = Daemon(start)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(daemon.run, start(rootless.DEFAULT_MIRRORS))
            await daemon.wait_ready(rootless.DEFAULT_MIRRORS)
            nursery.cancel_scope.cancel(reason="enough")

    async def check(n: int) -> None:
        # Before its first step the owner has not taken over what was started for it.
        if n > 1:
            assert start.running == []
        for pid in start.running:
            os.kill(pid, 9)
            os.waitpid(pid, 0)  # noqa: ASYNC222 - it is dead

    assert await cancel_at_every_checkpoint(operation, check) > 2
