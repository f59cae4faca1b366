"""The control connection: whole frames in order, and its loss noticed."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from agent import link as link_module
from agent import wire
from agent.link import Link, LinkLost


def log(text: bytes) -> wire.Log:
    return wire.Log(seq=0, time=1.0, step="", stream=1, data=text)


async def read(stream: trio.abc.ReceiveStream) -> list[wire.Message | wire.Unknown]:
    """Read everything to the end, which has to be at the end of a frame."""
    decoder = wire.FrameDecoder()
    messages: list[wire.Message | wire.Unknown] = []
    while data := await stream.receive_some():
        messages += decoder.feed(bytes(data))
    assert decoder.is_clean
    return messages


async def test_what_is_queued_is_written_in_order_with_growing_numbers() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    link = Link(ours)
    got: list[wire.Message | wire.Unknown] = []

    async def supervisor() -> None:
        got.extend(await read(theirs))

    async def agent() -> None:
        await link.write()
        await ours.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(supervisor)
        nursery.start_soon(agent)
        await link.send(wire.Hello(1, "x"))
        for n in range(100):
            await link.send(log(b"%d" % n))
        await link.send(wire.Heartbeat(2.0))
        await link.send(wire.BuildResult(seq=0, ok=True))
        link.finish()
        await link.send(log(b"too late"))
    assert [m.data for m in got if isinstance(m, wire.Log)] == [b"%d" % n for n in range(100)]
    numbers = [m.seq for m in got if isinstance(m, wire.Log | wire.BuildResult)]
    assert numbers == list(range(1, 102))


async def test_senders_wait_for_a_supervisor_that_does_not_read() -> None:
    ours, _theirs = trio.testing.lockstep_stream_pair()
    link = Link(ours)
    sent = 0

    async def flood() -> None:
        nonlocal sent
        while True:
            await link.send(log(b"y" * 1000))
            sent += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.write)
        nursery.start_soon(flood)
        await trio.testing.wait_all_tasks_blocked()
        assert sent <= 2 * link_module.QUEUE_LENGTH + 66
        nursery.cancel_scope.cancel(reason="seen")


async def test_a_cancelled_sender_cuts_no_frame() -> None:
    ours, theirs = trio.testing.lockstep_stream_pair()
    link = Link(ours)
    got: list[wire.Message | wire.Unknown] = []

    async def agent() -> None:
        await link.write()
        await ours.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(agent)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as senders:
                for n in range(3 * link_module.QUEUE_LENGTH):
                    senders.start_soon(link.send, log(b"x" * n * 10))
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel(reason="the build was stopped")
        link.finish()
        got.extend(await read(theirs))
    assert got


@pytest.mark.parametrize("garbage", [b"\xff\xff\xff\xff", b"\x00\x00\x00\x01\xff", b""])
async def test_an_end_and_garbage_are_a_lost_link(garbage: bytes) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    await theirs.send_all(wire.encode(wire.GetStatus()) + garbage)
    await theirs.aclose()
    messages = Link(ours).messages()
    assert await anext(messages) == wire.GetStatus()
    with pytest.raises(LinkLost):
        await anext(messages)


async def test_a_broken_connection_is_a_lost_link() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    link = Link(ours)
    await theirs.aclose()
    await link.send(log(b"x"))
    with pytest.raises(LinkLost):
        await link.write()
    with pytest.raises(LinkLost):
        await link.send(log(b"y"))


async def test_a_silent_supervisor_is_given_up(autojump_clock: trio.testing.MockClock) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    link = Link(ours)
    start = trio.current_time()

    async def run() -> None:
        with pytest.raises(LinkLost, match="silent"):
            await link.beat()
        link.finish()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.write)
        nursery.start_soon(run)
    silence = trio.current_time() - start
    assert silence >= link_module.MISSED_HEARTBEATS * wire.HEARTBEAT_SECONDS
    await ours.aclose()
    beats = [m for m in await read(theirs) if isinstance(m, wire.Heartbeat)]
    assert len(beats) == link_module.MISSED_HEARTBEATS


async def test_a_supervisor_that_shows_life_is_kept(
    autojump_clock: trio.testing.MockClock,
) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    link = Link(ours)

    async def supervisor() -> None:
        for _ in range(30):
            await trio.sleep(wire.HEARTBEAT_SECONDS * 2)
            await theirs.send_all(wire.encode(wire.Heartbeat(1.0)))
        nursery.cancel_scope.cancel(reason="long enough")

    async def listen() -> None:
        async for _ in link.messages():
            pass

    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.write)
        nursery.start_soon(link.beat)
        nursery.start_soon(listen)
        nursery.start_soon(supervisor)
    assert nursery.cancel_scope.cancel_called
