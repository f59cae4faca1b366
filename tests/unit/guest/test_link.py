"""The connection to the agent: typed messages, and every misbehaviour is GuestLost."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from agent import wire
from supervisor.errors import GuestLost
from supervisor.guest.link import GuestLink, send_heartbeats

SILENCE = 60.0
HELLO = wire.Hello(protocol=wire.PROTOCOL_VERSION, agent="test")


def connected() -> tuple[GuestLink, trio.abc.Stream]:
    near, far = trio.testing.memory_stream_pair()
    return GuestLink(near, silence_seconds=SILENCE), far


def connected_in_lockstep() -> tuple[GuestLink, trio.abc.Stream]:
    near, far = trio.testing.lockstep_stream_pair()
    return GuestLink(near, silence_seconds=SILENCE), far


async def test_messages_arrive_in_order_however_the_bytes_are_cut(
    autojump_clock: trio.testing.MockClock,
) -> None:
    link, guest = connected()
    sent: list[wire.Message] = [HELLO, *(wire.Heartbeat(float(n)) for n in range(5))]
    stream = b"".join(map(wire.encode, sent))
    async with trio.open_nursery() as nursery:

        async def speak() -> None:
            for at in range(0, len(stream), 7):
                await guest.send_all(stream[at : at + 7])
                await trio.sleep(1)

        nursery.start_soon(speak)
        assert [await link.receive() for _ in sent] == sent


async def test_what_the_host_says_arrives() -> None:
    link, guest = connected()
    await link.send(wire.HostReady())
    await link.send(wire.Cancel("enough"))
    heard = list(wire.FrameDecoder().feed(await guest.receive_some()))
    assert heard == [wire.HostReady(), wire.Cancel("enough")]


async def test_two_senders_do_not_mix_their_frames(
    autojump_clock: trio.testing.MockClock,
) -> None:
    link, guest = connected_in_lockstep()
    messages = [wire.Error(letter * 100) for letter in "abcdef"]
    decoder = wire.FrameDecoder()
    heard: list[object] = []
    async with trio.open_nursery() as nursery:
        for message in messages:
            nursery.start_soon(link.send, message)
        while len(heard) < len(messages):
            heard += decoder.feed(await guest.receive_some(13))
    assert sorted(heard, key=str) == messages


async def test_thousands_of_messages_in_one_read_let_others_run() -> None:
    link, guest = connected()
    tiny = wire.encode(wire.GetStatus())
    number = (64 << 10) // len(tiny)
    await guest.send_all(tiny * number)
    turns = 0
    async with trio.open_nursery() as nursery:

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await trio.lowlevel.checkpoint()

        nursery.start_soon(other)
        for _ in range(number):
            assert await link.receive() == wire.GetStatus()
        nursery.cancel_scope.cancel(reason="heard everything")
    assert turns > number // 2


async def test_the_smallest_messages_there_are_do_not_crash_the_reader() -> None:
    link, guest = connected()
    smallest = b"\x00\x00\x00\x07\xa1\x64type\x60"
    await guest.send_all(smallest * 6000)
    for _ in range(6000):
        assert await link.receive() == wire.Unknown("")


@pytest.mark.parametrize(
    ("misbehave", "why"),
    [
        (lambda guest: guest.aclose(), "closed"),
        (lambda guest: guest.send_all(b"\xff\xff\xff\xff"), "over the limit"),
        (lambda guest: guest.send_all(b"\x00\x00\x00\x01\xff"), "broke the protocol"),
        (lambda guest: guest.send_all(b"GET / HTTP/1.1\r\n\r\n"), "broke the protocol"),
        (lambda guest: guest.send_all(b""), "said nothing for 60 s"),
    ],
)
async def test_a_guest_that_misbehaves_is_lost(
    misbehave: Callable[[trio.abc.Stream], Awaitable[None]],
    why: str,
    autojump_clock: trio.testing.MockClock,
) -> None:
    link, guest = connected()
    await misbehave(guest)
    with pytest.raises(GuestLost, match=why):
        await link.receive()


async def test_a_frame_that_never_ends_is_silence(autojump_clock: trio.testing.MockClock) -> None:
    link, guest = connected()
    await guest.send_all(wire.encode(HELLO)[:-1])
    with pytest.raises(GuestLost, match="said nothing"):
        await link.receive()


async def test_messages_before_the_end_are_still_heard() -> None:
    link, guest = connected()
    await guest.send_all(wire.encode(HELLO) + b"\xff\xff\xff\xff")
    await guest.aclose()
    assert await link.receive() == HELLO
    with pytest.raises(GuestLost, match="over the limit"):
        await link.receive()


async def test_a_guest_that_takes_nothing_is_lost(autojump_clock: trio.testing.MockClock) -> None:
    link, _ = connected_in_lockstep()
    with pytest.raises(GuestLost, match="took no message for 60 s"):
        await link.send(wire.HostReady())


async def test_sending_to_a_guest_that_is_gone_loses_it() -> None:
    link, guest = connected()
    await guest.aclose()
    with pytest.raises(GuestLost, match="broke"):
        await link.send(wire.HostReady())


async def test_a_closed_link_is_a_lost_guest() -> None:
    link, _ = connected()
    await link.aclose()
    await link.aclose()
    with pytest.raises(GuestLost):
        await link.receive()
    with pytest.raises(GuestLost):
        await link.send(wire.HostReady())


async def test_a_cancelled_receive_loses_no_message() -> None:
    link, guest = connected()
    with trio.CancelScope() as scope:
        scope.cancel(reason="test")
        await link.receive()
    await guest.send_all(wire.encode(HELLO) * 2)
    assert await link.receive() == HELLO
    with trio.CancelScope() as scope:
        scope.cancel(reason="test")
        await link.receive()
    assert await link.receive() == HELLO


async def test_a_hello_is_expected_first() -> None:
    link, guest = connected()
    await guest.send_all(wire.encode(HELLO))
    assert await link.receive_hello() == HELLO


@pytest.mark.parametrize(
    ("first", "why"),
    [
        (wire.Heartbeat(1.0), "not a hello"),
        (wire.Hello(protocol=99, agent="newer"), "rebuild the builder image"),
    ],
)
async def test_any_other_beginning_loses_the_guest(first: wire.Message, why: str) -> None:
    link, guest = connected()
    await guest.send_all(wire.encode(first))
    with pytest.raises(GuestLost, match=why):
        await link.receive_hello()


async def test_heartbeats_go_out_until_the_guest_is_lost(
    autojump_clock: trio.testing.MockClock,
) -> None:
    link, guest = connected()
    async with trio.open_nursery() as nursery:

        async def beat() -> None:
            with pytest.raises(GuestLost):
                await send_heartbeats(link, lambda: 7.0)

        nursery.start_soon(beat)
        await trio.sleep(wire.HEARTBEAT_SECONDS * 3.5)
        heard = list(wire.FrameDecoder().feed(await guest.receive_some()))
        assert heard == [wire.Heartbeat(7.0)] * 3
        await guest.aclose()
