"""The rules by which a machine's vsock is used, against a device that the test plays."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from supervisor.errors import GuestLost, HostError
from supervisor.model.build import ErrorReason
from supervisor.vm.machine import GuestUnreachable
from supervisor.vm.vsock import MAX_UNANSWERED, Vsock


class Device:
    """A device under the test's control: connections wait until they are answered."""

    def __init__(self, path: Path) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(128)
        self._listener.setblocking(False)
        self.connections: list[socket.socket] = []

    def accept(self) -> socket.socket:
        connection, _ = self._listener.accept()
        connection.setblocking(False)
        self.connections.append(connection)
        assert connection.recv(100) == b"CONNECT 7\n"
        return connection

    def has_caller(self) -> bool:
        try:
            self.accept()
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        for sock in (self._listener, *self.connections):
            sock.close()


@asynccontextmanager
async def vsock_with_device(tmp_path: Path) -> AsyncIterator[tuple[Vsock, Device]]:
    device = Device(tmp_path / "v")
    try:
        async with trio.open_nursery() as nursery:
            yield Vsock(tmp_path / "v", nursery), device
            nursery.cancel_scope.cancel(reason="the machine is over")
    finally:
        device.close()


async def test_nobody_reaches_the_device_before_the_guest_is_up(tmp_path: Path) -> None:
    async with vsock_with_device(tmp_path) as (vsock, device):
        with pytest.raises(GuestUnreachable, match="has not booted"):
            await vsock.connect(7)
        assert not device.has_caller()


async def test_an_answer_is_handed_to_the_caller(tmp_path: Path) -> None:
    async with vsock_with_device(tmp_path) as (vsock, device), trio.open_nursery() as nursery:
        vsock.open()

        async def answer() -> None:
            await trio.testing.wait_all_tasks_blocked()
            device.accept().sendall(b"OK 7\nhello")

        nursery.start_soon(answer)
        stream = await vsock.connect(7)
        assert await stream.receive_some() == b"hello"
        await stream.aclose()


async def test_a_caller_that_gives_up_leaves_the_connection_open_until_the_answer(
    tmp_path: Path,
) -> None:
    async with vsock_with_device(tmp_path) as (vsock, device):
        vsock.open()
        async with trio.open_nursery() as callers:
            callers.start_soon(vsock.connect, 7)
            await trio.testing.wait_all_tasks_blocked()
            connection = device.accept()
            callers.cancel_scope.cancel(reason="the caller gives up")
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(BlockingIOError):
            connection.recv(1)  # still open
        connection.sendall(b"OK 7\n")
        connection.setblocking(True)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert connection.recv(1) == b""


async def test_an_answer_in_the_moment_of_giving_up_is_not_lost(tmp_path: Path) -> None:
    async def connect_and_close() -> None:
        await (await vsock.connect(7)).aclose()

    async with vsock_with_device(tmp_path) as (vsock, device):
        vsock.open()
        for ticks in range(6):
            async with trio.open_nursery() as callers:
                callers.start_soon(connect_and_close)
                await trio.testing.wait_all_tasks_blocked()
                connection = device.accept()
                connection.sendall(b"OK 7\n")
                for _ in range(ticks):
                    await trio.lowlevel.checkpoint()
                callers.cancel_scope.cancel(reason="the caller gives up")
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert connection.recv(1) == b"", f"{ticks} steps after the answer"


async def test_a_guest_that_never_answers_is_called_no_more(tmp_path: Path) -> None:
    async with vsock_with_device(tmp_path) as (vsock, device):
        vsock.open()
        async with trio.open_nursery() as callers:
            for _ in range(MAX_UNANSWERED):
                callers.start_soon(vsock.connect, 7)
            await trio.testing.wait_all_tasks_blocked()
            callers.cancel_scope.cancel(reason="all give up")
        with pytest.raises(GuestUnreachable, match=f"{MAX_UNANSWERED} connections unanswered"):
            await vsock.connect(7)
        for _ in range(MAX_UNANSWERED):
            device.accept()
        assert not device.has_caller()


async def test_a_lost_machine_is_lost_for_those_who_wait_and_those_who_come(
    tmp_path: Path,
) -> None:
    errors: list[GuestLost] = []

    async def call(vsock: Vsock) -> None:
        with pytest.raises(GuestLost, match="the VMM ended") as caught:
            await vsock.connect(7)
        errors.append(caught.value)

    async with trio.open_nursery() as callers, vsock_with_device(tmp_path) as (vsock, _):
        vsock.open()
        callers.start_soon(call, vsock)
        await trio.testing.wait_all_tasks_blocked()
        vsock.close("the VMM ended: killed by SIGKILL", ErrorReason.VMM_EXITED)
        vsock.close("something else", ErrorReason.GUEST_STOPPED)
    await call(vsock)
    assert [error.reason for error in errors] == [ErrorReason.VMM_EXITED] * 2


async def test_a_listener_is_where_the_device_looks_and_goes_with_its_block(
    tmp_path: Path,
) -> None:
    async with vsock_with_device(tmp_path) as (vsock, _):
        async with vsock.listen(5003):
            assert (tmp_path / "v_5003").is_socket()
        assert not (tmp_path / "v_5003").exists()


async def test_a_host_without_descriptors_says_so_and_does_not_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(24, "Too many open files")

    async with trio.open_nursery() as nursery:
        vsock = Vsock(tmp_path / "v.sock", nursery)
        vsock.open()
        with monkeypatch.context() as patch:
            patch.setattr(socket, "socket", refuse)
            with pytest.raises(HostError, match="Too many open files"):
                async with vsock.listen(7):
                    raise AssertionError("nothing listens")
            with pytest.raises(GuestUnreachable, match="Too many open files"):
                await vsock.connect(7)
