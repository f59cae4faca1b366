"""What an upload holds in memory, whatever its size and however slow the disk is."""

from __future__ import annotations

from typing import Any

import trio
import trio.testing

from supervisor.api.asgi import MAX_BUFFERED_BYTES, BoundedBody
from supervisor.api.uploads import WRITE_BYTES
from tests.api.conftest import Api, bearer

PIECE = bytes(1 << 16)
HEAD = b'--x\r\nContent-Disposition: form-data; name="source"\r\n\r\n'


class EndlessUpload:
    """A request whose body never ends, and a count of what was taken of it."""

    def __init__(self) -> None:
        self.taken = 0

    async def receive(self) -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        body = PIECE if self.taken else HEAD
        self.taken += len(body)
        return {"type": "http.request", "body": body, "more_body": True}

    async def send(self, _: Any) -> None:
        raise AssertionError("nothing is answered before the end")

    @property
    def scope(self) -> dict[str, Any]:
        headers = {"Content-Type": "multipart/form-data; boundary=x", **bearer()}
        return {
            "type": "http",
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": "/builds",
            "raw_path": b"/builds",
            "query_string": b"",
            "headers": [(name.lower().encode(), text.encode()) for name, text in headers.items()],
            "client": None,
        }


async def test_while_the_disk_is_busy_no_more_is_taken_than_the_bounds_allow(api: Api) -> None:
    upload = EndlessUpload()
    async with trio.open_nursery() as nursery:
        for _ in range(int(api.deps.threads.disk.total_tokens)):
            await api.deps.threads.disk.acquire_on_behalf_of(object())
        nursery.start_soon(api.front, upload.scope, upload.receive, upload.send)
        await trio.testing.wait_all_tasks_blocked()
        held = upload.taken
        nursery.cancel_scope.cancel(reason="measured")
    assert WRITE_BYTES < held < WRITE_BYTES + MAX_BUFFERED_BYTES + 4 * len(PIECE)


async def test_a_body_makes_its_source_wait_and_gives_everything_in_order() -> None:
    body = BoundedBody(None, None)
    sent = [bytes([n]) * 50_000 for n in range(40)]
    peak = 0

    async def fill() -> None:
        nonlocal peak
        for piece in sent:
            await body.wait_for_room()
            body.append(piece)
            peak = max(peak, body.held_bytes)
        body.set_complete()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fill)
        await trio.testing.wait_all_tasks_blocked()
        received = [piece async for piece in body]
    assert received == sent
    assert MAX_BUFFERED_BYTES <= peak < MAX_BUFFERED_BYTES + 50_000


async def test_a_dropped_body_holds_nothing_and_stops_nobody() -> None:
    body = BoundedBody(None, None)
    body.append(bytes(MAX_BUFFERED_BYTES))
    body.drop()
    for _ in range(100):
        await body.wait_for_room()
        body.append(PIECE)
    assert body.held_bytes == 0
    assert [piece async for piece in body] == []
