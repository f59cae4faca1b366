"""The events of a build on disk: one writer, any number of followers.

`events.jsonl` holds one JSON object a line, in the order of delivery; `build.log` is the same
output as plain text for people. The event file is only ever appended to, so a follower is an
offset: it reads what lies behind it, and waits for more when nothing does. A slow follower costs
nobody anything.

The files of one build are open while somebody writes or follows, and shared between all of them.
"""

from __future__ import annotations

import errno
import os
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import trio

from supervisor.errors import HostError, ResourceExhausted
from supervisor.model.events import EventBatch, EventId, is_final_status, with_damage_marked
from supervisor.model.ids import BuildId
from supervisor.runtime.logs import log
from supervisor.runtime.threads import Threads, run_in_thread

EVENTS_FILE = "events.jsonl"
TEXT_FILE = "build.log"
_CHUNK_BYTES = 256 << 10
"""How much a follower takes at once: large enough that rendering is shared, small enough to stream.
"""
_CACHED_CHUNKS = 8
"""Followers of one build stand close together; those that do not, read the page cache."""
_KEPT_BYTES = 16 << 10
"""What is appended and no longer than this, followers that wait for it need not read: of a build
that prints a line now and then, each line would cost each of them a thread."""
_TAIL_BYTES = 64 << 10
_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class BuildLog:
    """The open event log of one build."""

    def __init__(self, directory: Path, threads: Threads) -> None:
        self._directory = directory
        self._threads = threads
        self._events_fd = -1
        self._text_fd = -1
        self._end = 0
        self._is_final = False
        self._is_abandoned = False
        self._is_damaged = False
        self._text_is_open = False
        self._writing = trio.Lock()
        self._changed = trio.Event()
        self._chunks: OrderedDict[int, EventBatch] = OrderedDict()
        self._reading: dict[int, trio.Event] = {}

    @property
    def end(self) -> EventId:
        """The id of the last event."""
        return EventId(self._end)

    @property
    def is_final(self) -> bool:
        """Say whether the last event is a final status: nothing follows it."""
        return self._is_final

    @property
    def has_ended(self) -> bool:
        """Say whether nothing more will be appended as long as this log is open."""
        return self._is_final or self._is_abandoned

    async def append(
        self, events: Sequence[bytes], text: bytes = b"", *, continues: bool = False
    ) -> None:
        """Store events and their plain-text form, then wake the followers.

        The text begins a new line, unless it `continues` the one that the last text left open. A
        final status ends the log; saying it a second time changes nothing. When a write fails
        part-way, what was written of it is taken back: raises ResourceExhausted if the disk is
        full, HostError for any other reason.
        """
        if not events and not text:
            return
        async with self._writing:
            if self._is_final:
                assert all(map(is_final_status, events)), f"{self._directory} has ended already"
                return
            if self._text_is_open and not continues:
                text = b"\n" + text
            data = b"".join(event + b"\n" for event in events)
            await run_in_thread(self._threads.disk, self._append_sync, data, text)
            if 0 < len(data) <= _KEPT_BYTES:
                self._keep(self._end, _batch(self._end, events, events))
            self._end += len(data)
            self._is_final = bool(events) and is_final_status(events[-1])
            if text:
                self._text_is_open = not text.endswith(b"\n")
        self._wake()

    async def sync(self) -> None:
        """Make everything appended so far durable. Raises HostError."""
        await run_in_thread(self._threads.disk, self._sync_sync)

    async def take_back_end(self) -> None:
        """Remove the final status, the last event, so that others can follow. Raises HostError.

        For who knows that it is none, and that nobody has opened this log to follow it.
        """
        async with self._writing:
            assert self._is_final, f"{self._directory} has not ended"
            self._end = await run_in_thread(self._threads.disk, self._drop_last_line_sync)
            self._is_final = False
            self._chunks.clear()

    def abandon(self) -> None:
        """Tell the followers that the final status cannot be written, so that they do not wait."""
        self._is_abandoned = True
        self._wake()

    async def locate(self, event_id: int) -> EventId:
        """Return the id of the event that `event_id` lies in, the id of the last one at most.

        For ids from outside: only what this returns is fit for `read` and `wait_behind`.
        """
        inside = min(max(event_id, 0), self._end)
        return await run_in_thread(self._threads.disk, self._locate_sync, inside, self._end)

    async def read(self, after: EventId) -> EventBatch | None:
        """Return the events behind the event `after`, at most some hundred KiB, or None if there
        are none yet. In the place of one that is damaged comes a marker. Cancelling this loses
        nothing. Raises HostError.
        """
        if after >= self._end:
            return None
        while (batch := self._chunks.get(after)) is None:
            if (under_way := self._reading.get(after)) is not None:
                await under_way.wait()
                continue
            done = self._reading[after] = trio.Event()
            try:
                batch = await run_in_thread(self._threads.disk, self._read_sync, after, self._end)
                self._keep(after, batch)
            finally:
                del self._reading[after]
                done.set()
        return batch

    async def wait_behind(self, after: EventId) -> None:
        """Wait until there is an event behind the event `after`, or none can follow."""
        while after >= self._end and not self.has_ended:
            await self._changed.wait()

    def open_sync(self) -> None:
        """Open the files; a line that a crash cut short is taken back. Raises HostError."""
        try:
            with _as_host_error("the log cannot be opened"):
                self._directory.mkdir(parents=True, exist_ok=True, mode=0o750)
                flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
                self._events_fd = os.open(self._directory / EVENTS_FILE, flags, 0o640)
                self._text_fd = os.open(self._directory / TEXT_FILE, flags, 0o640)
                _drop_torn_line_sync(self._events_fd)
                self._text_is_open = not _ends_a_line_sync(self._text_fd)
                self._end = os.fstat(self._events_fd).st_size
                self._is_final = is_final_status(_last_line_sync(self._events_fd, self._end))
        except HostError:
            self.close_sync()
            raise

    def close_sync(self) -> None:
        """Close the files. Idempotent."""
        for fd in (self._events_fd, self._text_fd):
            if fd >= 0:
                os.close(fd)
        self._events_fd = self._text_fd = -1

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def _keep(self, after: int, batch: EventBatch) -> None:
        self._chunks[after] = batch
        if len(self._chunks) > _CACHED_CHUNKS:
            self._chunks.popitem(last=False)

    def _append_sync(self, data: bytes, text: bytes) -> None:
        with _as_host_error("the log cannot be written"):
            before = [(fd, os.fstat(fd).st_size) for fd in (self._text_fd, self._events_fd)]
            try:
                # The events last: they are what counts as said.
                _write_all_sync(self._text_fd, text)
                _write_all_sync(self._events_fd, data)
            except OSError:
                for fd, size in before:
                    os.ftruncate(fd, size)
                raise

    def _sync_sync(self) -> None:
        with _as_host_error("the log cannot be made durable"):
            for fd in (self._text_fd, self._events_fd):
                os.fsync(fd)

    def _drop_last_line_sync(self) -> int:
        with _as_host_error("the log cannot be written"):
            start = _line_start_sync(self._events_fd, self._end - 1)
            os.ftruncate(self._events_fd, start)
        return start

    def _read_sync(self, after: int, end: int) -> EventBatch:
        size = _CHUNK_BYTES
        with _as_host_error("the log cannot be read"):
            while True:
                data = os.pread(self._events_fd, min(size, end - after), after)
                if last := data.rfind(b"\n") + 1:
                    break
                assert after + size < end, "the event file ends inside a line"
                size *= 4  # one event is larger than the chunk
        events = data[: last - 1].split(b"\n")
        shown = with_damage_marked(events)
        if shown is not events and not self._is_damaged:
            self._is_damaged = True
            log.bind(build_id=self._directory.parent.name).error("build.log_damaged")
        return _batch(after, events, shown)

    def _locate_sync(self, inside: int, end: int) -> EventId:
        with _as_host_error("the log cannot be read"):
            if inside == 0 or os.pread(self._events_fd, 1, inside - 1) == b"\n":
                return EventId(inside)
            while inside < end:
                if newline := os.pread(self._events_fd, _TAIL_BYTES, inside).find(b"\n") + 1:
                    return EventId(inside + newline)
                inside += _TAIL_BYTES
            return EventId(end)


class BuildLogs:
    """All event logs of a daemon; each is open while it is used."""

    def __init__(self, builds_dir: Path, threads: Threads) -> None:
        self._builds_dir = builds_dir
        self._threads = threads
        self._open: dict[BuildId, tuple[BuildLog, int]] = {}

    def directory(self, build_id: BuildId) -> Path:
        """Return where the log files of a build are."""
        return self._builds_dir / build_id / "logs"

    def text_path(self, build_id: BuildId) -> Path:
        """Return the plain-text log."""
        return self.directory(build_id) / TEXT_FILE

    @asynccontextmanager
    async def open(self, build_id: BuildId) -> AsyncIterator[BuildLog]:
        """Open the log of a build, or share the one that is open. Raises HostError."""
        log, users = self._open.get(build_id, (None, 0))
        if log is None:
            log = BuildLog(self.directory(build_id), self._threads)
            log.open_sync()  # a few system calls; nothing may come between the look-up and this
        self._open[build_id] = (log, users + 1)
        try:
            yield log
        finally:
            log, users = self._open[build_id]
            if users > 1:
                self._open[build_id] = (log, users - 1)
            else:
                del self._open[build_id]
                log.close_sync()

    @property
    def open_count(self) -> int:
        """How many logs are open: for the tests that look for leaks."""
        return len(self._open)


def _batch(after: int, stored: Sequence[bytes], shown: Sequence[bytes]) -> EventBatch:
    """Return events that lie behind `after`, with the ids that the stored ones have."""
    found = []
    at = after
    for event, instead in zip(stored, shown, strict=True):
        at += len(event) + 1
        found.append((EventId(at), instead))
    return EventBatch(tuple(found))


def _write_all_sync(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


@contextmanager
def _as_host_error(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        kind = ResourceExhausted if exc.errno in _DISK_FULL else HostError
        raise kind(f"{what}: {exc.strerror}") from exc


def _ends_a_line_sync(fd: int) -> bool:
    size = os.fstat(fd).st_size
    return size == 0 or os.pread(fd, 1, size - 1) == b"\n"


def _drop_torn_line_sync(fd: int) -> None:
    size = os.fstat(fd).st_size
    keep = _line_start_sync(fd, size)
    if keep != size:
        os.ftruncate(fd, keep)


def _last_line_sync(fd: int, end: int) -> bytes:
    """Return the last whole line of a file that ends with one; nothing of an empty file."""
    start = _line_start_sync(fd, end - 1)
    return os.pread(fd, end - 1 - start, start) if end else b""


def _line_start_sync(fd: int, at: int) -> int:
    """Return where the line begins that the byte at `at` belongs to, or would."""
    while at > 0:
        start = max(0, at - _TAIL_BYTES)
        if newline := os.pread(fd, at - start, start).rfind(b"\n") + 1:
            return start + newline
        at = start
    return 0
