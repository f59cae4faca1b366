"""Connections and listeners: what hostile and unlucky clients do, and that a stop always ends."""

from __future__ import annotations

import json
import os
import socket
import stat
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import h11
import pytest
import trio
import trio.testing
from trio.testing import lockstep_stream_pair, memory_stream_pair

from supervisor.api import connection, listeners
from supervisor.api.front import Front
from supervisor.api.listeners import (
    SOCKET_NAME,
    serve_api,
    serve_connections,
    serve_registry_to_guest,
)
from supervisor.errors import ConfigError
from supervisor.model.ids import BuildId
from supervisor.runtime import accept
from tests.api.conftest import Api, Server, bearer, echo_registry, eventually, form, serving, tar_gz
from tests.api.rawclient import RawClient


async def endless(scope: Any, receive: Any, send: Any) -> None:
    """Answer with bytes without end."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    while True:
        await send({"type": "http.response.body", "body": bytes(1 << 20), "more_body": True})


async def early(scope: Any, receive: Any, send: Any) -> None:
    """Answer without reading the body."""
    headers = [(b"content-length", b"2")]
    await send({"type": "http.response.start", "status": 413, "headers": headers})
    await send({"type": "http.response.body", "body": b"no"})


class TestUploads:
    """What a client may do in the middle of an upload."""

    async def test_a_client_that_leaves_leaves_nothing(self, api: Api, server: Server) -> None:
        async with server.raw() as client:
            await begin_upload(client)
            await client.send_data(os.urandom(2 << 20))
            await eventually(lambda: api.fake.leftovers())
        await eventually(lambda: not api.fake.leftovers())
        assert not api.fake.builds

    async def test_a_client_that_stalls_is_told(
        self, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("supervisor.api.forms.STALL_SECONDS", 0.05)
        async with server.raw() as client:
            await begin_upload(client)
            assert (await client.receive_head()).status_code == 400
            assert b"stalled" in await client.receive_body()

    async def test_an_early_refusal_reaches_a_client_that_is_still_sending(self, api: Api) -> None:
        small = api.with_settings(max_source_bytes=1 << 20)
        async with serving(small) as server, server.raw() as client:
            await begin_upload(client)
            for _ in range(64):
                await client.send_data(bytes(1 << 20))
            assert (await client.receive_head()).status_code == 413
            assert json.loads(await client.receive_body())["code"] == "payload_too_large"

    async def test_an_announced_length_over_the_limit_is_refused_unread(
        self, server: Server
    ) -> None:
        headers = {
            "Content-Type": "multipart/form-data; boundary=x",
            "Content-Length": str(1 << 40),
            **bearer(),
        }
        async with server.raw() as client:
            await client.send_head("POST", "/builds", headers)
            assert (await client.receive_head()).status_code == 413

    async def test_an_application_that_reads_no_body_answers_all_the_same(self, api: Api) -> None:
        async with serving(api, early) as server, server.raw() as client:
            await client.send_head("PUT", "/v2/x", {"Transfer-Encoding": "chunked"})
            with trio.fail_after(10):
                for _ in range(64):
                    await client.send_data(bytes(1 << 18))
                assert (await client.receive_head()).status_code == 413
                assert await client.receive_body() == b"no"

    async def test_a_client_that_never_stops_sending_is_closed(
        self, api: Api, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(connection, "LINGER_SECONDS", 0.05)
        async with serving(api, early) as server, server.raw() as client:
            await client.send_head("PUT", "/v2/x", {"Transfer-Encoding": "chunked"})
            with trio.fail_after(20):
                while await is_taken(client, bytes(1 << 18)):
                    pass

    async def test_the_connection_is_used_again_after_an_upload(self, server: Server) -> None:
        async with server.client(**bearer()) as client:
            for _ in range(3):
                assert (await client.post("/builds", files=form())).status_code == 202

    async def test_over_both_listeners(self, api: Api, server: Server) -> None:
        big = tar_gz(Dockerfile=b"FROM x", data=os.urandom(5 << 20))
        async with server.client(**bearer()) as remote, server.local_client() as local:
            assert (await remote.post("/builds", files=form(big))).status_code == 202
            response = await local.post("/builds", files=form(big))
        assert response.json()["tenant"] == "local"
        assert api.fake.upload_path(BuildId(response.json()["id"])).read_bytes() == big


async def is_taken(client: RawClient, data: bytes) -> bool:
    """Send data; say whether the connection was still there."""
    try:
        await client.send_data(data)
    except trio.BrokenResourceError:
        return False
    return True


async def begin_upload(client: RawClient) -> None:
    """Send the head of a submission and of its source."""
    headers = {
        "Content-Type": "multipart/form-data; boundary=x",
        "Transfer-Encoding": "chunked",
        **bearer(),
    }
    await client.send_head("POST", "/builds", headers)
    await client.send_data(b'--x\r\nContent-Disposition: form-data; name="source"\r\n\r\n')


class TestStop:
    """Cancelling the listeners."""

    @pytest.mark.parametrize("kind", ["tcp", "unix"])
    async def test_a_client_that_never_reads_does_not_hold_it_up(self, api: Api, kind: str) -> None:
        api = api.with_settings(http_grace=0.05)
        async with AsyncExitStack() as stack:
            with trio.fail_after(10):
                async with serving(api, endless) as server:
                    stream: trio.abc.Stream = (
                        await server.connect()
                        if kind == "tcp"
                        else await trio.open_unix_socket(server.addresses.unix)
                    )
                    await stack.enter_async_context(stream)
                    await get(RawClient(stream), "/v2/")
                    # Until both kernels' buffers are full, and the daemon waits in its write.
                    await trio.testing.wait_all_tasks_blocked(0.05)

    async def test_an_open_request_gets_its_grace(self, api: Api) -> None:
        asked, go_on = trio.Event(), trio.Event()

        async def slow(scope: Any, receive: Any, send: Any) -> None:
            asked.set()
            await go_on.wait()
            await echo_registry(scope, receive, send)

        with trio.fail_after(10):
            async with serving(api.with_settings(http_grace=1000.0), slow) as server:
                stream = await server.connect()
                client = RawClient(stream)
                await client.send_head("GET", "/v2/slow")
                await client.send_end()
                await asked.wait()
                server.nursery.cancel_scope.cancel(reason="stop")
                with trio.CancelScope(shield=True):
                    await trio.testing.wait_all_tasks_blocked()
                    go_on.set()
                    assert (await client.receive_head()).status_code == 200
                    assert await client.receive_body() == b"registry /v2/slow"
                    await stream.aclose()

    async def test_idle_connections_are_closed_at_once(self, api: Api) -> None:
        async with AsyncExitStack() as stack:
            with trio.fail_after(10):
                async with serving(api.with_settings(http_grace=1000.0)) as server:
                    silent = await stack.enter_async_context(await server.connect())
                    used = await stack.enter_async_context(server.raw())
                    await get(used, "/health")
                    await used.receive_body()
            assert await silent.receive_some() == b""
            assert await used.stream.receive_some() == b""

    async def test_an_application_that_does_not_end_is_ended(self, api: Api) -> None:
        asked = trio.Event()

        async def forever(scope: Any, receive: Any, send: Any) -> None:
            asked.set()
            await trio.sleep_forever()

        async with AsyncExitStack() as stack:
            with trio.fail_after(10):
                async with serving(api.with_settings(http_grace=0.05), forever) as server:
                    client = await stack.enter_async_context(server.raw())
                    await client.send_head("GET", "/v2/")
                    await client.send_end()
                    await asked.wait()

    async def test_nothing_listens_afterwards(self, api: Api) -> None:
        async with serving(api) as server:
            addresses = server.addresses
        assert addresses.tcp is not None
        with pytest.raises(OSError, match="all attempts to connect"):
            await trio.open_tcp_stream(*addresses.tcp)
        assert not addresses.unix.exists()


async def get(client: RawClient, target: str) -> h11.Response:
    """Ask, and return the head of the answer."""
    await client.send_head("GET", target)
    await client.send_end()
    return await client.receive_head()


class TestProtocol:
    """What is not HTTP as we speak it."""

    async def exchange(self, server: Server, data: bytes) -> bytes:
        """Send `data` and return everything until the server closes."""
        async with await server.connect() as stream:
            await stream.send_all(data)
            with trio.fail_after(10):
                return b"".join([piece async for piece in stream])

    @pytest.mark.parametrize(
        "data",
        [
            b"hello\r\n\r\n",
            b"GET / HTTP/1.1\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: nonsense\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"b" * 100_000,
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(600),
        ],
    )
    async def test_what_is_no_request_is_answered_in_json(
        self, server: Server, data: bytes
    ) -> None:
        async with server.raw() as client:
            with suppress(trio.BrokenResourceError):  # of a long one, the rest is not taken
                await client.stream.send_all(data)
            client.pretend("GET")
            assert (await client.receive_head()).status_code in (400, 431, 501)
            assert json.loads(await client.receive_body())["code"] == "invalid_request"

    @pytest.mark.parametrize("target", [b"*", b"x", b"?a=b", b"host:80"])
    async def test_a_target_that_is_no_path_is_refused(self, server: Server, target: bytes) -> None:
        answer = await self.exchange(
            server, b"GET " + target + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )
        assert b"HTTP/1.1 400 " in answer
        assert b'"code": "invalid_request"' in answer

    @pytest.mark.parametrize(
        ("target", "expected"),
        [
            (b"http://x/health", b'{"status":"ok"}'),
            (b"http://x/v2/", b"registry /v2/"),
            (b"http://x", b"not_found"),
            (b"/%76%32/a", b"registry /v2/a"),
        ],
    )
    async def test_targets_are_reduced_to_their_path(
        self, server: Server, target: bytes, expected: bytes
    ) -> None:
        answer = await self.exchange(
            server, b"GET " + target + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )
        assert answer.endswith(expected) or expected in answer

    async def test_no_upgrade_to_http2(self, server: Server) -> None:
        answer = await self.exchange(
            server,
            b"GET /health HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\n"
            b"HTTP2-Settings: AAMAAABkAAQAAP__\r\n"
            b"Connection: Upgrade, HTTP2-Settings, close\r\n\r\n",
        )
        assert answer.startswith(b"HTTP/1.1 200 ")

    async def test_the_server_does_not_tell_what_it_is(self, server: Server) -> None:
        async with server.client() as client:
            assert "Server" not in (await client.get("/health")).headers

    async def test_a_head_that_does_not_come_is_not_waited_for(
        self, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(connection, "KEEP_ALIVE_SECONDS", 0.05)
        assert await self.exchange(server, b"GET / HTTP/1.1\r\n") == b""

    async def test_a_bug_behind_the_front_is_answered_in_json(self, api: Api) -> None:
        async def broken(scope: Any, receive: Any, send: Any) -> None:
            raise ZeroDivisionError("secret")

        async with serving(api, broken) as server, server.client() as client:
            response = await client.get("/v2/")
        assert response.status_code == 500
        assert response.json()["code"] == "internal_error"
        assert "secret" not in response.text

    async def test_a_bug_in_the_middle_of_an_answer_cuts_it(self, api: Api) -> None:
        async def broken(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"half", "more_body": True})
            raise ZeroDivisionError

        async with serving(api, broken) as server, server.raw() as client:
            await get(client, "/v2/")
            with pytest.raises(h11.RemoteProtocolError, match="closed connection"):
                await client.receive_body()

    async def test_a_crash_of_the_machinery_costs_one_connection(
        self, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def broken(self: object) -> None:
            raise ZeroDivisionError

        with monkeypatch.context() as patch:
            patch.setattr(connection.Connection, "run", broken)
            async with await server.connect() as stream:
                assert await stream.receive_some() == b""
        async with server.client() as client:
            assert (await client.get("/health")).status_code == 200


class TestListeners:
    """Addresses, permissions, limits."""

    async def test_a_tcp_peer_that_takes_nothing_is_given_up(
        self, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        accepted: list[int] = []
        serve_one = listeners._serve_one

        async def spy(front: Any, context: Any, stream: trio.SocketStream, slots: Any) -> None:
            option = (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
            accepted.append(stream.socket.getsockopt(*option))
            await serve_one(front, context, stream, slots)

        monkeypatch.setattr(listeners, "_serve_one", spy)
        async with server.client() as client:
            await client.get("/health")
        assert accepted == [listeners.USER_TIMEOUT_MS]

    async def test_the_unix_socket_is_for_its_owner_and_group(self, server: Server) -> None:
        mode = server.addresses.unix.stat().st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o660

    async def test_without_a_key_there_is_no_tcp_listener(self, api: Api) -> None:
        keyless = replace(api, deps=replace(api.deps, keys=None))
        async with serving(keyless) as server, server.local_client() as client:
            assert server.addresses.tcp is None
            assert (await client.get("/builds")).status_code == 200

    async def test_without_a_host_there_is_no_tcp_listener(self, api: Api) -> None:
        async with serving(api.with_settings(host="")) as server:
            assert server.addresses.tcp is None

    async def test_a_stale_socket_is_replaced(self, api: Api) -> None:
        path = api.deps.settings.runtime_dir / SOCKET_NAME
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(os.fspath(path))
        async with serving(api) as server, server.local_client() as client:
            assert (await client.get("/health")).status_code == 200

    async def test_a_living_daemons_socket_is_not_taken(self, api: Api, server: Server) -> None:
        with pytest.raises(ConfigError, match="another daemon listens"):
            await serve_api(api.deps, echo_registry)
        async with server.local_client() as client:
            assert (await client.get("/health")).status_code == 200

    async def test_what_is_no_socket_is_not_removed(self, api: Api) -> None:
        path = api.deps.settings.runtime_dir / SOCKET_NAME
        path.write_text("precious")
        with pytest.raises(ConfigError, match="is no socket"):
            await serve_api(api.deps, echo_registry)
        assert path.read_text() == "precious"

    async def test_a_path_that_is_too_long_is_the_operators_to_change(
        self, api: Api, tmp_path: Path
    ) -> None:
        deep = tmp_path / ("d" * 120)
        deep.mkdir()
        with pytest.raises(ConfigError, match="RUNTIME_DIR"):
            await serve_api(api.with_settings(runtime_dir=deep).deps, echo_registry)

    async def test_a_taken_port_is_the_operators_to_change(
        self, api: Api, server: Server, tmp_path: Path
    ) -> None:
        assert server.addresses.tcp is not None
        other = tmp_path / "other"
        other.mkdir()
        taken = api.with_settings(port=server.addresses.tcp[1], runtime_dir=other)
        with pytest.raises(ConfigError, match="HOST, PORT"):
            await serve_api(taken.deps, echo_registry)
        assert not (other / SOCKET_NAME).exists()

    async def test_another_daemons_socket_survives_our_stop(self, api: Api) -> None:
        async with serving(api) as server:
            path = server.addresses.unix
            path.unlink()
            path.write_text("somebody else's")
        assert path.read_text() == "somebody else's"

    async def test_connections_over_the_limit_wait(self) -> None:
        front = Front(api=None, registry=echo_registry)
        listener, connect = memory_listener()
        async with trio.open_nursery() as nursery:
            serve = partial(serve_connections, grace_seconds=0, max_connections=2)
            nursery.start_soon(serve, listener, front)
            first, second, third = [await connect() for _ in range(3)]
            for stream in (second, third):
                client = RawClient(stream)
                await client.send_head("GET", "/v2/")
                await client.send_end()
            await RawClient(second).receive_head()
            with trio.move_on_after(0.05) as scope:
                await third.receive_some()
            assert scope.cancelled_caught, "the third connection was served"
            await first.aclose()
            assert b"200" in await third.receive_some()
            nursery.cancel_scope.cancel(reason="done")

    async def test_a_lack_of_descriptors_is_waited_out(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(accept, "_PAUSE_SECONDS", 0)
        listener, connect = memory_listener(24, 23)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_registry_to_guest, listener, echo_registry)
            client = RawClient(await connect())
            await client.send_head("GET", "/v2/")
            await client.send_end()
            assert (await client.receive_head()).status_code == 200
            nursery.cancel_scope.cancel(reason="done")


class TestGuest:
    """The listener of one machine."""

    @pytest.mark.parametrize(
        ("target", "status"),
        [
            ("/v2/", 200),
            ("/v2/a/manifests/latest", 200),
            ("/v2", 200),
            ("/", 404),
            ("/builds", 404),
            ("/health", 404),
            ("/v2x", 404),
            ("//v2/", 404),
            ("/../v2/", 404),
        ],
    )
    async def test_only_the_registry_is_there(self, target: str, status: int) -> None:
        listener, connect = memory_listener()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_registry_to_guest, listener, echo_registry)
            client = RawClient(await connect())
            await client.send_head("GET", target)
            await client.send_end()
            response = await client.receive_head()
            body = await client.receive_body()
            nursery.cancel_scope.cancel(reason="done")
        assert response.status_code == status
        if status == 404:
            assert json.loads(body)["code"] == "not_found"

    async def test_a_stop_does_not_wait_for_the_guest(self) -> None:
        listener, connect = memory_listener(pair=lockstep_stream_pair)
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve_registry_to_guest, listener, endless)
                client = RawClient(await connect())
                await client.send_head("GET", "/v2/")
                await client.send_end()
                await client.receive_head()
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel(reason="the machine is gone")

    async def test_the_stream_is_never_half_closed(self) -> None:
        listener, connect = memory_listener()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_registry_to_guest, listener, early)
            client = RawClient(await connect())
            await client.send_head("PUT", "/v2/x", {"Content-Length": "100"})
            assert (await client.receive_head()).status_code == 413
            await client.stream.aclose()
            nursery.cancel_scope.cancel(reason="done")


Connect = Callable[[], Awaitable[trio.abc.Stream]]
Pair = Callable[[], tuple[trio.StapledStream[Any, Any], trio.StapledStream[Any, Any]]]


class MemoryListener(trio.abc.Listener[trio.abc.Stream]):
    """Accepts the far ends of memory streams."""

    def __init__(self, failures: list[int]) -> None:
        self.send, self._receive = trio.open_memory_channel[trio.abc.Stream](10)
        self._failures = failures

    async def accept(self) -> trio.abc.Stream:
        if self._failures:
            raise OSError(self._failures.pop(0), "too many open files")
        return await self._receive.receive()

    async def aclose(self) -> None:
        self._receive.close()


def memory_listener(
    *failures: int, pair: Pair = memory_stream_pair
) -> tuple[MemoryListener, Connect]:
    """Return a listener that first fails with these error numbers, and how to connect to it.

    Its streams cannot be half-closed, which wedges some vsock devices: it fails the test.
    """
    listener = MemoryListener([*failures])

    async def connect() -> trio.abc.Stream:
        near, far = pair()

        async def refuse() -> None:
            raise AssertionError("the stream was half-closed")

        far.send_eof = refuse  # type: ignore[method-assign]
        await listener.send.send(far)
        return near

    return listener, connect
