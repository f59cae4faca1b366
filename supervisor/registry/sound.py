"""Blobs are served while their files are what they were when their bytes were verified.

Nearly always that is a look at the file (`registry.stamps`). A file that is not as it was, or of
which nobody knows (it came from a backup, or from a version that kept no stamps), is read once, and
hashed: then its new stamp is kept, or it is damaged and moved aside (`registry.aside`).

All who ask for a file meanwhile wait for the same reading. It goes on while anybody waits, and is
nobody's task: who waits longest reads, and when that one leaves the next goes on from there. So
does who asks again for a file that is still the same: a client that is not patient comes to an end.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import ExitStack

import trio

from supervisor.errors import HostError
from supervisor.model.oci import Digest, RepositoryName, algorithm_of
from supervisor.model.registry import BlobInfo, FileStamp
from supervisor.registry.blobs import BlobStore
from supervisor.registry.facts import Facts
from supervisor.registry.hashing import Hash, hash_descriptor_sync, new_hash
from supervisor.registry.stamps import has_same_content, stamp_of
from supervisor.runtime.logs import log
from supervisor.runtime.threads import Threads, run_in_thread

Look = Callable[[], Awaitable[bool]]
Waiting = Callable[[Look], Awaitable[bool]]
"""How somebody waits for a look that may take as long as reading the file."""

_PIECE_BYTES = 32 << 20
"""Hashed at a time: a cancellation waits for no more than that."""
_MOST_LEFT = 32
"""Readings that nobody waits for and that are kept: each is a hash, a few hundred bytes."""
_NAMED = 5
"""Repositories in the log."""


_Key = tuple[Digest, FileStamp]


class _Reading:
    """A file that is being read, as far as it was."""

    def __init__(self, digest: Digest) -> None:
        self.lock = trio.Lock()
        self.waiters = 0
        self.hash: Hash = new_hash(algorithm_of(digest))
        self.offset = 0
        self.is_sound: bool | None = None


class SoundBlobs:
    """Opens blobs, and finds out which are damaged. One for each registry."""

    def __init__(self, facts: Facts, store: BlobStore, threads: Threads) -> None:
        self._facts = facts
        self._store = store
        self._threads = threads
        self._readings: dict[_Key, _Reading] = {}
        self._left = OrderedDict[_Key, _Reading]()
        """Those that nobody waits for, the latest last."""

    async def open(
        self, repository: RepositoryName, blob: BlobInfo, waiting: Waiting | None = None
    ) -> int:
        """Return a descriptor for reading, which the caller closes.

        Raises FileNotFoundError if the file is gone or damaged. Cancelling it is safe at any point.
        """
        for _ in range(2):
            fd, stamp = await self._open(blob.digest)
            with ExitStack() as stack:
                stack.callback(os.close, fd)

                async def look(fd: int = fd, stamp: FileStamp = stamp) -> bool:
                    return await self._look(repository, blob, fd, stamp)

                if stamp == blob.stamp or await (look() if waiting is None else waiting(look)):
                    stack.pop_all()
                    return fd
                if os.fstat(fd).st_nlink:
                    break
                # A push has put another file there meanwhile.
        raise FileNotFoundError(f"blob {blob.digest} is damaged")

    async def is_sound(
        self, repository: RepositoryName, blob: BlobInfo, waiting: Waiting | None = None
    ) -> bool:
        """Say whether the blob can be served from `repository`, which links it."""
        if blob.stamp is not None and await self._store.stamp(blob.digest) == blob.stamp:
            return True
        try:
            os.close(await self.open(repository, blob, waiting))
        except FileNotFoundError:
            return False
        return True

    async def _open(self, digest: Digest) -> tuple[int, FileStamp]:
        try:
            return await self._store.open(digest)
        except PermissionError as exc:
            # As if it were not there: a push puts one there that can be read.
            log.error("registry.blob_unreadable", digest=digest, why=exc.strerror)
            raise FileNotFoundError(f"blob {digest} cannot be read") from exc

    async def _look(
        self, repository: RepositoryName, blob: BlobInfo, fd: int, stamp: FileStamp
    ) -> bool:
        # What the caller knows may be old: it was verified, or replaced, for another repository.
        if await self._facts.find_stamp(repository, blob.digest) == stamp:
            return True
        key = (blob.digest, stamp)
        reading = self._readings.get(key) or self._left.pop(key, None) or _Reading(blob.digest)
        self._readings[key] = reading
        reading.waiters += 1
        try:
            async with reading.lock:
                if reading.is_sound is None:
                    reading.is_sound = await self._judge(reading, repository, blob, fd, stamp)
        finally:
            reading.waiters -= 1
            if not reading.waiters:
                del self._readings[key]
                if reading.is_sound is None and reading.offset:
                    self._left[key] = reading
                    if len(self._left) > _MOST_LEFT:
                        self._left.popitem(last=False)
        return reading.is_sound

    async def _judge(
        self,
        reading: _Reading,
        repository: RepositoryName,
        blob: BlobInfo,
        fd: int,
        stamp: FileStamp,
    ) -> bool:
        """Read a file, and draw the consequence. May be begun again after a cancellation."""
        try:
            why = await self._find_damage(reading, blob, fd)
        except OSError as exc:
            # It stays where it is: this may be said of every file of a disk that is ill.
            log.error("registry.blob_unreadable", digest=blob.digest, why=exc.strerror)
            return False
        status = os.fstat(fd)
        if not status.st_nlink:
            return why is None  # a push has replaced it, or it was collected
        now = stamp_of(status)
        if why is None and now != stamp and has_same_content(now, stamp):
            return True  # a backup linked it, say. Not noted: whoever asks next reads it once more
        if now != stamp:
            log.error("registry.blob_unreadable", digest=blob.digest, why="somebody writes to it")
            return False
        if why is None:
            await self._note(repository, blob, stamp)
            return True
        found = await self._facts.find_linking_repositories(blob.digest)
        await self._store.set_aside(blob.digest, stamp, why, found[:_NAMED])
        return False

    async def _find_damage(self, reading: _Reading, blob: BlobInfo, fd: int) -> str | None:
        """Return what is wrong with the bytes. Raises OSError if they cannot be read."""
        size = os.fstat(fd).st_size
        if size != blob.size_bytes:
            return f"its file has {size} bytes instead of {blob.size_bytes}"
        while reading.offset < size:
            start, stop = reading.offset, min(size, reading.offset + _PIECE_BYTES)
            try:
                await run_in_thread(
                    self._threads.hashing, hash_descriptor_sync, fd, start, stop, reading.hash
                )
            except EOFError:
                return "its file has become shorter"
            reading.offset = stop
        if f"{algorithm_of(blob.digest)}:{reading.hash.hexdigest()}" != blob.digest:
            return "its file has other bytes"
        return None

    async def _note(self, repository: RepositoryName, blob: BlobInfo, stamp: FileStamp) -> None:
        try:
            await self._facts.note_stamp(repository, blob.digest, stamp)
        except HostError as exc:
            # It can be served all the same; the next one who asks has it read again.
            log.warning("registry.stamp_not_stored", digest=blob.digest, why=str(exc))
            return
        log.info("registry.blob_verified", digest=blob.digest, size_bytes=blob.size_bytes)
