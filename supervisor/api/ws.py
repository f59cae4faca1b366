"""The websockets: follow a build, or submit one and follow it.

Each message to the client is one event as JSON, with the `id` to resume after. Close codes: 1000
for a build that became ready, 4000 if it failed, 4001 if it was cancelled, 1001 if the daemon
stops; a request that is refused after the handshake gets a message `{"type": "error", "code",
"message"}` and the code 4000 + the HTTP status of that error.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import trio
from quart import g, websocket

from supervisor.api.asgi import IGNORE_KEY
from supervisor.api.builds import BuildRoutes
from supervisor.api.events import Pause, heartbeat, next_batch
from supervisor.api.fields import MAX_DOCKERFILE_BYTES
from supervisor.api.forms import STALL_SECONDS
from supervisor.api.front import JOIN_WRITES
from supervisor.api.mistakes import parse_json
from supervisor.api.ports import ApiDeps, EventReader
from supervisor.api.problems import problem_of
from supervisor.api.queries import check_names, parse_event_id
from supervisor.api.submissions import parse_key, submit
from supervisor.api.uploads import Upload, open_upload
from supervisor.api.views import render_build
from supervisor.errors import InvalidRequest, PayloadTooLarge
from supervisor.model.build import Build, Status
from supervisor.model.events import START, EventId
from supervisor.model.ids import BuildId
from supervisor.model.times import rfc3339

CLOSE_CODES = {Status.READY: 1000, Status.FAILED: 4000, Status.CANCELLED: 4001}
GOING_AWAY = 1001
MAX_FIELDS_BYTES = MAX_DOCKERFILE_BYTES + (1 << 20)


class WebsocketRoutes:
    """Handlers, named as in the table of routes."""

    def __init__(self, deps: ApiDeps, builds: BuildRoutes) -> None:
        self._deps = deps
        self._builds = builds

    async def follow_build(self, id: str) -> None:
        """Send a build's events behind `?after=`."""
        check_names(websocket.args, ("after",))
        after = parse_event_id(websocket.args.get("after"), "after")
        build = await self._builds.visible(id)
        await self._deps.builds.check_place(build.id, after)
        await websocket.accept()
        try:
            await self._follow(build.id, after)
        except Exception as exc:
            await _refuse(exc)

    async def submit_and_follow(self) -> None:
        """Take fields and source, then send the build and its events."""
        check_names(websocket.args, ())
        key = parse_key(websocket.headers.get("Idempotency-Key"))
        await self._deps.builds.check_room(g.caller.tenant, key)
        await websocket.accept()
        try:
            build = await self._receive(key)
            rendered = render_build(
                build,
                queue_position=self._deps.builds.queue_position(build.id),
                registry_address=self._deps.registry_address,
            )
            shown = {"type": "build", "timestamp": rfc3339(self._deps.clock()), "build": rendered}
            await websocket.send(json.dumps(shown))
            await self._follow(build.id, START)
        except Exception as exc:
            await _refuse(exc)

    async def _receive(self, key: str | None) -> Build:
        fields = await _next_message()
        if not isinstance(fields, str):
            raise InvalidRequest("the first message must be the fields, as JSON text")
        if len(fields) > MAX_FIELDS_BYTES:
            raise PayloadTooLarge(f"the fields are longer than {MAX_FIELDS_BYTES:,} bytes")
        values = parse_json(fields, "the first message")
        if not isinstance(values, dict) or "source" in values:
            raise InvalidRequest(
                "the first message must be a JSON object; the source follows in binary messages"
            )
        async with open_upload(self._deps) as upload:
            await _receive_source(upload)
            return await submit(self._deps, g.caller, upload, values, key)

    async def _follow(self, build_id: BuildId, after: EventId) -> None:
        _ignore_messages()
        async with self._deps.builds.open_events(build_id, after=after, follow=True) as reader:
            with self._deps.log_readers.reading():
                await self._send_events(reader)
        build = await self._deps.builds.get(build_id)
        await websocket.close(CLOSE_CODES.get(build.status, GOING_AWAY))

    async def _send_events(self, reader: EventReader) -> None:
        while True:
            match await next_batch(self._deps, reader):
                case Pause.SILENCE:
                    await websocket.send(heartbeat(self._deps).decode())
                case Pause.END:
                    return
                case batch:
                    async with _joined_writes():
                        for event_id, event in batch.events:
                            await websocket.send(f'{{"id":{event_id},{event[1:].decode()}')


async def _receive_source(upload: Upload) -> None:
    while True:
        piece = await _next_message()
        if not isinstance(piece, bytes):
            raise InvalidRequest("the source must come in binary messages, an empty one at its end")
        if not piece:
            return
        await upload.write(piece)


async def _next_message() -> str | bytes:
    with trio.move_on_after(STALL_SECONDS):
        message: str | bytes = await websocket.receive()
        return message
    raise InvalidRequest(f"the upload stalled for {STALL_SECONDS:.0f} s")


def _joined_writes() -> AbstractAsyncContextManager[None]:
    """Send what is sent in the block in one write, which is what makes following fast."""
    scope: Any = websocket.scope
    join: Callable[[], AbstractAsyncContextManager[None]] = scope["extensions"][JOIN_WRITES]
    return join()


def _ignore_messages() -> None:
    scope: Any = websocket.scope
    scope[IGNORE_KEY]()


async def _refuse(error: Exception) -> None:
    """Tell the client why, and close."""
    _ignore_messages()
    problem = problem_of(error)
    shown: dict[str, Any] = {"type": "error", **json.loads(problem.body())}
    await websocket.send(json.dumps(shown))
    await websocket.close(4000 + problem.status)
