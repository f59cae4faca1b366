"""The way to the disk: past the page cache where that is possible, and the same bytes anyway."""

from __future__ import annotations

import errno
import fcntl
import os
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from supervisor.errors import ResourceExhausted
from supervisor.model.oci import RepositoryName
from supervisor.registry import uploads as module
from supervisor.registry.blobs import BlobStore
from supervisor.registry.room import RESERVE_BYTES
from supervisor.registry.uploads import Upload, Uploads
from supervisor.registry.writing import BLOCK_BYTES, Buffers, Writer
from supervisor.runtime.threads import Threads
from tests.kit import cancel_at_every_checkpoint
from tests.registry.images import digest_of

REPOSITORY = RepositoryName("acme/app")
CONTENT = os.urandom(BLOCK_BYTES) + os.urandom(BLOCK_BYTES) + os.urandom(12345)


class Body:
    """A body that comes in pieces of one length, in batches as long as they are asked for."""

    def __init__(self, content: bytes, piece: int) -> None:
        self._pieces = [content[at : at + piece] for at in range(0, len(content), piece)]

    async def read_batch(self, at_least: int) -> list[bytes]:
        await trio.lowlevel.checkpoint()
        batch: list[bytes] = []
        while self._pieces and sum(map(len, batch)) < at_least:
            batch.append(self._pieces.pop(0))
        return batch


@pytest.fixture
def uploads(tmp_path: Path) -> Uploads:
    store = BlobStore(tmp_path / "registry", Threads())
    store.prepare_sync()
    return Uploads(store, Threads())


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Writer]:
    opened = Writer(os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT, 0o640), Buffers())
    yield opened
    opened.close()


def open_flags(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return what files are opened with from now on."""
    seen: list[int] = []
    whole = os.open

    def watched(path: Any, flags: int, *args: Any) -> int:
        seen.append(flags)
        return whole(path, flags, *args)

    monkeypatch.setattr(os, "open", watched)
    return seen


@pytest.mark.parametrize("first", [0, 1, 5000, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 7])
@pytest.mark.parametrize("piece", [99_999, 256 << 10, len(CONTENT)])
async def test_however_it_comes_the_file_has_it(uploads: Uploads, piece: int, first: int) -> None:
    upload = uploads.create(REPOSITORY)
    for part in (CONTENT[:first], CONTENT[first:]):
        await upload.append(Body(part, piece))
    assert upload.size_bytes == len(CONTENT)
    assert upload.path.read_bytes() == CONTENT
    await upload.verify(digest_of(CONTENT))


async def test_while_others_write_too_it_has_the_same_bytes(tmp_path: Path) -> None:
    threads = Threads()
    store = BlobStore(tmp_path / "registry", threads)
    store.prepare_sync()
    upload = Uploads(store, threads).create(REPOSITORY)
    await threads.blobs.acquire_on_behalf_of(object())
    await upload.append(Body(CONTENT, 99_999))
    assert upload.path.read_bytes() == CONTENT
    await upload.verify(digest_of(CONTENT))


async def test_whole_blocks_go_past_the_page_cache_and_nothing_else_does(
    uploads: Uploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = open_flags(monkeypatch)
    await uploads.create(REPOSITORY).append(Body(CONTENT[: BLOCK_BYTES - 1], 99_999))
    assert not any(flags & os.O_DIRECT for flags in seen)
    await uploads.create(REPOSITORY).append(Body(CONTENT, 99_999))
    assert sum(bool(flags & os.O_DIRECT) for flags in seen) == 1


def test_the_first_block_may_come_after_the_file_lost_its_name(
    writer: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that waits for a thread ends, whoever discards the upload meanwhile."""
    seen = open_flags(monkeypatch)
    path = tmp_path / "file"
    with path.open("rb") as reader:
        path.unlink()
        writer.write_sync(0, [CONTENT[:BLOCK_BYTES]])
        assert reader.read() == CONTENT[:BLOCK_BYTES]
    assert sum(bool(flags & os.O_DIRECT) for flags in seen) == 1


async def test_an_upload_that_is_discarded_while_it_is_received_fails_nobody(
    uploads: Uploads,
) -> None:
    upload = uploads.create(REPOSITORY)

    class Discarding(Body):
        async def read_batch(self, at_least: int) -> list[bytes]:
            uploads.discard(upload.id)
            return await super().read_batch(at_least)

    await upload.append(Discarding(CONTENT, 99_999))
    assert upload.size_bytes == len(CONTENT)
    assert not upload.path.exists()


def refuse_to_open(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.open

    def refusing(path: Any, flags: int, *args: Any) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "not here")
        return whole(path, flags, *args)

    monkeypatch.setattr(os, "open", refusing)


def refuse_to_write(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.pwritev

    def refusing(fd: int, *args: Any) -> int:
        if _is_direct(fd):
            raise OSError(errno.EINVAL, "not so")
        return whole(fd, *args)

    monkeypatch.setattr(os, "pwritev", refusing)


def write_half(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.pwritev

    def half(fd: int, pieces: list[memoryview], at: int) -> int:
        if _is_direct(fd):
            pieces = [pieces[0][: BLOCK_BYTES // 2]]
        return whole(fd, pieces, at)

    monkeypatch.setattr(os, "pwritev", half)


@pytest.mark.parametrize("limit", [refuse_to_open, refuse_to_write, write_half])
async def test_a_file_system_that_cannot_do_it_gets_the_same_bytes(
    uploads: Uploads,
    monkeypatch: pytest.MonkeyPatch,
    limit: Callable[[pytest.MonkeyPatch], None],
) -> None:
    limit(monkeypatch)
    upload = uploads.create(REPOSITORY)
    await upload.append(Body(CONTENT, 99_999))
    assert upload.path.read_bytes() == CONTENT
    await upload.verify(digest_of(CONTENT))


def test_other_errors_of_the_disk_are_raised(
    writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> int:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "pwritev", fail)
    with pytest.raises(OSError, match="broken"):
        writer.write_sync(0, [CONTENT[:BLOCK_BYTES]])


def test_memory_for_blocks_is_used_again() -> None:
    buffers = Buffers()
    first, second = buffers.take(), buffers.take()
    assert first is not second
    buffers.give_back(first)
    assert buffers.take() is first


async def test_a_block_that_is_not_written_is_not_hashed(
    uploads: Uploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = uploads.create(REPOSITORY)
    await upload.append(Body(CONTENT[:BLOCK_BYTES], BLOCK_BYTES))

    def fail(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", fail)
        with pytest.raises(ResourceExhausted):
            await upload.append(Body(CONTENT[BLOCK_BYTES:], BLOCK_BYTES))
    assert upload.size_bytes == BLOCK_BYTES
    await upload.append(Body(CONTENT[BLOCK_BYTES:], BLOCK_BYTES))
    await upload.verify(digest_of(CONTENT))


async def test_the_last_of_a_disk_is_not_for_pushes(
    uploads: Uploads, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    left = 0
    block = os.statvfs(tmp_path).f_frsize

    def nearly_full(where: int | Path) -> types.SimpleNamespace:
        return types.SimpleNamespace(f_frsize=block, f_blocks=(100 << 30) // block, f_bavail=left)

    monkeypatch.setattr(os, "statvfs", nearly_full)
    left = (RESERVE_BYTES + BLOCK_BYTES) // block
    upload = uploads.create(REPOSITORY)
    await upload.append(Body(CONTENT[:BLOCK_BYTES], BLOCK_BYTES))
    left = (RESERVE_BYTES + BLOCK_BYTES) // block - 1
    with pytest.raises(ResourceExhausted, match="full"):
        await upload.append(Body(CONTENT[BLOCK_BYTES:], BLOCK_BYTES))
    assert upload.size_bytes == upload.path.stat().st_size == BLOCK_BYTES
    # Of a disk that is small, less is kept.
    monkeypatch.setattr(
        os,
        "statvfs",
        lambda _: types.SimpleNamespace(f_frsize=1, f_blocks=100 << 20, f_bavail=10 << 20),
    )
    await upload.append(Body(CONTENT[BLOCK_BYTES:], BLOCK_BYTES))
    await upload.verify(digest_of(CONTENT))


async def test_cancelled_anywhere_blocks_are_written_and_hashed_or_neither(
    uploads: Uploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("the file was read again")

    monkeypatch.setattr(module, "hash_file_sync", refuse)
    current: list[Upload] = []

    async def append() -> None:
        current[:] = [uploads.create(REPOSITORY)]
        await current[0].append(Body(CONTENT, 256 << 10))

    async def check(_: int) -> None:
        if not current:
            return
        upload = current[0]
        await upload.append(Body(CONTENT[upload.size_bytes :], 256 << 10))
        assert upload.path.read_bytes() == CONTENT
        await upload.verify(digest_of(CONTENT))
        uploads.discard(upload.id)

    assert await cancel_at_every_checkpoint(append, check) > 5


def _is_direct(fd: int) -> bool:
    return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT)
