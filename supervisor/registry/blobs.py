"""The bytes of the registry: immutable files named by their digest, in an OCI layout's `blobs/`.

    registry/oci-layout
    registry/blobs/<algorithm>/<hex>     whole and verified, always
    registry/uploads/<id>                on the way in; see `registry.uploads`
    registry/corrupt/<algorithm>-<hex>   damaged; see `registry.aside`

A file appears under its digest by a rename, after its content is durable, and the rename is durable
before anything refers to it. A file disappears only through `collecting`, which excludes everybody
who is about to refer to that digest (`keeping`).
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import trio

from supervisor.errors import HostError, ResourceExhausted
from supervisor.model.oci import (
    Algorithm,
    Digest,
    RepositoryName,
    algorithm_of,
    encoded_part,
    parse_digest,
)
from supervisor.model.registry import FileStamp
from supervisor.registry.aside import set_aside_sync
from supervisor.registry.room import require_room_sync
from supervisor.registry.stamps import is_young, stamp_of
from supervisor.runtime.files import fsync_directory_sync, write_atomically_sync
from supervisor.runtime.logs import log
from supervisor.runtime.threads import Threads, run_in_thread

SendFile = Callable[[int, int, int, trio.CapacityLimiter], Awaitable[None]]

_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
_MODE = 0o640
_CACHE_BYTES = 32 << 20
_CACHED_ITEM_BYTES = 256 << 10
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class BlobStore:
    """Files by digest. Which repository may show which of them is not decided here."""

    def __init__(self, root: Path, threads: Threads) -> None:
        self.root = root
        self._threads = threads
        self.being_put = set[str]()
        """Names in the staging directory that `put` is using."""
        self._kept = Counter[Digest]()
        self._collecting: dict[Digest, trio.Event] = {}
        self._cache = OrderedDict[Digest, bytes]()
        self._cache_bytes = 0

    @property
    def staging(self) -> Path:
        """Where files grow before they have a digest; on the same file system as the blobs."""
        return self.root / "uploads"

    def prepare_sync(self) -> None:
        """Make what is missing of the directories. For start-up. Raises HostError."""
        try:
            for directory in (self.staging, *(self._directory(item) for item in Algorithm)):
                directory.mkdir(parents=True, exist_ok=True)
            layout = self.root / "oci-layout"
            # Not written again when it is there: a daemon must come up on a full disk.
            if not layout.exists() or layout.read_bytes() != _LAYOUT:
                write_atomically_sync(layout, _LAYOUT, is_sole_writer=True)
            for directory in (self.root / "blobs", self.root, self.root.parent):
                fsync_directory_sync(directory)
        except OSError as exc:
            raise HostError(f"{self.root} cannot be prepared: {exc.strerror}") from exc

    def path(self, digest: Digest) -> Path:
        """Return where the blob is, if it is there."""
        return self._directory(algorithm_of(digest)) / encoded_part(digest)

    # Coming in

    @asynccontextmanager
    async def keeping(self, digest: Digest) -> AsyncIterator[None]:
        """Keep collection away from a digest, from before its file appears until it is linked.

        Waits for a collection of the digest that is under way.
        """
        while digest in self._collecting:
            await self._collecting[digest].wait()
        self._kept[digest] += 1
        try:
            yield
        finally:
            self._kept[digest] -= 1
            if not self._kept[digest]:
                del self._kept[digest]

    async def adopt(self, staged: Path, size_bytes: int, digest: Digest) -> FileStamp:
        """Move a verified file under its digest, durably; return its stamp. Inside `keeping`.

        What counts are its first `size_bytes`. Raises FileNotFoundError, except that no file is as
        good as an empty one.
        A file that is there already has the same bytes and is replaced in one step, so two uploads
        of one digest do not disturb each other or a reader. Raises HostError, ResourceExhausted if
        the disk is full; then the blob may be there, and nothing refers to it.
        """
        with _as_host_error():
            return await run_in_thread(
                self._threads.sync, self._adopt_sync, staged, size_bytes, digest
            )

    async def put(self, digest: Digest, content: bytes) -> None:
        """Store content whose digest was computed from it. Call it inside `keeping`.

        Raises HostError, as `adopt` does.
        """
        name = secrets.token_hex(16)
        self.being_put.add(name)
        try:
            with _as_host_error():
                await run_in_thread(self._threads.sync, self._put_sync, name, digest, content)
        finally:
            self.being_put.discard(name)
        self._remember(digest, content)

    # Going out

    async def open(self, digest: Digest) -> tuple[int, FileStamp]:
        """Return a descriptor for reading, which the caller closes, and the stamp of the file.

        Whether its bytes are right is not looked at: see `registry.sound`. Raises
        FileNotFoundError.
        """
        return await run_in_thread(self._threads.blobs, self._open_sync, digest)

    async def stamp(self, digest: Digest) -> FileStamp | None:
        """Return the stamp of the blob's file, None if there is none."""
        return await run_in_thread(self._threads.blobs, self._stamp_sync, digest)

    async def missing(self, digests: Iterable[Digest]) -> list[Digest]:
        """Return which of `digests` have no file."""
        return await run_in_thread(self._threads.blobs, self._missing_sync, digests)

    async def read(self, fd: int, offset: int, length: int) -> bytes:
        """Return up to `length` bytes at `offset`."""
        return await run_in_thread(self._threads.blobs, os.pread, fd, length, offset)

    async def send(self, send_file: SendFile, fd: int, offset: int, length: int) -> None:
        """Have `send_file` send a part of a blob, in the threads that move blobs."""
        await send_file(fd, offset, length, self._threads.blobs)

    async def read_whole(self, digest: Digest) -> bytes:
        """Return all of a small blob: a manifest. Frequent ones come from memory.

        Raises FileNotFoundError, also for a file with other bytes than those that it is named for.
        """
        if (content := self._cache.get(digest)) is not None:
            self._cache.move_to_end(digest)
            return content
        content, stamp = await run_in_thread(self._threads.blobs, self._read_whole_sync, digest)
        if content is None:
            await self.set_aside(digest, stamp, "its file has other bytes")
            raise FileNotFoundError(f"manifest {digest} is damaged")
        self._remember(digest, content)
        return content

    # Damage

    async def set_aside(
        self,
        digest: Digest,
        stamp: FileStamp,
        why: str,
        repositories: Sequence[RepositoryName] = (),
    ) -> None:
        """Move the damaged file with that stamp to where nobody is served it, and tell of it.

        Nothing happens to a file that has taken its place, or while somebody pushes the digest:
        that mends it. One that was changed a moment ago stays: somebody may be copying it there.
        """
        if is_young(stamp):
            why = f"{why}; it was changed a moment ago, and may still be written"
            log.error("registry.blob_unreadable", digest=digest, why=why)
            return
        with self.collecting(digest) as is_mine:
            if not is_mine:
                return
            target = self.root / "corrupt" / digest.replace(":", "-")
            facts = {"digest": digest, "why": why, "repositories": ",".join(repositories)}
            try:
                is_moved = await run_in_thread(
                    self._threads.blobs, set_aside_sync, self.path(digest), stamp, target
                )
            except OSError as exc:
                log.error("registry.blob_damaged", **facts, not_moved=exc.strerror)
                return
            if is_moved:
                log.error("registry.blob_damaged", **facts, moved_to=str(target))

    # Collection

    @contextmanager
    def collecting(self, digest: Digest) -> Iterator[bool]:
        """Hold a digest for its removal; gives False, and holds nothing, if somebody keeps it."""
        if digest in self._kept or digest in self._collecting:
            yield False
            return
        done = self._collecting[digest] = trio.Event()
        try:
            yield True
        finally:
            del self._collecting[digest]
            done.set()

    async def remove(self, digest: Digest) -> int:
        """Remove a blob's file; return how many bytes that frees. Call it inside `collecting`."""
        self._forget(digest)
        return await run_in_thread(self._threads.blobs, self._remove_sync, digest)

    async def stored(self) -> list[Digest]:
        """Return the digests of all files."""
        return await run_in_thread(self._threads.blobs, self._stored_sync)

    # In threads

    def _directory(self, algorithm: Algorithm) -> Path:
        return self.root / "blobs" / algorithm

    def _adopt_sync(self, staged: Path, size_bytes: int, digest: Digest) -> FileStamp:
        # Never made here with a size: that would be zeros under a digest.
        create = os.O_CREAT if size_bytes == 0 else 0
        fd = os.open(staged, os.O_RDWR | create | os.O_CLOEXEC | os.O_NOFOLLOW, _MODE)
        try:
            os.ftruncate(fd, size_bytes)
            os.fsync(fd)
            target = self.path(digest)
            staged.rename(target)
            stamp = stamp_of(os.fstat(fd))  # only now: a rename changes it
        finally:
            os.close(fd)
        fsync_directory_sync(target.parent)
        return stamp

    def _put_sync(self, name: str, digest: Digest, content: bytes) -> None:
        staged = self.staging / name
        try:
            require_room_sync(self.staging, len(content))
            staged.write_bytes(content)
            staged.chmod(_MODE)
            self._adopt_sync(staged, len(content), digest)
        finally:
            staged.unlink(missing_ok=True)

    def _open_sync(self, digest: Digest) -> tuple[int, FileStamp]:
        fd = os.open(self.path(digest), os.O_RDONLY | os.O_CLOEXEC)
        return fd, stamp_of(os.fstat(fd))

    def _stamp_sync(self, digest: Digest) -> FileStamp | None:
        try:
            return stamp_of(self.path(digest).stat())
        except FileNotFoundError:
            return None

    def _missing_sync(self, digests: Iterable[Digest]) -> list[Digest]:
        return [digest for digest in digests if not self.path(digest).exists()]

    def _read_whole_sync(self, digest: Digest) -> tuple[bytes | None, FileStamp]:
        """Return the content, None if it is not what the file is named for."""
        with self.path(digest).open("rb") as file:
            stamp = stamp_of(os.fstat(file.fileno()))
            content = file.read()
        if hashlib.new(algorithm_of(digest), content).hexdigest() != encoded_part(digest):
            return None, stamp
        return content, stamp

    def _remove_sync(self, digest: Digest) -> int:
        path = self.path(digest)
        try:
            size = path.stat().st_size
            path.unlink()
        except FileNotFoundError:
            return 0
        return size

    def _stored_sync(self) -> list[Digest]:
        found = []
        for algorithm in Algorithm:
            with os.scandir(self._directory(algorithm)) as entries:
                names = [f"{algorithm}:{entry.name}" for entry in entries]
            found += [digest for name in names if (digest := parse_digest(name)) is not None]
        return found

    # Small contents that are asked for often

    def _remember(self, digest: Digest, content: bytes) -> None:
        if len(content) > _CACHED_ITEM_BYTES:
            return
        self._forget(digest)
        self._cache[digest] = content
        self._cache_bytes += len(content)
        while self._cache_bytes > _CACHE_BYTES:
            _, dropped = self._cache.popitem(last=False)
            self._cache_bytes -= len(dropped)

    def _forget(self, digest: Digest) -> None:
        if (content := self._cache.pop(digest, None)) is not None:
            self._cache_bytes -= len(content)


@contextmanager
def _as_host_error() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise  # an upload that is gone: the caller knows what that means
    except OSError as exc:
        kind = ResourceExhausted if exc.errno in _FULL else HostError
        raise kind(f"the registry cannot store a blob: {exc.strerror}") from exc
