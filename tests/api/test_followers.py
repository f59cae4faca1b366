"""Many followers of one build, on the real log and real connections: every line once, in order."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio
from hypercorn.trio.worker_context import WorkerContext
from trio.testing import memory_stream_pair
from trio_websocket import ConnectionClosed, wrap_client_stream

from supervisor.api.connection import Connection, make_config
from supervisor.api.ports import ApiDeps
from supervisor.config import Keys
from supervisor.model.build import Status
from supervisor.model.ids import BuildId
from supervisor.runtime.threads import Threads
from tests.actors.world import World, open_world
from tests.api.conftest import (
    API_KEY,
    REGISTRY_KEY,
    Api,
    Server,
    bearer,
    eventually,
    serving,
)
from tests.api.rawclient import following
from tests.fakes.agent import DIGEST, Talk, agent
from tests.fakes.build_service import FakeBuilds
from tests.fakes.hypervisor import FakeHypervisor
from tests.fakes.operations import FakeImages, FakeOperator

FOLLOWERS = 200
LINES = [f"line {number}" for number in range(60)]
STORY = ["queued", "building", *LINES, "pushing", "ready"]

Heard = tuple[int, dict[str, Any]]
"""An event, and the id to resume after."""
Follow = Callable[[Server, BuildId, int, int], Awaitable[list[Heard]]]


class Fast:
    """A build that prints everything as fast as it can, once it may."""

    def __init__(self) -> None:
        self.may_print = trio.Event()

    async def __call__(self, talk: Talk) -> None:
        await talk.greet()
        await talk.phase("building")
        await self.may_print.wait()
        for at in range(0, len(LINES), 10):
            await talk.log("".join(f"{line}\n" for line in LINES[at : at + 10]).encode(), step="")
        await talk.phase("pushing")
        await talk.push()
        await talk.result(ok=True, digest=DIGEST)


async def follow_stream(
    server: Server, build_id: BuildId, after: int, patience: int
) -> list[Heard]:
    """Follow server-sent events, and hang up after some."""
    heard: list[Heard] = []
    headers = {**bearer(), **({"Last-Event-ID": str(after)} if after else {})}
    path = f"/builds/{build_id}/logs"
    async with following(await server.connect(), path, headers) as follower:
        while len(heard) < patience and (event := await follower.next_event()) is not None:
            heard.append((int(event.id or "-1"), event.data))
    return heard


async def follow_websocket(
    server: Server, build_id: BuildId, after: int, patience: int
) -> list[Heard]:
    """Follow a websocket, and hang up after some messages, without a word."""
    heard: list[Heard] = []
    path = f"/builds/{build_id}/ws?after={after}"
    headers = [(name.encode(), value.encode()) for name, value in bearer().items()]
    async with await server.connect() as stream, trio.open_nursery() as nursery:
        socket = await wrap_client_stream(nursery, stream, "x", path, extra_headers=headers)
        with suppress(ConnectionClosed):  # after the end of the story: without it we come again
            while len(heard) < patience:
                event = json.loads(await socket.get_message())
                heard.append((event.pop("id"), event))
        nursery.cancel_scope.cancel(reason="hanging up")
    return heard


@asynccontextmanager
async def served(world: World) -> AsyncIterator[Server]:
    """Serve the API on these actors while the block lasts."""
    fake = FakeBuilds(world.settings.data_dir)
    deps = ApiDeps(
        builds=world.builds,
        images=FakeImages(),
        operator=FakeOperator(fake),
        settings=world.settings,
        keys=Keys(api=API_KEY, registry=REGISTRY_KEY),
        threads=Threads(),
        name_registry=lambda: "registry.example:5000",
    )
    async with serving(Api(deps, fake)) as server:
        yield server
        assert deps.log_readers.count == 0, "whoever hung up is still counted"


@pytest.mark.parametrize("follow", [follow_stream, follow_websocket], ids=["sse", "websocket"])
async def test_two_hundred_followers_hear_every_line_once_across_random_disconnects(
    tmp_path: Path, follow: Follow
) -> None:
    fast = Fast()
    stories: list[list[dict[str, Any]]] = []
    present: set[int] = set()

    async def keep_following(server: Server, build_id: BuildId, number: int) -> None:
        chance = Random(number)
        heard: list[Heard] = []
        while not heard or heard[-1][1].get("status") != "ready":
            # It prints nothing before everybody was there once.
            patience = chance.randint(1, len(STORY) if heard else 2)
            heard += await follow(server, build_id, heard[-1][0] if heard else 0, patience)
            present.add(number)
            if len(present) == FOLLOWERS:
                fast.may_print.set()
        ids = [event_id for event_id, _ in heard]
        assert ids == sorted(set(ids)), "an event came twice, or too late"
        stories.append([event for _, event in heard])

    with trio.fail_after(60):
        async with (
            open_world(
                tmp_path,
                hypervisor=FakeHypervisor(agent(fast)),
                host="127.0.0.1",
                port=0,
                runtime_dir=tmp_path,
            ) as world,
            served(world) as server,
        ):
            build_id = await world.submit()
            async with trio.open_nursery() as nursery:
                for number in range(FOLLOWERS):
                    nursery.start_soon(keep_following, server, build_id, number)
            assert (await world.wait_end(build_id)).status is Status.READY
    assert len(stories) == FOLLOWERS
    assert stories == [stories[0]] * FOLLOWERS
    told = [event.get("content") or event["status"] for event in stories[0]]
    assert told == STORY


class Counted(trio.abc.Stream):
    """Keeps what each write carries."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self.writes: list[bytes] = []

    async def send_all(self, data: Any) -> None:
        self.writes.append(bytes(data))
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> Any:
        return await self._stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self._stream.aclose()


async def test_events_that_come_together_leave_a_websocket_in_one_write(api: Api) -> None:
    lines = [f"line {number}" for number in range(98)]
    build_id = await api.submit_finished(*lines)
    near, far = memory_stream_pair()
    counted = Counted(far)
    async with trio.open_nursery() as nursery:
        connection = Connection(api.front, make_config(), WorkerContext(None), counted)
        nursery.start_soon(connection.run)
        headers = [(name.encode(), value.encode()) for name, value in bearer().items()]
        path = f"/builds/{build_id}/ws"
        client: Any = near
        socket = await wrap_client_stream(nursery, client, "x", path, extra_headers=headers)
        heard = [json.loads(await socket.get_message()) for _ in range(len(lines) + 2)]
        with pytest.raises(ConnectionClosed):
            await socket.get_message()
        nursery.cancel_scope.cancel(reason="everything was heard")
    assert [event["content"] for event in heard[1:-1]] == lines
    assert [write.count(b'"type":') for write in counted.writes if b'"type":' in write] == [100]


async def test_a_client_that_leaves_inside_a_batch_is_forgotten(api: Api, server: Server) -> None:
    build_id = await api.submit()
    api.fake.log(build_id, *["x" * 60_000] * 500)
    api.fake.batch_size = 1000  # far more than the buffers between the two ends hold
    headers = [(name.encode(), value.encode()) for name, value in bearer().items()]
    async with await server.connect() as stream, trio.open_nursery() as nursery:
        path = f"/builds/{build_id}/ws"
        await wrap_client_stream(
            nursery, stream, "x", path, extra_headers=headers, message_queue_size=0
        )
        await eventually(lambda: api.fake.open_readers == 1)
        nursery.cancel_scope.cancel(reason="hanging up")
    await eventually(lambda: not api.fake.open_readers)
    assert api.deps.log_readers.count == 0
