"""Where an upload goes: to disk as it arrives, hashed on the way, in constant memory.

The directory of an upload has exactly one owner. It is the upload's until the build service was
asked to take the build in; leaving `open_upload` before that removes it, whatever the reason.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from supervisor.api.ports import ApiDeps
from supervisor.errors import HostError, InvalidRequest, PayloadTooLarge, ResourceExhausted
from supervisor.model.build import Source
from supervisor.model.ids import BuildId
from supervisor.runtime.files import fsync_directory_sync
from supervisor.runtime.logs import log
from supervisor.runtime.threads import Threads, run_in_thread

WRITE_BYTES = 1 << 20
"""A hop to a thread costs 50 µs, so it carries this much."""
DISCARD_SECONDS = 5.0
"""For removing an upload when its request is over already."""


class Upload:
    """The source of one submission."""

    def __init__(self, build_id: BuildId, path: Path, max_bytes: int, threads: Threads) -> None:
        self.build_id = build_id
        self.path = path
        self.is_handed_over = False
        """Set before the build service is asked: from then on the files are its own."""
        self._max_bytes = max_bytes
        self._threads = threads
        self._hash = hashlib.sha256()
        self._size = 0
        self._pieces: list[bytes] = []
        self._held = 0
        self._fd = -1

    async def write(self, data: bytes) -> None:
        """Take the next bytes of the source. Raises PayloadTooLarge or ResourceExhausted."""
        self._size += len(data)
        if self._size > self._max_bytes:
            raise PayloadTooLarge(f"the source is larger than {self._max_bytes:,} bytes")
        self._pieces.append(data)
        self._held += len(data)
        if self._held >= WRITE_BYTES:
            await self._flush()

    async def finish(self) -> Source:
        """Make the file durable and return what it is.

        Raises InvalidRequest if it is empty, and ResourceExhausted.
        """
        if self._size == 0:
            raise InvalidRequest("the part `source` is empty")
        await self._flush()
        await run_in_thread(self._threads.disk, self._finish_sync)
        return Source(self._hash.hexdigest(), self._size)

    def abandon_sync(self) -> None:
        """Remove the file at once, without a checkpoint. Idempotent.

        One that the host does not let go is logged; the next start removes it.
        """
        try:
            self._close_sync()
            self.path.unlink(missing_ok=True)
        except OSError as exc:
            log.warning("upload.not_removed", build_id=self.build_id, why=exc.strerror)

    async def _flush(self) -> None:
        pieces, self._pieces, self._held = self._pieces, [], 0
        await run_in_thread(self._threads.disk, self._write_sync, pieces)

    def _write_sync(self, pieces: list[bytes]) -> None:
        try:
            if self._fd < 0:
                self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                self._fd = os.open(self.path, flags, 0o640)
            for piece in pieces:
                self._hash.update(piece)
                view = memoryview(piece)
                while view:
                    view = view[os.write(self._fd, view) :]
        except OSError as exc:
            raise ResourceExhausted(f"the upload cannot be written: {exc.strerror}") from exc

    def _finish_sync(self) -> None:
        """The build is announced as taken in; a power cut must not take its source."""
        try:
            os.fsync(self._fd)
            self._close_sync()
            directory = self.path.parent
            for level in (directory, directory.parent, directory.parent.parent):
                fsync_directory_sync(level)
        except OSError as exc:
            raise ResourceExhausted(f"the upload cannot be stored: {exc.strerror}") from exc

    def _close_sync(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)


@asynccontextmanager
async def open_upload(deps: ApiDeps) -> AsyncIterator[Upload]:
    """Give a place for one source. On exit it is handed over, or nothing of it is left."""
    build_id = deps.builds.new_id()
    path = deps.builds.upload_path(build_id)
    upload = Upload(build_id, path, deps.settings.max_source_bytes, deps.threads)
    try:
        yield upload
    finally:
        if not upload.is_handed_over:
            upload.abandon_sync()
            with trio.move_on_after(DISCARD_SECONDS, shield=True):
                try:
                    await deps.builds.discard(build_id)
                except HostError as exc:
                    log.warning("upload.not_removed", build_id=build_id, why=exc.message)
