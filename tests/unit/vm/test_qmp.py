"""QMP against a VMM that the test plays, honest or not."""

from __future__ import annotations

import socket

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from supervisor.vm.qmp import MAX_LINE_BYTES, LineDecoder, Qmp, QmpBroken

GREETING = b'{"QMP": {"version": {}, "capabilities": []}}\r\n'
EVENT = b'{"event": "RESUME", "timestamp": {}}\r\n'
SHUTDOWN = b'{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"}}\r\n'


async def negotiated() -> tuple[Qmp, socket.socket]:
    ours, vmm = socket.socketpair()
    ours.setblocking(False)
    qmp = Qmp(ours)
    vmm.sendall(GREETING + EVENT)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(qmp.negotiate)
        await trio.testing.wait_all_tasks_blocked()
        assert vmm.recv(100) == b'{"execute":"qmp_capabilities"}\n'
        vmm.sendall(EVENT + b'{"return": {}}\r\n')
    return qmp, vmm


def test_objects_come_out_whole_however_they_arrive() -> None:
    decoder = LineDecoder()
    found = [message for byte in GREETING + EVENT for message in decoder.feed(bytes([byte]))]
    assert [next(iter(message)) for message in found] == ["QMP", "event"]


@pytest.mark.parametrize(
    "data",
    [
        b"hello\n",
        b"[]\n",
        b"1\n",
        b'"QMP"\n',
        b"\xff\n",
        b"{\n",
        b"[" * 60_000 + b"\n",
        b"x" * 70_000,
    ],
)
def test_nonsense_breaks_the_session(data: bytes) -> None:
    with pytest.raises(QmpBroken):
        LineDecoder().feed(data)


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    try:
        messages = LineDecoder().feed(data + b"\n")
    except QmpBroken:
        return
    assert all(isinstance(message, dict) for message in messages)


def test_a_line_is_given_up_before_it_fills_the_memory() -> None:
    decoder = LineDecoder()
    assert decoder.feed(b" " * MAX_LINE_BYTES) == []
    with pytest.raises(QmpBroken, match="longer than"):
        decoder.feed(b" ")


async def test_the_reason_of_a_shutdown_is_noted() -> None:
    qmp, vmm = await negotiated()
    vmm.sendall(EVENT + SHUTDOWN)
    vmm.close()
    await qmp.follow()
    assert qmp.stop_reason == "guest-shutdown"
    assert not qmp.quit_nowait()
    qmp.close()


@pytest.mark.parametrize("data", [b"null", b"[]", b'{"reason": 7}', b"{}"])
async def test_a_malformed_reason_is_no_reason(data: bytes) -> None:
    qmp, vmm = await negotiated()
    vmm.sendall(b'{"event": "SHUTDOWN", "data": ' + data + b"}\n")
    vmm.close()
    await qmp.follow()
    assert qmp.stop_reason is None
    qmp.close()


async def test_quit_is_one_line_that_does_not_wait() -> None:
    qmp, vmm = await negotiated()
    assert qmp.quit_nowait()
    assert vmm.recv(100) == b'{"execute":"quit"}\n'
    while qmp.quit_nowait():  # a VMM that reads nothing
        pass
    qmp.close()
    vmm.close()
    assert not qmp.quit_nowait()


async def test_quit_before_the_negotiation_is_not_possible() -> None:
    await trio.lowlevel.checkpoint()
    ours, vmm = socket.socketpair()
    qmp = Qmp(ours)
    assert not qmp.quit_nowait()
    qmp.close()
    vmm.close()


@pytest.mark.parametrize(
    "said",
    [b"", b"\n", b'{"event": "RESUME"}\n', b"garbage\n", GREETING + b'{"error": {}}\n', GREETING],
)
async def test_a_vmm_that_does_not_negotiate_is_told(said: bytes) -> None:
    ours, vmm = socket.socketpair()
    ours.setblocking(False)
    vmm.sendall(said)
    vmm.shutdown(socket.SHUT_WR)
    qmp = Qmp(ours)
    with pytest.raises(QmpBroken):
        await qmp.negotiate()
    qmp.close()
    vmm.close()


async def test_a_cancelled_negotiation_leaves_a_socket_that_can_be_closed() -> None:
    ours, vmm = socket.socketpair()
    ours.setblocking(False)
    qmp = Qmp(ours)
    with trio.move_on_after(0.01) as scope:
        await qmp.negotiate()
    assert scope.cancelled_caught
    qmp.close()
    vmm.close()
