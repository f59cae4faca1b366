"""Uploads: what is written counts, what is hashed is what is on the disk."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any, NoReturn

import pytest
import trio

from supervisor.errors import HostError, ResourceExhausted
from supervisor.model.oci import Algorithm, RepositoryName
from supervisor.registry import uploads as module
from supervisor.registry.blobs import BlobStore
from supervisor.registry.http import ClientGone
from supervisor.registry.uploads import DigestMismatch, Superseded, Upload, Uploads
from supervisor.runtime.threads import Threads
from tests.kit import cancel_at_every_checkpoint
from tests.registry.images import digest_of

REPOSITORY = RepositoryName("acme/app")


class Pieces:
    """A body of given batches; an exception among them is raised."""

    def __init__(self, *batches: bytes | Exception) -> None:
        self._batches = list(batches)
        self.taken = 0

    async def read_batch(self, at_least: int) -> list[bytes]:
        await trio.lowlevel.checkpoint()
        if not self._batches:
            return []
        batch = self._batches.pop(0)
        self.taken += 1
        if isinstance(batch, Exception):
            raise batch
        return [batch]


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    made = BlobStore(tmp_path / "registry", Threads())
    made.prepare_sync()
    return made


@pytest.fixture
def uploads(store: BlobStore) -> Uploads:
    return Uploads(store, Threads())


async def test_what_was_appended_is_verified(uploads: Uploads) -> None:
    upload = uploads.create(REPOSITORY)
    await upload.append(Pieces(b"a" * 10, b"b" * 5))
    await upload.append(Pieces(b"c"))
    content = b"a" * 10 + b"b" * 5 + b"c"
    assert upload.path.read_bytes() == content
    assert upload.size_bytes == len(content)
    await upload.verify(digest_of(content))
    await upload.verify(digest_of(content, "sha512"))
    await upload.verify(digest_of(content))
    with pytest.raises(DigestMismatch):
        await upload.verify(digest_of(content[:-1]))


async def test_the_content_is_hashed_once(
    uploads: Uploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("the file was read again")

    monkeypatch.setattr(module, "hash_file_sync", refuse)
    for algorithm in Algorithm:
        upload = uploads.create(REPOSITORY)
        upload.expect(algorithm)
        await upload.append(Pieces(b"a", b"b"))
        await upload.verify(digest_of(b"ab", algorithm))


async def test_a_restart_goes_on_from_the_file(store: BlobStore, uploads: Uploads) -> None:
    first = uploads.create(REPOSITORY)
    await first.append(Pieces(b"a" * 1000))
    later = await Uploads(store, Threads()).resume(REPOSITORY, first.id)
    assert later.size_bytes == 1000
    await later.append(Pieces(b"b"))
    await later.verify(digest_of(b"a" * 1000 + b"b"))


async def test_an_upload_dropped_from_memory_goes_on(
    uploads: Uploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MOST_LIVE", 2)
    first = uploads.create(REPOSITORY)
    await first.append(Pieces(b"a"))
    for _ in range(3):
        uploads.create(REPOSITORY)
    assert uploads.find(REPOSITORY, first.id) is None
    again = await uploads.resume(REPOSITORY, first.id)
    assert again is not first
    await again.append(Pieces(b"b"))
    await again.verify(digest_of(b"ab"))


async def test_an_upload_in_use_stays_in_memory(
    uploads: Uploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MOST_LIVE", 2)
    busy = uploads.create(REPOSITORY)
    async with busy.lock:
        for _ in range(5):
            uploads.create(REPOSITORY)
        assert uploads.find(REPOSITORY, busy.id) is busy


async def test_a_client_that_goes_leaves_what_it_sent(uploads: Uploads) -> None:
    upload = uploads.create(REPOSITORY)
    with pytest.raises(ClientGone):
        await upload.append(Pieces(b"a", b"b", ClientGone()))
    assert upload.size_bytes == 2
    await upload.append(Pieces(b"c"))
    await upload.verify(digest_of(b"abc"))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
async def test_a_full_disk_is_told_and_survived(
    uploads: Uploads, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    upload = uploads.create(REPOSITORY)
    await upload.append(Pieces(b"a"))
    written = os.pwritev

    def half(fd: int, buffers: list[bytes], offset: int) -> int:
        written(fd, [b"".join(buffers)[:3]], offset)
        raise OSError(code, "full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", half)
        body = Pieces(*[b"x" * 10] * 100)
        with pytest.raises(ResourceExhausted):
            await upload.append(body)
        assert body.taken < 10, "nobody receives for a disk that is full"
    assert upload.size_bytes == 1
    await upload.append(Pieces(b"b"))
    await upload.verify(digest_of(b"ab"))


async def test_a_broken_disk_is_a_host_error(
    uploads: Uploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> int:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "pwritev", fail)
    with pytest.raises(HostError) as caught:
        await uploads.create(REPOSITORY).append(Pieces(b"a"))
    assert not isinstance(caught.value, ResourceExhausted)


async def test_a_short_write_is_finished(uploads: Uploads, monkeypatch: pytest.MonkeyPatch) -> None:
    whole_v, whole = os.pwritev, os.pwrite
    monkeypatch.setattr(os, "pwritev", lambda fd, data, at: whole_v(fd, [data[0][:1]], at))
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: whole(fd, data[:2], at))
    upload = uploads.create(REPOSITORY)
    await upload.append(Pieces(b"abcdefgh", b"ijk"))
    assert upload.path.read_bytes() == b"abcdefghijk"
    await upload.verify(digest_of(b"abcdefghijk"))


async def test_an_interrupted_append_ends_and_the_upload_goes_on(uploads: Uploads) -> None:
    class Endless:
        async def read_batch(self, at_least: int) -> NoReturn:
            await trio.sleep_forever()

    upload = uploads.create(REPOSITORY)
    await upload.append(Pieces(b"a"))

    async def append_for_ever() -> None:
        async with upload.lock:
            with pytest.raises(Superseded):
                await upload.append(Endless())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(append_for_ever)
        await trio.testing.wait_all_tasks_blocked()
        upload.interrupt()
    await upload.append(Pieces(b"b"))
    await upload.verify(digest_of(b"ab"))


async def test_interrupting_what_is_idle_does_nothing(uploads: Uploads) -> None:
    upload = uploads.create(REPOSITORY)
    upload.interrupt()
    await upload.append(Pieces(b"a"))
    upload.interrupt()
    await upload.append(Pieces(b"b"))
    await upload.verify(digest_of(b"ab"))


async def test_cancelled_anywhere_the_size_the_file_and_the_hash_agree(uploads: Uploads) -> None:
    current: list[Upload] = []

    async def append() -> None:
        current[:] = [uploads.create(REPOSITORY)]
        await current[0].append(Pieces(b"a" * 10, b"b" * 10, b"c" * 10))

    async def check(_: int) -> None:
        if not current:
            return
        upload = current[0]
        content = (b"a" * 10 + b"b" * 10 + b"c" * 10)[: upload.size_bytes]
        await upload.append(Pieces(b"!"))
        assert upload.path.read_bytes() == content + b"!"
        await upload.verify(digest_of(content + b"!"))

    assert await cancel_at_every_checkpoint(append, check) > 5


async def test_discarding_twice_is_fine(uploads: Uploads) -> None:
    upload = uploads.create(REPOSITORY)
    await upload.append(Pieces(b"a"))
    for _ in range(2):
        uploads.discard(upload.id)
    assert not upload.path.exists()
