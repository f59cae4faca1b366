"""Uploads that do not go as planned."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio

from supervisor.api.ports import ApiDeps
from tests.ctl.conftest import ctl_argv, ctl_env, run_ctl, serving


@pytest.fixture
def large_context(context_dir: Path) -> Path:
    """More than fits into pipes and sockets on its way."""
    (context_dir / "large").write_bytes(os.urandom(16 << 20))
    return context_dir


async def test_a_daemon_that_refuses_before_the_end_is_heard(
    deps: ApiDeps, large_context: Path
) -> None:
    deps = replace(deps, settings=deps.settings.model_copy(update={"max_source_bytes": 1 << 20}))
    async with serving(deps) as daemon:
        result = await daemon.run_ctl("build", str(large_context))
    assert (result.code, result.out) == (2, "")
    assert "is larger than" in result.err


@asynccontextmanager
async def listening(path: Path, received: trio.Event, *, hang_up: bool) -> AsyncIterator[None]:
    """A daemon that takes the beginning of an upload, and then hangs up or falls asleep."""

    async def handle(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some(1 << 16)
            received.set()
            if not hang_up:
                await trio.sleep_forever()

    with trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM) as sock:
        await sock.bind(str(path))
        sock.listen()
        async with trio.open_nursery() as nursery:
            await nursery.start(trio.serve_listeners, handle, [trio.SocketListener(sock)])
            yield
            nursery.cancel_scope.cancel(reason="the test is over")


async def test_a_connection_that_breaks_is_said_to_have_broken(
    large_context: Path, tmp_path: Path
) -> None:
    async with listening(tmp_path / "s", trio.Event(), hang_up=True):
        result = await run_ctl("--socket", str(tmp_path / "s"), "build", str(large_context))
    assert (result.code, result.out) == (3, "")
    assert f"the connection to {tmp_path / 's'} broke" in result.err


async def test_an_interrupt_during_the_upload_ends_it_at_once(
    large_context: Path, tmp_path: Path
) -> None:
    received = trio.Event()
    async with listening(tmp_path / "s", received, hang_up=False), trio.open_nursery() as nursery:
        process: trio.Process = await nursery.start(
            partial(
                trio.run_process,
                ctl_argv("--socket", str(tmp_path / "s"), "build", str(large_context)),
                check=False,
                capture_stdout=True,
                env=ctl_env(),
            )
        )
        with trio.fail_after(60):
            await received.wait()
            process.send_signal(signal.SIGINT)
            assert await process.wait() == 130


async def test_a_build_that_the_daemon_does_not_take_in_leaves_nothing_there(
    deps: ApiDeps, context_dir: Path
) -> None:
    (context_dir / "Dockerfile").rename(context_dir / "dockerfile")
    async with serving(deps) as daemon:
        result = await daemon.run_ctl("build", "-q", "-d", str(context_dir))
        assert result.code == 0, result.err
        daemon.fake.why_not_ready = "the disk is full"
        refused = await daemon.run_ctl("build", "-q", str(context_dir))
        assert (refused.code, refused.out) == (3, "")
        assert "hypeman-ctl: the disk is full\n" in refused.err
        assert not daemon.fake.leftovers()
