"""What stands between server and applications: who calls, which application, what goes wrong.

    /v2, /v2/…        the registry, a bare ASGI application
    everything else   the API (absent where guests connect)

Two promises of ASGI applications are kept here for all of them. An exception that leaves one
becomes a JSON answer with an id that is in the log. And a request whose answer is known before its
body was read does not stall: the rest of the body is dropped while the answer goes out.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import unquote, urlsplit

import trio

from supervisor.api.auth import CALLER_KEY
from supervisor.api.problems import Problem, problem_of
from supervisor.tokens import Caller

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

JOIN_WRITES = "hypeman.join_writes"
"""In the `extensions` of a websocket's scope: what is sent in the block that it opens goes out in
one write, behind the block."""

_NO_ROUTE = Problem(404, "not_found", "there is no such route")
_BAD_TARGET = Problem(400, "invalid_request", "the request's target is not a path")


class ClientGone(OSError):
    """Raised by `send`: there is nobody to send to any more. No error of ours."""


class Front:
    """The one ASGI application of a listener. `caller`: who everybody is, if that is known."""

    def __init__(
        self, *, api: ASGIApp | None, registry: ASGIApp | None, caller: Caller | None = None
    ) -> None:
        self._api = api
        self._registry = registry
        self._caller = caller

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or serve one websocket."""
        exchange = _Exchange(scope, receive, send)
        if not _normalise_target(scope):
            await exchange.answer(_BAD_TARGET)
            return
        scope.setdefault("state", {})[CALLER_KEY] = self._caller
        app = self._application(scope)
        if app is None:
            await exchange.answer(_NO_ROUTE)
            return
        try:
            await app(scope, exchange.receive, exchange.send)
        except ClientGone:
            raise
        except Exception as exc:
            problem = problem_of(exc)
            # Too late for an answer, the connection is closed: its client sees a cut, not an end.
            if not exchange.is_started:
                await exchange.answer(problem)

    def _application(self, scope: Scope) -> ASGIApp | None:
        path = scope["path"]
        if path == "/v2" or path.startswith("/v2/"):
            return self._registry if scope["type"] == "http" else None
        return self._api


class _Exchange:
    """One request and its answer, watched as they pass."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.is_started = False
        self._is_websocket = scope["type"] == "websocket"
        self._is_read = self._is_websocket
        self._receive = receive
        self._send = send

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self._is_read = True
        return message

    async def send(self, message: Message) -> None:
        self.is_started = True
        is_last = message["type"] == "http.response.body" and not message.get("more_body", False)
        if not is_last or self._is_read:
            await self._send(message)
            return
        # The server hands the body over through a small queue. With nobody taking from it, neither
        # the connection's reader nor the end of this answer would get through.
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._drop_body)
            await self._send(message)
            nursery.cancel_scope.cancel(reason="the answer is sent")

    async def answer(self, problem: Problem) -> None:
        """Send a whole answer."""
        kind = "websocket.http.response" if self._is_websocket else "http.response"
        await self.send(
            {
                "type": f"{kind}.start",
                "status": problem.status,
                "headers": problem.raw_headers(),
            }
        )
        await self.send({"type": f"{kind}.body", "body": problem.body(), "more_body": False})

    async def _drop_body(self) -> None:
        while not self._is_read:
            await self.receive()


def _normalise_target(scope: Scope) -> bool:
    """Reduce an absolute target (RFC 9112, 3.2.2) to its path; say whether there is one."""
    path = scope["path"]
    if "://" in path[:9]:
        raw = urlsplit(scope["raw_path"].decode("ascii")).path or "/"
        scope["raw_path"] = raw.encode()
        scope["path"] = path = unquote(raw)
    return bool(path.startswith("/"))
