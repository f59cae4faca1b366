"""Blobs on the way in: written and hashed once, as they arrive.

An upload is a file in the staging directory and, while the daemon lives, the state of its hash. The
file alone is enough to go on after a restart: its length is the offset, and its hash is computed
again when the upload is finished. Bytes pass through a bounded pipeline: while one block is written
and hashed in a thread (`registry.writing`), the next one is received.

Several requests for one upload are served one after the other.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import trio

from supervisor.errors import HostError, ResourceExhausted
from supervisor.model.oci import (
    Algorithm,
    Digest,
    RepositoryName,
    UploadId,
    algorithm_of,
    parse_upload_id,
)
from supervisor.registry.blobs import BlobStore
from supervisor.registry.hashing import Hash, hash_file_sync, hash_sync, new_hash
from supervisor.registry.writing import BLOCK_BYTES, Buffers, Piece, Writer
from supervisor.runtime.threads import Threads, run_in_thread

_REHASH_BYTES = 64 << 20
_MOST_LIVE = 4096
"""Hash states kept in memory. An older upload is not lost, only hashed again."""

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class Body(Protocol):
    """Where the bytes come from."""

    async def read_batch(self, at_least: int) -> list[bytes]:
        """Return more chunks; an empty list at the end."""
        ...


class DigestMismatch(Exception):
    """The content does not have the digest that the client named."""


class Superseded(Exception):
    """Another request has taken the upload over."""


class Upload:
    """One upload. Hold `lock` for as long as a request uses it."""

    def __init__(
        self,
        upload_id: UploadId,
        repository: RepositoryName,
        path: Path,
        threads: Threads,
        buffers: Buffers,
        size_bytes: int,
    ) -> None:
        self.id = upload_id
        self.repository = repository
        self.path = path
        self.size_bytes = size_bytes
        """How many bytes have been written and hashed."""
        self.lock = trio.Lock()
        self._threads = threads
        self._buffers = buffers
        self._receiving = trio.CancelScope()
        self._algorithm = Algorithm.SHA256
        # None: there are bytes that this process has not hashed.
        self._hash: Hash | None = new_hash(self._algorithm) if size_bytes == 0 else None

    def expect(self, algorithm: Algorithm) -> None:
        """Choose the algorithm before the first byte; a wrong guess costs one more reading."""
        if self.size_bytes == 0:
            self._algorithm = algorithm
            self.reset()

    def reset(self) -> None:
        """Begin again with nothing."""
        self.size_bytes = 0
        self._hash = new_hash(self._algorithm)

    async def append(self, body: Body) -> None:
        """Write and hash the rest of `body`.

        Whatever ends it early (the client goes, the disk is full, a cancellation), the bytes up to
        `size_bytes` count, and the upload can go on from there. Raises ResourceExhausted, and
        Superseded after `interrupt`.
        """
        # Before the first await: whoever interrupts from here on must reach this append.
        self._receiving = scope = trio.CancelScope()
        with scope:
            fd = await run_in_thread(self._threads.blobs, _open_for_writing_sync, self.path)
            writer = Writer(fd, self._buffers)
            try:
                await self._append(writer, body)
            finally:
                writer.close()
        if scope.cancelled_caught:
            raise Superseded

    def interrupt(self) -> None:
        """End the `append` that is under way: its client came back on another connection."""
        if self.lock.locked():
            self._receiving.cancel(reason="another request goes on with the upload")

    async def _append(self, writer: Writer, body: Body) -> None:
        received = await body.read_batch(BLOCK_BYTES)
        if not received:
            return
        gone: list[Exception] = []
        send, receive = trio.open_memory_channel[list[bytes]](0)

        async def read_ahead() -> None:
            # What goes wrong here is a value, not an exception through the nursery.
            async with send:
                try:
                    while chunks := await body.read_batch(BLOCK_BYTES):
                        await send.send(chunks)
                except trio.BrokenResourceError:
                    return  # the writer has failed and says so itself
                except Exception as exc:
                    gone.append(exc)

        async with trio.open_nursery() as nursery, receive:
            nursery.start_soon(read_ahead)
            failure = await self._write_all(writer, received, receive)
            if failure is not None:
                nursery.cancel_scope.cancel(reason="the upload cannot be written")
        if failure is not None:
            raise _host_error(failure) from failure
        if gone:
            raise gone[0]

    async def _write_all(
        self, writer: Writer, received: list[bytes], receive: trio.MemoryReceiveChannel[list[bytes]]
    ) -> OSError | None:
        """Write what is received until its end, in whole blocks where there is enough of it."""
        held: list[Piece] = []
        while True:
            held += received
            while block := _take_block(held, self.size_bytes):
                if failure := await self._write(writer, block):
                    return failure
            # A batch that is short ends the body, or is many crumbs: neither is held on to.
            if held and sum(map(len, received)) < BLOCK_BYTES:
                if failure := await self._write(writer, held):
                    return failure
                held = []
            try:
                received = await receive.receive()
            except trio.EndOfChannel:
                return await self._write(writer, held) if held else None

    async def _write(self, writer: Writer, pieces: list[Piece]) -> OSError | None:
        """Write and hash `pieces`: a whole block in two threads at once, if nobody else has any."""
        length = sum(map(len, pieces))
        # A cancellation comes before the threads start or not at all, so that the file, the hash
        # and the size always agree.
        await trio.lowlevel.checkpoint_if_cancelled()
        failure: OSError | None = None
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as nursery:
                running = self._hash
                is_alone = not self._threads.blobs.borrowed_tokens
                if running is not None and length == BLOCK_BYTES and is_alone:
                    nursery.start_soon(
                        run_in_thread, self._threads.blobs, hash_sync, pieces, running
                    )
                    running = None
                try:
                    await run_in_thread(
                        self._threads.blobs, _write_sync, writer, self.size_bytes, pieces, running
                    )
                except OSError as exc:
                    failure = exc
        if failure is not None:
            self._hash = None  # it may know of what was not written
            return failure
        self.size_bytes += length
        return None

    async def verify(self, digest: Digest) -> None:
        """Compare the content with a digest. Raises DigestMismatch."""
        algorithm = algorithm_of(digest)
        if self._hash is None or algorithm is not self._algorithm:
            await self._hash_again(algorithm)
        assert self._hash is not None
        if f"{algorithm}:{self._hash.hexdigest()}" != digest:
            raise DigestMismatch

    async def _hash_again(self, algorithm: Algorithm) -> None:
        result = new_hash(algorithm)
        for offset in range(0, self.size_bytes, _REHASH_BYTES):
            stop = min(self.size_bytes, offset + _REHASH_BYTES)
            await run_in_thread(
                self._threads.hashing, hash_file_sync, self.path, offset, stop, result
            )
        self._algorithm, self._hash = algorithm, result


class Uploads:
    """The uploads of one registry."""

    def __init__(self, store: BlobStore, threads: Threads) -> None:
        self._store = store
        self._directory = store.staging
        self._threads = threads
        self._buffers = Buffers()
        self._live: dict[UploadId, Upload] = {}

    def create(self, repository: RepositoryName, upload_id: UploadId | None = None) -> Upload:
        """Begin an upload. Without an id it is known to this process only."""
        return self._admit(repository, upload_id or new_upload_id(), 0)

    def find(self, repository: RepositoryName, upload_id: UploadId) -> Upload | None:
        """Return an upload that is in memory."""
        upload = self._live.get(upload_id)
        return upload if upload is not None and upload.repository == repository else None

    async def resume(self, repository: RepositoryName, upload_id: UploadId) -> Upload:
        """Return an upload that was begun, by this process or an earlier one, into `repository`."""
        if upload_id not in self._live:
            size_bytes = await run_in_thread(self._threads.blobs, _size_sync, self._path(upload_id))
            if upload_id not in self._live:  # another request may have been here meanwhile
                self._admit(repository, upload_id, size_bytes)
        return self._live[upload_id]

    def discard(self, upload_id: UploadId) -> None:
        """Forget an upload and remove its file; already gone is fine. Does not block for long."""
        self._live.pop(upload_id, None)
        self._path(upload_id).unlink(missing_ok=True)

    def release(self, upload: Upload) -> None:
        """Forget an upload whose file has been moved to its place."""
        self._live.pop(upload.id, None)

    async def last_used(self) -> Mapping[UploadId, float]:
        """Return when each file was last written (Unix seconds); infinity while it is in use."""
        found = await run_in_thread(self._threads.blobs, _list_sync, self._directory)
        busy = {item.id: math.inf for item in self._live.values() if item.lock.locked()}
        return {**found, **busy}

    def is_in_memory(self, upload_id: UploadId) -> bool:
        """Say whether the file of this name belongs to something that this process is doing."""
        return upload_id in self._live or upload_id in self._store.being_put

    def _admit(self, repository: RepositoryName, upload_id: UploadId, size_bytes: int) -> Upload:
        path = self._path(upload_id)
        upload = Upload(upload_id, repository, path, self._threads, self._buffers, size_bytes)
        if len(self._live) >= _MOST_LIVE:
            idle = (item.id for item in self._live.values() if not item.lock.locked())
            if (oldest := next(idle, None)) is not None:
                del self._live[oldest]
        self._live[upload_id] = upload
        return upload

    def _path(self, upload_id: UploadId) -> Path:
        return self._directory / upload_id


def new_upload_id() -> UploadId:
    """Return an id that nobody can guess: whoever knows it may look at the upload's progress."""
    return UploadId(secrets.token_hex(16))


def _host_error(exc: OSError) -> HostError:
    if exc.errno in _FULL:
        return ResourceExhausted("the registry's disk is full")
    return HostError(f"the registry cannot write: {exc.strerror}")


def _open_for_writing_sync(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)


def _take_block(held: list[Piece], offset: int) -> list[Piece]:
    """Take from `held` what ends at the next multiple of a block; nothing if that is not there."""
    missing = BLOCK_BYTES - offset % BLOCK_BYTES
    if sum(map(len, held)) < missing:
        return []
    taken: list[Piece] = []
    while missing > 0:
        piece = held.pop(0)
        if len(piece) > missing:
            view = memoryview(piece)
            held.insert(0, view[missing:])
            piece = view[:missing]
        taken.append(piece)
        missing -= len(piece)
    return taken


def _write_sync(writer: Writer, offset: int, pieces: list[Piece], running: Hash | None) -> None:
    writer.write_sync(offset, pieces)
    if running is not None:
        hash_sync(pieces, running)


def _size_sync(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _list_sync(directory: Path) -> dict[UploadId, float]:
    found = {}
    with os.scandir(directory) as entries:
        for entry in entries:
            upload_id = parse_upload_id(entry.name)
            if upload_id is None:
                continue
            # A file may be finished or cancelled between the listing and the look.
            with contextlib.suppress(FileNotFoundError):
                found[upload_id] = entry.stat(follow_symlinks=False).st_mtime
    return found
