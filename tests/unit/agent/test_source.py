"""The source is what was announced, or it is refused; nothing is built of anything else."""

from __future__ import annotations

import hashlib

import pytest
import trio
import trio.testing

from agent import wire
from agent.source import SourceBroken, receive_source

DATA = bytes(range(256)) * 3000
SHA256 = hashlib.sha256(DATA).hexdigest()


class Sink(trio.abc.SendStream):
    """Collects what it is sent, until it breaks."""

    def __init__(self, breaks_after: int | None = None) -> None:
        self.data = b""
        self._breaks_after = breaks_after

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        if self._breaks_after is not None and len(self.data) >= self._breaks_after:
            raise trio.BrokenResourceError
        self.data += bytes(data)

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


async def receive(sent: bytes, sink: Sink, *, cut: int = 65_536, ends: bool = True) -> None:
    """Send `sent` in pieces of `cut` bytes to a receiver of DATA."""
    ours, theirs = trio.testing.memory_stream_one_way_pair()

    async def send() -> None:
        for at in range(0, len(sent), cut):
            await ours.send_all(sent[at : at + cut])
        if ends:
            await ours.aclose()

    failure: list[SourceBroken] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        try:
            await receive_source(theirs, sink, len(DATA), SHA256)
        except SourceBroken as exc:
            failure.append(exc)
        nursery.cancel_scope.cancel(reason="received")
    if failure:
        raise failure[0]


def announced(size: int = len(DATA), sha256: str = SHA256) -> bytes:
    return wire.encode(wire.SourceHeader(size, sha256))


@pytest.mark.parametrize("cut", [997, 65_536, 1 << 20])
async def test_the_bytes_arrive_whole_however_they_are_cut(cut: int) -> None:
    sink = Sink()
    await receive(announced() + DATA[:70_000] + DATA[70_000:], sink, cut=cut)
    assert sink.data == DATA


async def test_the_end_of_the_bytes_is_enough() -> None:
    sink = Sink()
    await receive(announced() + DATA, sink, ends=False)
    assert sink.data == DATA


async def test_bytes_that_look_like_a_frame_are_only_bytes() -> None:
    data = wire.encode(wire.Cancel("x")) + b"\xff" * 100
    ours, theirs = trio.testing.memory_stream_one_way_pair()
    sha256 = hashlib.sha256(data).hexdigest()
    await ours.send_all(announced(len(data), sha256) + data)
    sink = Sink()
    await receive_source(theirs, sink, len(data), sha256)
    assert sink.data == data


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (b"", "before its header"),
        (announced()[:9], "before its header"),
        (announced(), "ended 768000 bytes before"),
        (announced() + DATA[:-1], "ended 1 bytes before"),
        (announced() + DATA[:-1] + b"!", "instead of"),
        (announced(len(DATA) - 1) + DATA, "is not the configured one"),
        (announced(sha256="0" * 64) + DATA, "is not the configured one"),
        (wire.encode(wire.HostReady()) + DATA, "instead of its header"),
        (b"\xff\xff\xff\xff" + DATA, "is broken"),
        (b"\x00\x00\x00\x01\xff" + DATA, "is broken"),
    ],
)
async def test_anything_else_is_refused(sent: bytes, why: str) -> None:
    with pytest.raises(SourceBroken, match=why):
        await receive(sent, Sink(), cut=1 << 20)


async def test_more_bytes_than_announced_are_refused() -> None:
    ours, theirs = trio.testing.memory_stream_one_way_pair()
    sha256 = hashlib.sha256(b"abc").hexdigest()
    await ours.send_all(announced(3, sha256) + b"abcd")
    with pytest.raises(SourceBroken, match="more than"):
        await receive_source(theirs, Sink(), 3, sha256)


async def test_a_reader_that_has_had_enough_does_not_stop_the_check() -> None:
    await receive(announced() + DATA, Sink(breaks_after=1))
    with pytest.raises(SourceBroken):
        await receive(announced() + DATA[:-1] + b"!", Sink(breaks_after=1))
