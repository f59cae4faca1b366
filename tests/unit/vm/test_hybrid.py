"""The hybrid vsock's host side against peers of every kind."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from supervisor.vm.hybrid import (
    MAX_ANSWER_BYTES,
    Handshake,
    HybridStream,
    dial,
    listen_sync,
)
from supervisor.vm.machine import GuestUnreachable

Peer = Callable[[trio.SocketStream], Awaitable[None]]


@asynccontextmanager
async def device(path: Path, peer: Peer) -> AsyncIterator[None]:
    """A device whose every connection is handled by `peer`."""
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen()
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))

    async def handle(stream: trio.SocketStream) -> None:
        async with stream:
            await peer(stream)

    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, handle, [listener])
        yield
        nursery.cancel_scope.cancel(reason="the device ends")


async def read_request(stream: trio.SocketStream) -> bytes:
    request = b""
    while not request.endswith(b"\n"):
        request += await stream.receive_some(100)
    return request


def test_the_request_names_the_port() -> None:
    assert Handshake(5001).request == b"CONNECT 5001\n"


def test_an_answer_may_come_byte_by_byte() -> None:
    handshake = Handshake(5001)
    answer = b"OK 1073741824\n"
    assert [handshake.feed(bytes([byte])) for byte in answer[:-1]] == [None] * (len(answer) - 1)
    assert handshake.feed(answer[-1:]) == b""


def test_what_follows_the_answer_is_kept() -> None:
    assert Handshake(5001).feed(b"OK 5001\n\x00\x00\x00\x01\nmore") == b"\x00\x00\x00\x01\nmore"


def test_the_number_in_the_answer_means_nothing() -> None:
    assert Handshake(5001).feed(b"OK 99\n") == b""


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\n",
        b"NO 5001\n",
        b"OK\n",
        b"OK five\n",
        b"ok 5001\n",
        b"OK 5001 OK 5001\n",
        b"HTTP/1.1 400 Bad Request\r\n",
        b"\xff\xfe\x00\n",
        b"OK " + b"1" * MAX_ANSWER_BYTES,
        b"OK " + b"1" * MAX_ANSWER_BYTES + b"\n",
        b"x" * 100_000,
    ],
)
def test_any_other_answer_is_a_refusal(answer: bytes) -> None:
    with pytest.raises(GuestUnreachable) as caught:
        Handshake(5001).feed(answer)
    assert len(str(caught.value)) < 400


def test_an_endless_line_is_given_up_before_it_is_collected() -> None:
    handshake = Handshake(5001)
    for _ in range(MAX_ANSWER_BYTES - 1):
        assert handshake.feed(b"O") is None
    with pytest.raises(GuestUnreachable, match="overlong"):
        handshake.feed(b"O")


async def test_a_connection_carries_bytes_both_ways(tmp_path: Path) -> None:
    async def guest(stream: trio.SocketStream) -> None:
        assert await read_request(stream) == b"CONNECT 7\n"
        await stream.send_all(b"OK 7\nhel")
        await stream.send_all(b"lo")
        await stream.send_all(b"got " + await stream.receive_some(100))

    async with device(tmp_path / "v", guest), await dial(tmp_path / "v", 7) as stream:
        received = await stream.receive_some()
        while len(received) < 5:
            received += await stream.receive_some()
        assert received == b"hello"
        await stream.send_all(b"it")
        assert await stream.receive_some() == b"got it"
        assert await stream.receive_some() == b""


async def test_nothing_is_written_before_the_answer(tmp_path: Path) -> None:
    async def guest(stream: trio.SocketStream) -> None:
        await read_request(stream)
        with trio.move_on_after(0.05) as scope:
            await stream.receive_some(1)
        assert scope.cancelled_caught, "a byte came before the answer"
        await stream.send_all(b"OK 7\n")

    async with device(tmp_path / "v", guest):
        await (await dial(tmp_path / "v", 7)).aclose()


async def test_early_bytes_are_read_in_the_pieces_asked_for() -> None:
    ours, theirs = socket.socketpair()
    stream = HybridStream(trio.SocketStream(trio.socket.from_stdlib_socket(ours)), b"abcdef")
    theirs.sendall(b"gh")
    assert [await stream.receive_some(4) for _ in range(3)] == [b"abcd", b"ef", b"gh"]
    theirs.close()
    await stream.aclose()


async def hang_up(stream: trio.SocketStream) -> None:
    await read_request(stream)


async def reset(stream: trio.SocketStream) -> None:
    """Leave with unread input: the other end gets ECONNRESET."""
    await stream.receive_some(1)


async def say_no(stream: trio.SocketStream) -> None:
    await read_request(stream)
    await stream.send_all(b"no such port\n")


@pytest.mark.parametrize("peer", [hang_up, reset, say_no])
async def test_a_device_that_does_not_connect_is_a_refusal(tmp_path: Path, peer: Peer) -> None:
    async with device(tmp_path / "v", peer):
        with pytest.raises(GuestUnreachable):
            await dial(tmp_path / "v", 7)


async def test_a_socket_that_is_not_there_is_a_refusal(tmp_path: Path) -> None:
    with pytest.raises(GuestUnreachable, match="takes no connection"):
        await dial(tmp_path / "v", 7)


async def test_a_device_that_accepts_nothing_is_a_refusal_and_no_wait(tmp_path: Path) -> None:
    path = tmp_path / "v"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(str(path))
        listener.listen(0)
        first.connect(str(path))  # all that the backlog holds
        with pytest.raises(GuestUnreachable, match="takes no connection"):
            await dial(path, 7)


async def test_a_close_reads_what_is_left_so_that_the_peer_sees_an_end_and_no_error() -> None:
    ours, theirs = socket.socketpair()
    stream = HybridStream(trio.SocketStream(trio.socket.from_stdlib_socket(ours)))
    theirs.sendall(b"x" * 1000)
    await stream.aclose()
    assert theirs.recv(1) == b""
    theirs.close()


async def test_closing_twice_is_fine_and_use_after_it_is_told() -> None:
    ours, theirs = socket.socketpair()
    stream = HybridStream(trio.SocketStream(trio.socket.from_stdlib_socket(ours)), b"early")
    await stream.aclose()
    await stream.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await stream.receive_some(1)
    theirs.close()


async def test_a_listener_is_private_and_accepts(tmp_path: Path) -> None:
    path = tmp_path / "v_5003"
    listener = listen_sync(path)
    assert path.stat().st_mode & 0o777 == 0o600
    with socket.socket(socket.AF_UNIX) as guest:
        guest.connect(str(path))
        guest.sendall(b"from the guest")
        async with await listener.accept() as stream:
            assert await stream.receive_some() == b"from the guest"
    await listener.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await listener.accept()


async def test_a_listener_that_cannot_be_made_leaves_no_descriptor(tmp_path: Path) -> None:
    await trio.lowlevel.checkpoint()
    with pytest.raises(OSError, match="too long"):
        listen_sync(tmp_path / ("x" * 200))
