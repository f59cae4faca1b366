"""The websockets, with a client that is not ours."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import trio
from trio_websocket import (
    ConnectionClosed,
    WebSocketConnection,
    wrap_client_stream,
)

from supervisor.api import events
from supervisor.model.build import Status
from tests.api.conftest import SOURCE, Api, Server, bearer, eventually, serving, tar_gz


@asynccontextmanager
async def connected(
    server: Server, path: str, headers: dict[str, str] | None = None
) -> AsyncIterator[WebSocketConnection]:
    """Open a websocket while the block lasts."""
    async with await server.connect() as stream, trio.open_nursery() as nursery:
        yield await shake_hands(nursery, stream, path, bearer() if headers is None else headers)
        nursery.cancel_scope.cancel(reason="the test is done with it")


UPGRADE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
}


async def refusal(server: Server, path: str, headers: dict[str, str]) -> tuple[int, str]:
    """Return the status and the code of what came instead of a handshake."""
    async with server.raw() as client:
        await client.send_head("GET", path, {**UPGRADE, **headers})
        await client.send_end()
        head = await client.receive_head()
        return head.status_code, json.loads(await client.receive_body())["code"]


async def shake_hands(
    nursery: trio.Nursery, stream: trio.SocketStream, path: str, headers: dict[str, str]
) -> WebSocketConnection:
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    return await wrap_client_stream(
        nursery, stream, "x", path, extra_headers=raw, max_message_size=8 << 20
    )


async def rest(socket: WebSocketConnection) -> tuple[list[dict[str, Any]], int]:
    """Return the messages until the end, and the code it closed with."""
    messages = []
    while True:
        try:
            messages.append(json.loads(await socket.get_message()))
        except ConnectionClosed as exc:
            return messages, exc.reason.code if exc.reason is not None else -1


def lines(messages: list[dict[str, Any]]) -> list[str]:
    return [
        message.get("content") or message.get("status") or message["type"] for message in messages
    ]


class TestFollow:
    """GET /builds/{id}/ws."""

    @pytest.mark.parametrize(
        ("status", "code"), [(Status.READY, 1000), (Status.FAILED, 4000), (Status.CANCELLED, 4001)]
    )
    async def test_events_come_until_the_end_and_the_code_tells_it(
        self, api: Api, server: Server, status: Status, code: int
    ) -> None:
        build_id = await api.submit()
        async with connected(server, f"/builds/{build_id}/ws") as socket:
            first = json.loads(await socket.get_message())
            api.fake.log(build_id, "one €")
            api.fake.finish(build_id, status)
            messages, closed = await rest(socket)
        assert lines([first, *messages]) == ["queued", "one €", status]
        assert closed == code

    async def test_it_resumes_behind_any_event(self, api: Api, server: Server) -> None:
        build_id = await api.submit_finished("one", "two", "three")
        async with connected(server, f"/builds/{build_id}/ws") as socket:
            whole, _ = await rest(socket)
        for at, event in enumerate(whole, 1):
            async with connected(server, f"/builds/{build_id}/ws?after={event['id']}") as socket:
                assert (await rest(socket))[0] == whole[at:]

    async def test_silence_is_broken_by_heartbeats(
        self, api: Api, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(events, "HEARTBEAT_SECONDS", 0.01)
        build_id = await api.submit()
        async with connected(server, f"/builds/{build_id}/ws") as socket:
            await socket.get_message()
            heartbeat = json.loads(await socket.get_message())
        assert heartbeat == {"type": "heartbeat", "timestamp": "2027-01-15T08:00:00.000Z"}

    @pytest.mark.parametrize(
        ("path", "headers", "status", "code"),
        [
            ("/builds/{id}/ws", {"Authorization": "Bearer x"}, 401, "unauthorized"),
            ("/builds/{id}/ws", bearer("rival"), 404, "not_found"),
            ("/builds/000000000000000000000000/ws", bearer(), 404, "not_found"),
            ("/builds/{id}/ws?after=x", bearer(), 400, "invalid_request"),
            ("/builds/{id}/ws?after=1000000", bearer(), 400, "invalid_request"),
            ("/builds/{id}/ws?more=1", bearer(), 400, "invalid_request"),
            ("/nope", bearer(), 404, "not_found"),
            ("/v2/ws", bearer(), 404, "not_found"),
        ],
    )
    async def test_a_refusal_comes_instead_of_the_handshake(
        self, api: Api, server: Server, path: str, headers: dict[str, str], status: int, code: str
    ) -> None:
        build_id = await api.submit()
        assert await refusal(server, path.format(id=build_id), headers) == (status, code)

    async def test_a_client_that_sends_without_end_neither_stalls_nor_fills_anything(
        self, api: Api, server: Server
    ) -> None:
        build_id = await api.submit()
        async with connected(server, f"/builds/{build_id}/ws") as socket:
            await socket.get_message()
            for _ in range(100):
                await socket.send_message(b"x" * 100_000)
            api.fake.finish(build_id, Status.READY)
            assert (await rest(socket))[1] == 1000

    async def test_a_client_that_leaves_is_forgotten(self, api: Api, server: Server) -> None:
        build_id = await api.submit()
        async with connected(server, f"/builds/{build_id}/ws") as socket:
            await socket.get_message()
            assert api.fake.open_readers == 1
        await eventually(lambda: not api.fake.open_readers)

    async def test_a_stop_of_the_daemon_says_so(self, api: Api) -> None:
        build_id = await api.submit()
        with trio.fail_after(20):
            async with (
                serving(api.with_settings(http_grace=1000.0)) as server,
                connected(server, f"/builds/{build_id}/ws") as socket,
            ):
                await socket.get_message()
                api.deps.stopping.set()
                assert await rest(socket) == ([], 1001)

    async def test_compression_is_never_agreed_on(self, api: Api, server: Server) -> None:
        build_id = await api.submit_finished("x" * 1000)
        offer = {"Sec-WebSocket-Extensions": "permessage-deflate"}
        async with server.raw() as client:
            target = f"/builds/{build_id}/ws"
            await client.send_head("GET", target, {**UPGRADE, **offer, **bearer()})
            answer = bytearray()
            while b"xxxx" not in answer:
                answer += await client.stream.receive_some()
        assert b" 101 " in answer.split(b"\r\n")[0]
        assert b"extensions" not in answer.lower()


class TestSubmit:
    """GET /builds/ws."""

    async def send(
        self, socket: WebSocketConnection, fields: object, source: bytes, size: int
    ) -> None:
        await socket.send_message(json.dumps(fields))
        for at in range(0, len(source), size):
            await socket.send_message(source[at : at + size])
        await socket.send_message(b"")

    @pytest.mark.parametrize("size", [1, 100_000])
    async def test_a_build_is_submitted_and_followed(
        self, api: Api, server: Server, size: int
    ) -> None:
        fields = {
            "tags": {"a": "b"},
            "build_args": {"V": "1"},
            "timeout_seconds": 20,
            "no_cache": True,
            "target": None,
        }
        async with connected(server, "/builds/ws") as socket:
            await self.send(socket, fields, SOURCE, size)
            told = json.loads(await socket.get_message())
            assert told["type"] == "build"
            build_id = told["build"]["id"]
            api.fake.log(build_id, "one")
            api.fake.finish(build_id, Status.READY)
            messages, closed = await rest(socket)
        assert lines(messages) == ["queued", "one", "ready"]
        assert closed == 1000
        build = api.fake.builds[build_id]
        assert build.request.build_args == {"V": "1"}
        assert build.request.policy.timeout_seconds == 20
        assert build.request.no_cache
        assert api.fake.upload_path(build_id).read_bytes() == SOURCE

    @pytest.mark.parametrize(
        ("fields", "source", "code", "closed"),
        [
            ({"nonsense": 1}, SOURCE, "invalid_request", 4400),
            ({"source": "x"}, SOURCE, "invalid_request", 4400),
            ({"timeout_seconds": "20"}, SOURCE, "invalid_request", 4400),
            ({"cpus": 1.5}, SOURCE, "invalid_request", 4400),
            ({"tags": "{}"}, SOURCE, "invalid_request", 4400),
            ([], SOURCE, "invalid_request", 4400),
            ({}, b"", "invalid_request", 4400),
            ({}, b"junk", "invalid_source", 4400),
            ({}, tar_gz(x=b""), "dockerfile_required", 4400),
            ({"source_hash": "0" * 64}, SOURCE, "source_hash_mismatch", 4400),
            ({"dockerfile": "x" * 3_000_000}, SOURCE, "payload_too_large", 4413),
        ],
    )
    async def test_what_is_wrong_is_told(
        self, api: Api, server: Server, fields: object, source: bytes, code: str, closed: int
    ) -> None:
        async with connected(server, "/builds/ws") as socket:
            with suppress(ConnectionClosed):
                await self.send(socket, fields, source, 100_000)
            messages, how = await rest(socket)
        assert [message["type"] for message in messages] == ["error"]
        assert messages[0]["code"] == code
        assert how == closed

    async def test_messages_of_the_wrong_kind_are_refused(self, api: Api, server: Server) -> None:
        async with connected(server, "/builds/ws") as socket:
            await socket.send_message(b"binary first")
            assert (await rest(socket))[1] == 4400
        async with connected(server, "/builds/ws") as socket:
            await socket.send_message("{}")
            await socket.send_message("text instead of the source")
            assert (await rest(socket))[1] == 4400

    async def test_a_source_over_the_limit_is_refused_as_it_comes(self, api: Api) -> None:
        async with (
            serving(api.with_settings(max_source_bytes=300_000)) as server,
            connected(server, "/builds/ws") as socket,
        ):
            await socket.send_message("{}")
            with suppress(ConnectionClosed):
                for _ in range(1000):
                    await socket.send_message(os.urandom(100_000))
            messages, code = await rest(socket)
        assert (messages[0]["code"], code) == ("payload_too_large", 4413)

    async def test_a_message_over_the_limit_closes_the_connection(
        self, api: Api, server: Server
    ) -> None:
        async with connected(server, "/builds/ws") as socket:
            await socket.send_message("{}")
            await socket.send_message(bytes(5 << 20))
            assert (await rest(socket))[1] == 1009

    async def test_a_client_that_leaves_in_the_middle_leaves_nothing(
        self, api: Api, server: Server
    ) -> None:
        async with connected(server, "/builds/ws") as socket:
            await socket.send_message("{}")
            await socket.send_message(os.urandom(2 << 20))
            await eventually(lambda: api.fake.leftovers())
        await eventually(lambda: not api.fake.leftovers())
        assert not api.fake.builds

    async def test_a_full_queue_refuses_the_handshake(self, api: Api, server: Server) -> None:
        api.fake.room = 0
        assert await refusal(server, "/builds/ws", bearer()) == (429, "queue_full")

    async def test_a_key_that_made_a_build_follows_that_one(self, api: Api, server: Server) -> None:
        ids = []
        for _ in range(2):
            async with connected(
                server, "/builds/ws", {**bearer(), "Idempotency-Key": "k"}
            ) as socket:
                await self.send(socket, {}, SOURCE, 1000)
                ids.append(json.loads(await socket.get_message())["build"]["id"])
        assert ids[0] == ids[1]


async def test_whoever_reads_a_log_is_counted_until_it_leaves(api: Api, server: Server) -> None:
    readers = api.deps.log_readers
    build_id = await api.submit()
    path = api.fake.log_path(build_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * (64 << 20))  # more than the buffers between the two ends hold
    logs = f"/builds/{build_id}/logs"
    async with server.client(**bearer()) as client, client.stream("GET", logs):
        await eventually(lambda: readers.count == 1)
        async with connected(server, f"/builds/{build_id}/ws"):
            await eventually(lambda: readers.count == 2)
            async with client.stream("GET", logs, headers={"Accept": "text/plain"}):
                await eventually(lambda: readers.count == 3)
            await eventually(lambda: readers.count == 2)
        await eventually(lambda: readers.count == 1)
    await eventually(lambda: readers.count == 0)
