"""Where the daemon is, and the one way to talk HTTP to it.

Locally a UNIX socket, whose file permissions are the authentication; remotely a URL and a token.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import trio

from supervisor.ctl.contexts import choose_context
from supervisor.ctl.errors import (
    ApiError,
    CtlError,
    DaemonUnreachable,
    NotFound,
    ProtocolError,
    UsageError,
)

SOCKET_NAME = "hypeman.sock"
REQUEST_ID = "X-Request-Id"
DEFAULT_RUNTIME_DIR = Path("/run/hypeman")
_CONNECT_SECONDS = 10.0
_ANSWER_SECONDS = 60.0
"""How long one answer may take to begin or to go on. Streams have a rule of their own."""
_CLOSE_SECONDS = 2.0
_MAX_ERROR_BYTES = 64 << 10
_HINTS = {
    "unauthorized": "give one by --token or HYPEMAN_TOKEN;"
    " on the daemon's host `hypeman-ctl token create` makes one",
    "forbidden": "an administrator makes one that does: hypeman-ctl token create --permission …",
}
"""What to do about errors of the API, by their code; of others the message says it."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A daemon's address: `socket`, or `url` with `token`."""

    socket: Path | None = None
    url: str = ""
    token: str = field(default="", repr=False)

    def __str__(self) -> str:
        return str(self.socket) if self.socket is not None else self.url


def find_endpoint(
    *,
    socket: Path | None = None,
    host: str | None = None,
    token: str | None = None,
    context: str | None = None,
    environ: Mapping[str, str],
) -> Endpoint:
    """Return the daemon that is meant: by an option, by a variable, by the current context.

    Without any of them it is the local one. Raises UsageError if the options contradict each other,
    the URL is none, or there is no such context.
    """
    if sum(option is not None for option in (socket, host, context)) > 1:
        raise UsageError("--socket, --host and --context exclude each other; give one of them")
    if context is None and socket is None:
        host = host if host is not None else environ.get("HYPEMAN_HOST") or None
        if host is None and (named := environ.get("HYPEMAN_SOCKET")):
            socket = Path(named)
    if socket is None and host is None:
        target = choose_context(context, environ)
        if target is not None:
            host, token = target.host, token or target.token
    if socket is None and host is not None:
        if host.startswith("unix://"):
            path = Path(host.removeprefix("unix://"))
            if not path.is_absolute():
                raise UsageError(f"--host {host}: a socket is named as unix:///path")
            return Endpoint(socket=path)
        token = token or environ.get("HYPEMAN_TOKEN") or ""
        if not token.isascii() or any(char.isspace() for char in token):
            raise UsageError("the token holds characters that no token has")
        return Endpoint(url=_parse_url(host), token=token)
    if socket is None:
        socket = Path(environ.get("RUNTIME_DIR") or DEFAULT_RUNTIME_DIR) / SOCKET_NAME
    return Endpoint(socket=socket)


def _parse_url(host: str) -> str:
    url = host if "://" in host else f"http://{host}"
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL as exc:
        raise UsageError(f"--host {host} is not a URL: {exc}") from exc
    port = parsed.port if parsed.port is not None else 1
    if parsed.scheme not in ("http", "https") or not parsed.host or not 0 < port < 1 << 16:
        raise UsageError(f"--host {host!r} is not a URL like https://builds.example.org:8083")
    if parsed.userinfo or parsed.query or parsed.fragment:
        raise UsageError(
            "--host must be scheme, name and port alone: https://builds.example.org:8083",
            hint="the token goes into --token or HYPEMAN_TOKEN",
        )
    return url.rstrip("/")


Trace = Callable[[str], None]
"""Told what is sent and what comes back, one line each."""


class Connection:
    """An HTTP client bound to one daemon; use `open_connection`."""

    def __init__(self, endpoint: Endpoint, http: httpx2.AsyncClient, trace: Trace) -> None:
        self.endpoint = endpoint
        self._http = http
        self._trace = trace

    @asynccontextmanager
    async def open_response(
        self, method: str, path: str, *, patience: httpx2.Timeout | None = None, **options: Any
    ) -> AsyncIterator[httpx2.Response]:
        """Send a request and yield the response with its body unread. Raises ApiError for 4xx, 5xx.

        Raises DaemonUnreachable if the connection cannot be made or breaks, inside the block too.
        """
        request = self._http.build_request(
            method, path, timeout=patience or self._http.timeout, **options
        )
        target = f"{method} {request.url.raw_path.decode()}"
        self._trace(f"> {target} at {self.endpoint}")
        began = trio.current_time()
        with _Translate(self.endpoint):
            response = await self._http.send(request, stream=True)
            took = trio.current_time() - began
            name = response.headers.get(REQUEST_ID, "without an id")
            self._trace(f"< {target}: {response.status_code} after {took:.3f} s, request {name}")
            try:
                if response.status_code >= 400:
                    raise await _parse_error(response)
                yield response
            finally:
                await response.aclose()

    async def request_json(self, method: str, path: str, **options: Any) -> Any:
        """Send a request and return its JSON answer, None if it is empty."""
        async with self.open_response(method, path, **options) as response:
            return parse_json(await response.aread())


class Body:
    """The bytes of an answer as they come, of which the reader may have enough at any time."""

    def __init__(self, response: httpx2.Response) -> None:
        self._response = response
        self._chunks = response.aiter_bytes()
        self._is_over = False

    async def receive(self) -> bytes:
        """Return the next piece, `b""` at the end. Raises httpx2.TransportError."""
        data = b""
        is_over, self._is_over = self._is_over, True  # what raises has ended the stream
        if not is_over:
            data = await anext(self._chunks, b"")
            self._is_over = not data
        return data

    async def aclose(self) -> None:
        """Read no further: hang up, unless all has been read.

        The library's generators do not close those below them. Left alone they are found by the
        garbage collector, about which trio warns; reading to the end ends them, and hanging up
        makes that near.
        """
        if self._is_over:
            return
        network = self._response.extensions["network_stream"].get_extra_info("socket")
        with suppress(OSError):  # not connected any more
            network.shutdown(trio.socket.SHUT_RDWR)
        with trio.move_on_after(_CLOSE_SECONDS, shield=True), suppress(httpx2.TransportError):
            while await self.receive():
                pass


@asynccontextmanager
async def open_body(response: httpx2.Response) -> AsyncIterator[Body]:
    """Yield the body of a response; what is not read of it in the block is given up."""
    body = Body(response)
    try:
        yield body
    finally:
        await body.aclose()


@asynccontextmanager
async def open_connection(
    endpoint: Endpoint, trace: Trace = lambda _: None
) -> AsyncIterator[Connection]:
    """Yield a connection to the daemon; nothing is sent before the first request."""
    timeout = httpx2.Timeout(_ANSWER_SECONDS, connect=_CONNECT_SECONDS)
    headers = {"User-Agent": "hypeman-ctl"}
    if endpoint.token:
        headers["Authorization"] = f"Bearer {endpoint.token}"
    if endpoint.socket is not None:
        # No TLS on a socket: reading the system's certificates would cost half a second.
        transport = httpx2.AsyncHTTPTransport(uds=os.fspath(endpoint.socket), verify=False)
        client = httpx2.AsyncClient(
            transport=transport,
            base_url="http://localhost",
            headers=headers,
            timeout=timeout,
            trust_env=False,
        )
    else:
        client = httpx2.AsyncClient(base_url=endpoint.url, headers=headers, timeout=timeout)
    async with client:
        yield Connection(endpoint, client, trace)


def parse_json(data: bytes) -> Any:
    """Return what `data` says. Raises ProtocolError if it is not JSON."""
    if not data:
        return None
    try:
        return json.loads(data)
    except ValueError as exc:
        raise ProtocolError(
            "the answer is not JSON: something else than the daemon answers there"
        ) from exc


class _Translate:
    """Turns the HTTP library's errors into ours."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, _: Any) -> None:
        if isinstance(exc, httpx2.ConnectError | httpx2.ConnectTimeout):
            raise _unreachable(self._endpoint, exc) from exc
        if isinstance(exc, httpx2.TransportError):
            raise DaemonUnreachable(
                f"the connection to {self._endpoint} broke: {_describe(exc)}"
            ) from exc


def _unreachable(endpoint: Endpoint, exc: Exception) -> CtlError:
    why = _describe(exc)
    if endpoint.socket is None:
        return DaemonUnreachable(
            f"no daemon answers at {endpoint}: {why}",
            hint="check the URL, its scheme and port, and that the daemon listens there",
        )
    if not endpoint.socket.exists():
        return DaemonUnreachable(
            f"there is no daemon: {endpoint} does not exist",
            hint="start it with ./run up, or name another with --socket or --host",
        )
    if not os.access(endpoint.socket, os.W_OK):
        return DaemonUnreachable(
            f"{endpoint} may not be opened by you",
            hint="whoever may open it is an administrator; use --host with --token instead",
        )
    return DaemonUnreachable(
        f"no daemon listens at {endpoint}: {why}",
        hint="start it with ./run up, or name another with --socket or --host",
    )


def _describe(exc: Exception) -> str:
    """Return what the system said, the first reason of all that led to `exc`."""
    reason: BaseException | None = exc
    while reason is not None:
        if isinstance(reason, OSError) and reason.strerror:
            return reason.strerror
        reason = reason.__cause__ or reason.__context__
    return str(exc) or type(exc).__name__


async def _parse_error(response: httpx2.Response) -> ApiError:
    """Return the error that a response tells; one in a foreign form keeps its status."""
    data = b""
    async with open_body(response) as body:
        while len(data) <= _MAX_ERROR_BYTES and (piece := await body.receive()):
            data += piece
    try:
        told = json.loads(data)
        code, message = str(told["code"]), str(told["message"])
        details = [str(detail) for detail in told.get("details") or ()]
    except (ValueError, LookupError, TypeError, AttributeError):
        code, details = "unknown", []
        message = f"the answer was HTTP {response.status_code} {response.reason_phrase}"
    retry_after = response.headers.get("retry-after", "")
    kind = NotFound if code == "not_found" else ApiError
    return kind(
        response.status_code,
        code,
        message,
        details=details,
        retry_after_seconds=int(retry_after) if retry_after.isdecimal() else None,
        request_id=response.headers.get(REQUEST_ID, ""),
        hint=_HINTS.get(code, ""),
    )
