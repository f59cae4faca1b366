"""The blob store: files appear whole, and go only when nobody is about to refer to them."""

from __future__ import annotations

import json
import os
import types
from pathlib import Path

import pytest
import trio

from supervisor.errors import HostError, ResourceExhausted
from supervisor.registry import blobs as module
from supervisor.registry.blobs import BlobStore
from supervisor.registry.room import RESERVE_BYTES
from supervisor.runtime.threads import Threads
from tests.registry.images import digest_of

CONTENT = b"content"
DIGEST = digest_of(CONTENT)


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    made = BlobStore(tmp_path / "registry", Threads())
    made.prepare_sync()
    return made


async def put(store: BlobStore, content: bytes = CONTENT) -> None:
    async with store.keeping(digest_of(content)):
        await store.put(digest_of(content), content)


async def test_the_directory_is_an_oci_layout(store: BlobStore) -> None:
    await put(store)
    assert json.loads((store.root / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    path = store.root / "blobs" / "sha256" / DIGEST.partition(":")[2]
    assert path.read_bytes() == CONTENT
    assert path.stat().st_mode & 0o777 == 0o640
    assert await store.stored() == [DIGEST]


async def test_preparing_again_keeps_what_is_there(store: BlobStore) -> None:
    await put(store)
    store.prepare_sync()
    assert await store.read_whole(DIGEST) == CONTENT


async def test_the_content_is_durable_before_it_has_its_name(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    sync, rename = os.fsync, Path.rename

    def note_sync(fd: int) -> None:
        order.append("directory" if os.path.isdir(f"/proc/self/fd/{fd}") else "file")  # noqa: PTH112
        sync(fd)

    def note_rename(path: Path, target: Path) -> Path:
        order.append("rename")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Path, "rename", note_rename)
    await put(store)
    assert order == ["file", "rename", "directory"]


async def test_no_file_is_an_empty_one_and_never_zeros(store: BlobStore) -> None:
    staged = store.staging / "x"
    empty = digest_of(b"")
    async with store.keeping(empty):
        await store.adopt(staged, 0, empty)
    assert await store.read_whole(empty) == b""
    async with store.keeping(DIGEST):
        with pytest.raises(FileNotFoundError):
            await store.adopt(staged, 7, DIGEST)
    assert DIGEST not in await store.stored()


async def test_bytes_that_do_not_count_are_cut(store: BlobStore) -> None:
    staged = store.staging / "x"
    staged.write_bytes(CONTENT + b"half a batch more")
    async with store.keeping(DIGEST):
        await store.adopt(staged, len(CONTENT), DIGEST)
    assert store.path(DIGEST).read_bytes() == CONTENT


async def test_a_reader_keeps_what_it_opened(store: BlobStore) -> None:
    await put(store)
    fd, _ = await store.open(DIGEST)
    try:
        await put(store)
        with store.collecting(DIGEST) as is_mine:
            assert is_mine
            await store.remove(DIGEST)
        assert await store.read(fd, 0, 100) == CONTENT
        assert await store.read(fd, 3, 2) == CONTENT[3:5]
    finally:
        os.close(fd)
    with pytest.raises(FileNotFoundError):
        await store.open(DIGEST)
    with pytest.raises(FileNotFoundError):
        await store.read_whole(DIGEST)


async def test_what_is_kept_is_not_collected(store: BlobStore) -> None:
    async with store.keeping(DIGEST):
        async with store.keeping(DIGEST):
            pass
        with store.collecting(DIGEST) as is_mine:
            assert not is_mine
    with store.collecting(DIGEST) as is_mine:
        assert is_mine
        with store.collecting(DIGEST) as is_mine_too:
            assert not is_mine_too


async def test_keeping_waits_for_a_collection_under_way(store: BlobStore) -> None:
    order = []

    async def keep() -> None:
        async with store.keeping(DIGEST):
            order.append("kept")

    async with trio.open_nursery() as nursery:
        with store.collecting(DIGEST):
            nursery.start_soon(keep)
            await trio.testing.wait_all_tasks_blocked()
            order.append("collected")
    assert order == ["collected", "kept"]


async def test_memory_holds_small_contents_up_to_a_limit(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CACHE_BYTES", 100)
    monkeypatch.setattr(module, "_CACHED_ITEM_BYTES", 40)
    contents = [bytes([number]) * 40 for number in range(5)] + [b"large" * 20]
    for content in contents:
        await put(store, content)
    held = []
    for content in contents:
        store.path(digest_of(content)).unlink()
        try:
            held.append(await store.read_whole(digest_of(content)) == content)
        except FileNotFoundError:
            held.append(False)
    assert held == [False, False, False, True, True, False]


async def test_a_full_disk_is_told_as_such(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(ResourceExhausted, match="No space left"):
            await put(store)
        with pytest.raises(HostError, match="cannot be prepared"):
            store.prepare_sync()
    assert await store.stored() == []
    assert list(store.staging.iterdir()) == []


async def test_a_manifest_does_not_take_the_last_of_a_disk(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    nearly_full = types.SimpleNamespace(f_frsize=1, f_blocks=1 << 40, f_bavail=RESERVE_BYTES)
    with monkeypatch.context() as patch:
        patch.setattr(os, "statvfs", lambda _: nearly_full)
        with pytest.raises(ResourceExhausted, match="No space left"):
            await put(store)
    assert await store.stored() == []
    assert list(store.staging.iterdir()) == []


def test_the_layout_file_is_written_once(store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a full disk would keep the daemon from starting")

    monkeypatch.setattr(module, "write_atomically_sync", refuse)
    store.prepare_sync()
