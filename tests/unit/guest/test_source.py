"""The source on its way into the guest."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
import trio.testing

from agent import wire
from supervisor.guest.source import serve_source
from supervisor.model.build import Source
from tests.fakes.listener import MemoryListener
from tests.kit import cancel_at_every_checkpoint

CONTENT = b"0123456789" * 300_000
SOURCE = Source("ab" * 32, len(CONTENT))


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "source.tar.gz"
    path.write_bytes(CONTENT)
    return path


async def fetch(stream: trio.abc.Stream) -> tuple[wire.SourceHeader, bytes]:
    """Receive a header and exactly the bytes that it announces."""
    received = bytearray()
    while len(received) < 4 or len(received) < 4 + int.from_bytes(received[:4], "big"):
        received += await stream.receive_some()
    end = 4 + int.from_bytes(received[:4], "big")
    header = wire.parse(bytes(received[4:end]))
    assert isinstance(header, wire.SourceHeader)
    del received[:end]
    while len(received) < header.size:
        received += await stream.receive_some()
    return header, bytes(received)


async def test_the_archive_arrives_whole_behind_its_header(archive: Path) -> None:
    listener = MemoryListener()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_source, listener, archive, SOURCE)
        stream = listener.connect()
        header, content = await fetch(stream)
        assert header == wire.SourceHeader(size=len(CONTENT), sha256=SOURCE.sha256)
        assert content == CONTENT
        await stream.aclose()
        nursery.cancel_scope.cancel(reason="fetched")


async def test_the_host_closes_only_after_the_guest(archive: Path) -> None:
    listener = MemoryListener()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_source, listener, archive, SOURCE)
        stream = listener.connect()
        await fetch(stream)
        with trio.move_on_after(0.01) as waiting:
            await stream.receive_some()
        assert waiting.cancelled_caught
        nursery.cancel_scope.cancel(reason="seen")


async def test_a_guest_that_breaks_off_may_ask_again_but_not_for_ever(archive: Path) -> None:
    listener = MemoryListener(in_lockstep=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_source, listener, archive, SOURCE)
        for _ in range(2):
            broken = listener.connect()
            await broken.receive_some(10)
            await broken.aclose()
        last = listener.connect()
        _, content = await fetch(last)
        assert content == CONTENT
        await last.aclose()
    # The service has returned by itself: the port is closed for this machine.


async def test_a_guest_that_never_reads_holds_up_nothing_but_itself(archive: Path) -> None:
    listener = MemoryListener(in_lockstep=True)

    async def serve_one_that_stalls() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_source, listener, archive, SOURCE)
            listener.connect()
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel(reason="the attempt is over")

    with trio.fail_after(10):
        await serve_one_that_stalls()


async def test_a_transfer_that_is_cancelled_anywhere_leaves_the_connection_closed(
    archive: Path,
) -> None:
    streams: list[trio.abc.Stream] = []

    async def transfer() -> None:
        async with MemoryListener() as listener, trio.open_nursery() as nursery:
            nursery.start_soon(serve_source, listener, archive, SOURCE)
            streams.append(listener.connect())
            await fetch(streams[-1])
            nursery.cancel_scope.cancel(reason="fetched")

    async def check(_: int) -> None:
        with trio.fail_after(5):
            while streams and await streams[-1].receive_some():
                pass

    assert await cancel_at_every_checkpoint(transfer, check) > 3
