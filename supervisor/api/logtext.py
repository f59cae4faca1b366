"""The log of a build as plain text, also in part (RFC 9110, 14: Range)."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

from quart import Request
from quart.wrappers.response import ResponseBody
from quart_trio.wrappers import TrioResponse as Response
from werkzeug.datastructures import Range

from supervisor.api.ports import ApiDeps
from supervisor.api.problems import Problem, respond
from supervisor.runtime.threads import run_in_thread

READ_BYTES = 256 << 10


class FileBody(ResponseBody):
    """A range of a file that may be growing: what is announced is what is sent."""

    def __init__(self, path: Path, start: int, stop: int, deps: ApiDeps) -> None:
        self._path = path
        self._at = start
        self._stop = stop
        self._threads = deps.threads
        self._counted = deps.log_readers.reading()
        self._fd = -1

    async def __aenter__(self) -> FileBody:
        if self._at < self._stop:
            self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        self._counted.__enter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._counted.__exit__(None, None, None)
        if self._fd >= 0:
            os.close(self._fd)

    def __aiter__(self) -> FileBody:
        return self

    async def __anext__(self) -> bytes:
        if self._at >= self._stop:
            raise StopAsyncIteration
        size = min(READ_BYTES, self._stop - self._at)
        data = await run_in_thread(self._threads.disk, os.pread, self._fd, size, self._at)
        if not data:
            raise StopAsyncIteration
        self._at += len(data)
        return data


def log_response(path: Path, request: Request, deps: ApiDeps) -> Response:
    """Answer with the log as far as it goes, or with the one range of it that was asked for.

    A log that has not begun is empty.
    """
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        size = 0
    part = _wanted_part(request.range, size)
    if part is not None and part[0] >= part[1]:
        problem = Problem(
            416,
            "invalid_request",
            f"the log has {size} bytes; the range lies behind them",
            headers={"Content-Range": f"bytes */{size}"},
        )
        return respond(problem)
    (start, stop), status = ((0, size), 200) if part is None else (part, 206)
    body = FileBody(path, stop if request.method == "HEAD" else start, stop, deps)
    response = Response(body, status, content_type="text/plain; charset=utf-8")
    response.headers["Accept-Ranges"] = "bytes"
    response.headers["Content-Length"] = str(stop - start)
    if status == 206:
        response.headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    response.timeout = None  # a large log to a slow reader; a dead peer is found by TCP
    return response


def _wanted_part(wanted: Range | None, size: int) -> tuple[int, int] | None:
    """Return the one range that was asked for, start and stop; several count as none."""
    if wanted is None or wanted.units != "bytes" or len(wanted.ranges) != 1:
        return None
    start, stop = wanted.ranges[0]
    if start < 0:
        start = max(0, size + start)
    return start, size if stop is None else min(stop, size)
