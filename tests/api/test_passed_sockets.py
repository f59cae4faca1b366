"""Serving on sockets that the service manager has opened."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from supervisor.api.listeners import serve_api
from supervisor.runtime.activation import PassedSockets
from tests.api.conftest import Api, Server, echo_registry


@pytest.fixture
def unix(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "theirs.sock"))
        sock.listen()
        yield sock


@pytest.fixture
def tcp() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


async def check_answers(api: Api, passed: PassedSockets) -> Server:
    async with trio.open_nursery() as nursery:
        addresses = await nursery.start(serve_api, api.deps, echo_registry, passed)
        server = Server(addresses, nursery)
        async with server.client() as client:
            assert (await client.get("/health")).status_code == 200
        async with server.local_client() as client:
            assert (await client.get("/health")).status_code == 200
        nursery.cancel_scope.cancel(reason="the test is over")
    return server


async def test_sockets_that_were_passed_are_served_and_their_names_left(
    api: Api, tmp_path: Path, unix: socket.socket, tcp: socket.socket
) -> None:
    address = tcp.getsockname()
    server = await check_answers(api, PassedSockets((tcp.dup(),), (unix.dup(),)))
    assert server.addresses.tcp == address
    assert server.addresses.unix == tmp_path / "theirs.sock"
    assert server.addresses.unix.is_socket(), "its maker would listen where nobody finds it"
    assert not (tmp_path / "hypeman.sock").exists()


async def test_a_kind_that_was_not_passed_is_made_as_configured(
    api: Api, tmp_path: Path, unix: socket.socket
) -> None:
    server = await check_answers(api, PassedSockets(unix=(unix.dup(),)))
    assert server.addresses.tcp is not None
    assert server.addresses.unix == tmp_path / "theirs.sock"


async def test_a_client_that_came_before_the_daemon_is_answered(
    api: Api, tmp_path: Path, unix: socket.socket
) -> None:
    with socket.socket(socket.AF_UNIX) as early:
        early.connect(str(tmp_path / "theirs.sock"))
        early.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        await check_answers(api, PassedSockets(unix=(unix.dup(),)))
        assert early.recv(4096).startswith(b"HTTP/1.1 200 ")
