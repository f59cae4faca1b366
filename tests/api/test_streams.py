"""Following builds: server-sent events, resuming, heartbeats, and the log as text."""

from __future__ import annotations

import httpx2
import pytest
import trio

from supervisor.api import events
from supervisor.api.events import EventStreamBody
from supervisor.model.build import Status
from supervisor.model.events import START
from supervisor.model.ids import BuildId
from tests.api.conftest import Api, Server, bearer, eventually, serving
from tests.api.rawclient import Event, following, parse_events
from tests.api.test_websockets import UPGRADE


async def read(api: Api, path: str, **headers: str) -> list[Event]:
    async with api.client(**bearer(), **headers) as client:
        response = await client.get(path)
    assert response.status_code == 200, response.text
    assert response.headers["Content-Type"] == "text/event-stream"
    assert response.headers["Cache-Control"] == "no-cache"
    return list(parse_events(response.text))


@pytest.mark.parametrize("path", ["logs", "logs?follow=false", "events", "events?follow=true"])
async def test_a_finished_build_is_told_from_start_to_end(api: Api, path: str) -> None:
    build_id = await api.submit_finished("one", "two")
    found = await read(api, f"/builds/{build_id}/{path}")
    assert [event.line for event in found] == ["queued", "one", "two", "ready"]
    assert [event.data["type"] for event in found] == ["status", "log", "log", "status"]


async def test_reading_on_from_any_event_gives_the_rest_once(api: Api) -> None:
    build_id = await api.submit_finished("one", "two", "three")
    api.fake.batch_size = 2
    whole = await read(api, f"/builds/{build_id}/events")
    for at, event in enumerate(whole, 1):
        assert event.id is not None
        rest = await read(api, f"/builds/{build_id}/events", **{"Last-Event-ID": event.id})
        assert rest == whole[at:]


async def test_without_following_a_running_build_is_told_so_far(api: Api) -> None:
    build_id = await api.submit()
    api.fake.log(build_id, "one")
    found = await read(api, f"/builds/{build_id}/events")
    assert [event.line for event in found] == ["queued", "one"]


@pytest.mark.parametrize("value", ["x", "-1", "1.5", "9" * 30])
async def test_an_id_that_was_never_given_out_is_refused(api: Api, value: str) -> None:
    build_id = await api.submit_finished()
    async with api.client(**bearer(), **{"Last-Event-ID": value}) as client:
        response = await client.get(f"/builds/{build_id}/logs")
    assert response.status_code == 400


@pytest.mark.parametrize("path", ["logs", "events"])
async def test_an_id_beyond_the_last_event_is_refused(api: Api, path: str) -> None:
    build_id = await api.submit_finished("one")
    last = (await read(api, f"/builds/{build_id}/events"))[-1].id
    assert last is not None
    beyond = str(int(last) + 1)
    async with api.client(**bearer(), **{"Last-Event-ID": beyond}) as client:
        response = await client.get(f"/builds/{build_id}/{path}")
    assert (response.status_code, response.json()["code"]) == (400, "invalid_request")
    assert f"has no event {beyond}" in response.json()["message"]


@pytest.mark.parametrize("query", ["follow=maybe", "follow=", "tail=10", "follow=1&follow=0"])
async def test_a_wrong_query_is_refused(api: Api, query: str) -> None:
    build_id = await api.submit_finished()
    async with api.client(**bearer()) as client:
        for kind in ("logs", "events"):
            assert (await client.get(f"/builds/{build_id}/{kind}?{query}")).status_code == 400


async def test_a_head_request_gets_no_stream(api: Api) -> None:
    build_id = await api.submit()
    async with api.client(**bearer()) as client:
        response = await client.head(f"/builds/{build_id}/logs")
    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["Content-Type"] == "text/event-stream"


async def test_a_follower_gets_lines_as_they_come_and_the_stream_ends(
    api: Api, server: Server
) -> None:
    build_id = await api.submit()
    async with following(await server.connect(), f"/builds/{build_id}/logs", bearer()) as follower:

        async def line() -> str | None:
            event = await follower.next_event()
            return event.line if event else None

        assert await line() == "queued"
        api.fake.log(build_id, "one")
        assert await line() == "one"
        api.fake.log(build_id, "two", "three")
        assert await line() == "two"
        assert await line() == "three"
        api.fake.finish(build_id, Status.FAILED)
        assert await line() == "failed"
        assert await line() is None


async def test_silence_is_broken_by_heartbeats_without_an_id(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "HEARTBEAT_SECONDS", 0.01)
    build_id = await api.submit()
    async with EventStreamBody(api.deps, build_id, START, follow=True) as body:
        await anext(body)
        assert (
            await anext(body)
            == b'data: {"type": "heartbeat", "timestamp": "2027-01-15T08:00:00.000Z"}\n\n'
        )
        await anext(body)
        api.fake.log(build_id, "after the silence")
        assert b"after the silence" in await anext(body)


def test_silence_lasts_as_long_as_the_contract_says() -> None:
    assert events.HEARTBEAT_SECONDS == 15


async def test_many_events_go_out_in_one_write(api: Api) -> None:
    build_id = await api.submit()
    api.fake.log(build_id, *(f"line {n}" for n in range(99)))
    async with EventStreamBody(api.deps, build_id, START, follow=True) as body:
        assert (await anext(body)).count(b"\n\n") == 100


async def test_a_stop_of_the_daemon_ends_the_streams_at_once(api: Api) -> None:
    build_id = await api.submit()
    with trio.fail_after(20):
        async with (
            serving(api.with_settings(http_grace=1000.0)) as server,
            following(await server.connect(), f"/builds/{build_id}/logs", bearer()) as follower,
        ):
            assert await follower.next_event()
            server.nursery.cancel_scope.cancel(reason="stop")
            with trio.CancelScope(shield=True):
                assert await follower.next_event() is None


async def test_a_follower_that_leaves_is_forgotten(api: Api, server: Server) -> None:
    build_id = await api.submit()
    async with following(await server.connect(), f"/builds/{build_id}/logs", bearer()) as follower:
        assert await follower.next_event()
        assert api.fake.open_readers == 1
    await eventually(lambda: not api.fake.open_readers)


@pytest.mark.parametrize("kind", ["logs", "ws"])
async def test_a_follower_that_never_reads_costs_nobody_anything(
    api: Api, server: Server, kind: str
) -> None:
    build_id = await api.submit()
    line = "x" * 1000
    async with server.raw() as idle:
        headers = {**bearer(), **(UPGRADE if kind == "ws" else {})}
        await idle.send_head("GET", f"/builds/{build_id}/{kind}", headers)
        await idle.send_end()
        for _ in range(200):
            api.fake.log(build_id, *([line] * 100))
            await trio.lowlevel.checkpoint()
        api.fake.finish(build_id, Status.READY)
        async with server.client(**bearer()) as client:
            response = await client.get(f"/builds/{build_id}/logs")
        assert response.text.count(line) == 20_000


class TestText:
    """GET /builds/{id}/logs with Accept: text/plain."""

    async def get(self, api: Api, build_id: BuildId, **headers: str) -> httpx2.Response:
        async with api.client(**bearer(), Accept="text/plain", **headers) as client:
            return await client.get(f"/builds/{build_id}/logs")

    async def test_the_whole_log(self, api: Api) -> None:
        build_id = await api.submit_finished("one", "zwei €")
        response = await self.get(api, build_id)
        assert response.status_code == 200
        assert response.text == "one\nzwei €\n"
        assert response.headers["Content-Type"] == "text/plain; charset=utf-8"
        assert response.headers["Accept-Ranges"] == "bytes"

    async def test_text_is_not_followed_and_says_so(self, api: Api) -> None:
        build_id = await api.submit_finished("one")
        async with api.client(**bearer(), Accept="text/plain") as client:
            for query, status in (("follow=false", 200), ("follow=true", 400), ("follow=x", 400)):
                response = await client.get(f"/builds/{build_id}/logs?{query}")
                assert response.status_code == status, query

    async def test_a_head_request_tells_the_length(self, api: Api) -> None:
        build_id = await api.submit_finished("one", "two")
        async with api.client(**bearer(), Accept="text/plain") as client:
            response = await client.head(f"/builds/{build_id}/logs")
        assert (response.headers["Content-Length"], response.content) == ("8", b"")

    async def test_a_log_that_has_not_begun_is_empty(self, api: Api) -> None:
        response = await self.get(api, await api.submit())
        assert (response.status_code, response.content) == (200, b"")

    @pytest.mark.parametrize(
        ("wanted", "status", "content", "told"),
        [
            ("bytes=0-3", 206, b"0123", "bytes 0-3/10"),
            ("bytes=8-", 206, b"89", "bytes 8-9/10"),
            ("bytes=-3", 206, b"789", "bytes 7-9/10"),
            ("bytes=5-1000", 206, b"56789", "bytes 5-9/10"),
            ("bytes=-1000", 206, b"0123456789", "bytes 0-9/10"),
            ("bytes=10-", 416, None, "bytes */10"),
            ("bytes=0-1,3-4", 200, b"0123456789", None),
            ("lines=0-1", 200, b"0123456789", None),
            ("nonsense", 200, b"0123456789", None),
        ],
    )
    async def test_ranges(
        self, api: Api, wanted: str, status: int, content: bytes | None, told: str | None
    ) -> None:
        build_id = await api.submit_finished()
        path = api.fake.log_path(build_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"0123456789")
        response = await self.get(api, build_id, Range=wanted)
        assert response.status_code == status
        assert response.headers.get("Content-Range") == told
        if content is not None:
            assert response.content == content
        else:
            assert response.json()["code"] == "invalid_request"

    async def test_a_large_log_arrives_whole_while_it_grows(self, api: Api, server: Server) -> None:
        build_id = await api.submit()
        lines = [f"line {n} " + "x" * 1000 for n in range(2000)]
        api.fake.log(build_id, *lines)
        async with (
            server.client(**bearer(), Accept="text/plain") as client,
            client.stream("GET", f"/builds/{build_id}/logs") as response,
        ):
            api.fake.log(build_id, *lines)
            text = (await response.aread()).decode()
        assert text.split("\n")[:-1] == lines
        assert int(response.headers["Content-Length"]) == len(text)

    @pytest.mark.parametrize(
        ("accept", "kind"),
        [
            ("*/*", "text/event-stream"),
            ("text/event-stream", "text/event-stream"),
            ("text/*", "text/event-stream"),
            ("text/plain;q=0.5, text/event-stream;q=0.1", "text/plain; charset=utf-8"),
            ("application/json", "text/event-stream"),
        ],
    )
    async def test_who_asks_for_text_gets_text(self, api: Api, accept: str, kind: str) -> None:
        build_id = await api.submit_finished("x")
        async with api.client(**bearer(), Accept=accept) as client:
            response = await client.get(f"/builds/{build_id}/logs")
        assert response.headers["Content-Type"] == kind
