"""Blobs whose files are not what they were: never served, told of once, mended by a push."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path

import pytest
import sqlalchemy as sa
import trio

from supervisor.errors import ResourceExhausted
from supervisor.model.oci import Digest, RepositoryName
from supervisor.model.registry import FileStamp
from supervisor.registry import hashing, sound, stamps
from supervisor.store import registry as units
from supervisor.store.registry_tables import blobs
from tests.kit import cancel_at_every_checkpoint
from tests.registry.client import Client
from tests.registry.damage import content_of, flip, hearing, is_there, restore, write
from tests.registry.images import digest_of, image
from tests.registry.mirroring import NAME, Mirrored, open_mirror
from tests.registry.serve import Served, api_token, database_of, open_registry
from tests.registry.upstream import answer

PIECE_BYTES = 1000
CONTENT = random.Random(7).randbytes(3 * PIECE_BYTES + 5)
DIGEST = digest_of(CONTENT)
PIECES = 4
HERE = f"/v2/acme/app/blobs/{DIGEST}"
APP = RepositoryName("acme/app")
OTHER = RepositoryName("acme/other")


def is_open(path: Path) -> bool:
    """Say whether this process has a file open, also one that has no name any more."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the one of this listing
            found.append(str(link.readlink()))
    return any(item.startswith(str(path)) for item in found)


class Readings:
    """How often files are read to be hashed; in small pieces here."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pieces = 0
        self.on_piece: Callable[[], None] = lambda: None
        original = hashing.hash_descriptor_sync

        def count(fd: int, start: int, stop: int, running: hashing.Hash) -> None:
            self.pieces += 1
            self.on_piece()
            original(fd, start, stop, running)

        monkeypatch.setattr(sound, "hash_descriptor_sync", count)
        monkeypatch.setattr(sound, "_PIECE_BYTES", PIECE_BYTES)


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> Readings:
    return Readings(monkeypatch)


@pytest.fixture
async def path(served: Served, client: Client, readings: Readings) -> Path:
    """The file of a blob that was pushed."""
    await client.push_blob(APP, CONTENT)
    return served.actor.store.path(DIGEST)


async def test_a_file_with_other_bytes_is_not_served_and_a_push_mends_it(
    client: Client, served: Served, path: Path
) -> None:
    damaged = flip(path)
    with hearing() as heard:
        # Nobody is told that it is there, so that it is pushed again.
        assert await client.status_of(HERE, "HEAD") == 404
        assert not is_there(path)
        for headers in ({}, {"range": "bytes=0-9"}):
            got = await client("GET", HERE, headers=headers)
            assert (got.status, got.code) == (404, "BLOB_UNKNOWN")
            assert "damaged or gone; push it again" in got.json["errors"][0]["message"]
        mount = f"/v2/{OTHER}/blobs/uploads/?mount={DIGEST}&from={APP}"
        assert await client.status_of(mount, "POST") == 202
        assert await client.status_of(f"/v2/{OTHER}/blobs/{DIGEST}") == 404
    (told,) = heard
    assert told["message"] == "registry.blob_damaged"
    facts = told["extra"]
    assert (facts["digest"], facts["repositories"]) == (DIGEST, APP)
    assert facts["why"] == "its file has other bytes"
    aside = served.root / "corrupt" / DIGEST.replace(":", "-")
    assert facts["moved_to"] == str(aside)
    assert content_of(aside) == damaged

    await client.push_blob(APP, CONTENT)
    assert (await client("GET", HERE)).body == CONTENT


async def test_no_image_is_made_of_what_is_damaged(client: Client, served: Served) -> None:
    app = image({"a": b"1"})
    await client.push(APP, app)
    layer = digest_of(app.blobs[1])
    flip(served.actor.store.path(layer))
    assert await client.status_of(f"/v2/{APP}/blobs/{layer}", "HEAD") == 404
    got = await client.push_manifest(APP, app, "1")
    assert (got.status, got.code) == (400, "MANIFEST_BLOB_UNKNOWN")
    assert got.json["errors"][0]["detail"] == [layer]
    await client.push(APP, app, "1")


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
async def test_whatever_is_asked_first_notices(client: Client, path: Path, method: str) -> None:
    flip(path)
    target = HERE if method != "POST" else f"/v2/{OTHER}/blobs/uploads/?mount={DIGEST}&from={APP}"
    assert await client.status_of(target, method) == (202 if method == "POST" else 404)
    assert not is_there(path)


async def test_a_file_as_it_was_pushed_is_never_read_to_be_hashed(
    tmp_path: Path, readings: Readings
) -> None:
    for _ in range(2):
        async with open_registry(tmp_path) as served:  # the second time, after a restart
            client = Client(served.app, api_token())
            if not served.actor.store.path(DIGEST).exists():
                await client.push_blob(APP, CONTENT)
            mount = f"/v2/{OTHER}/blobs/uploads/?mount={DIGEST}&from={APP}"
            assert await client.status_of(mount, "POST") == 201
            for repository in (APP, OTHER):
                target = f"/v2/{repository}/blobs/{DIGEST}"
                assert (await client("GET", target)).body == CONTENT
                assert await client.status_of(target, "HEAD") == 200
            # Now the file is another one, which was verified on its way in.
            await client.push_blob(OTHER, CONTENT)
            assert (await client("GET", HERE)).body == CONTENT
    assert readings.pieces == 0


async def test_a_file_from_a_backup_is_read_once(tmp_path: Path, readings: Readings) -> None:
    async with open_registry(tmp_path) as served:
        client = Client(served.app, api_token())
        for repository in (APP, OTHER):
            await client.push_blob(repository, CONTENT)
    restore(served.actor.store.path(DIGEST), CONTENT)
    for _ in range(2):
        async with open_registry(tmp_path) as served:
            client = Client(served.app, api_token())
            for repository in (APP, OTHER, APP):
                got = await client("GET", f"/v2/{repository}/blobs/{DIGEST}")
                assert got.body == CONTENT
            assert readings.pieces == PIECES


async def test_a_blob_that_an_older_version_stored_is_read_once(
    client: Client, served: Served, path: Path, readings: Readings
) -> None:
    def forget(connection: sa.Connection) -> None:
        connection.execute(sa.update(blobs).values(stamp=None))

    await database_of(served).run(forget)
    for _ in range(3):
        assert (await client("GET", HERE)).body == CONTENT
    assert readings.pieces == PIECES
    flip(path)
    await database_of(served).run(forget)
    assert await client.status_of(HERE) == 404


async def test_all_who_wait_share_one_reading(
    client: Client, served: Served, path: Path, readings: Readings
) -> None:
    restore(path, CONTENT)
    bodies = []

    async def read() -> None:
        bodies.append((await client("GET", HERE)).body)

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(read)
    assert bodies == [CONTENT] * 10
    assert readings.pieces == PIECES


async def test_all_who_wait_for_a_damaged_one_are_told_and_the_log_once(
    client: Client, path: Path, readings: Readings
) -> None:
    flip(path)
    statuses = []

    async def read() -> None:
        statuses.append(await client.status_of(HERE))

    with hearing() as heard:
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(read)
    assert statuses == [404] * 10
    assert len(heard) == 1


async def test_who_waits_on_goes_on_where_another_one_has_left(
    client: Client, served: Served, path: Path, readings: Readings
) -> None:
    restore(path, CONTENT)
    blob = await served.handle.find_blob(APP, DIGEST)
    assert blob is not None
    leaving, both_wait = trio.CancelScope(), trio.Event()

    def leave() -> None:
        if readings.pieces == 1:
            trio.from_thread.run(both_wait.wait)
        if readings.pieces == 2:
            trio.from_thread.run_sync(lambda: leaving.cancel(reason="it has seen enough"))

    readings.on_piece = leave
    found = []

    async def first() -> None:
        with leaving:
            found.append(await served.actor.sound.open(APP, blob))

    async def second() -> None:
        found.append(await served.actor.sound.open(APP, blob))

    async with trio.open_nursery() as nursery:
        for number, task in enumerate((first, second), 1):
            nursery.start_soon(task)
            while sum(item.waiters for item in served.actor.sound._readings.values()) < number:
                await trio.testing.wait_all_tasks_blocked()
        both_wait.set()
    (fd,) = found
    os.close(fd)
    assert leaving.cancelled_caught
    assert readings.pieces == PIECES


@pytest.mark.parametrize("damage", [restore, lambda path, _: flip(path)])
async def test_cancelled_anywhere_it_leaves_nothing_open_and_the_next_one_learns_the_truth(
    client: Client, served: Served, path: Path, damage: Callable[[Path, bytes], object]
) -> None:
    sound_blobs = served.actor.sound

    async def look() -> None:
        restore(path, CONTENT)
        damage(path, CONTENT)
        blob = await served.handle.find_blob(APP, DIGEST)
        assert blob is not None
        await sound_blobs.is_sound(APP, blob)

    async def check(_: int) -> None:
        assert not sound_blobs._readings
        assert not is_open(path)
        assert await client.status_of(HERE) == (200 if damage is restore else 404)

    assert await cancel_at_every_checkpoint(look, check) > PIECES


@pytest.mark.parametrize(
    ("method", "target"),
    [("GET", HERE), ("POST", f"/v2/{OTHER}/blobs/uploads/?mount={DIGEST}&from={APP}")],
)
@pytest.mark.parametrize(("most_left", "pieces_left"), [(1, PIECES - 1), (0, PIECES)])
async def test_a_client_that_leaves_ends_the_reading_and_the_next_one_goes_on(
    client: Client,
    served: Served,
    path: Path,
    readings: Readings,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    target: str,
    most_left: int,
    pieces_left: int,
) -> None:
    monkeypatch.setattr(sound, "_MOST_LEFT", most_left)
    restore(path, CONTENT)
    leave = trio.Event()

    def let_leave() -> None:
        if readings.pieces == 2:
            trio.from_thread.run_sync(leave.set)
            trio.from_thread.run(trio.testing.wait_all_tasks_blocked)  # until it has left

    readings.on_piece = let_leave
    await client(method, target, vanish_after=0, vanish_when=leave)
    assert readings.pieces == 2
    assert not served.actor.sound._readings
    readings.pieces, readings.on_piece = 0, lambda: None
    assert (await client("GET", HERE)).body == CONTENT
    assert readings.pieces == pieces_left
    assert not served.actor.sound._left


async def test_a_file_that_is_being_replaced_by_a_push_is_left_to_it(
    client: Client, served: Served, path: Path
) -> None:
    damaged = flip(path)
    async with served.actor.store.keeping(DIGEST):
        assert await client.status_of(HERE) == 404
        assert content_of(path) == damaged


@pytest.mark.parametrize("damage", [flip, None])
async def test_a_file_that_takes_the_place_of_one_that_is_read_stays_and_is_served(
    client: Client, path: Path, readings: Readings, damage: Callable[[Path], object] | None
) -> None:
    restore(path, CONTENT)
    if damage is not None:
        damage(path)
    readings.on_piece = lambda: restore(path, CONTENT)
    with hearing() as heard:
        assert (await client("GET", HERE)).body == CONTENT
    readings.on_piece = lambda: None
    assert (await client("GET", HERE)).body == CONTENT
    assert heard == []


async def test_a_file_that_cannot_be_read_is_told_of_and_stays(
    client: Client, path: Path, readings: Readings
) -> None:
    restore(path, CONTENT)

    def fail() -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    readings.on_piece = fail
    with hearing() as heard:
        assert await client.status_of(HERE, "HEAD") == 404
    assert [item["message"] for item in heard] == ["registry.blob_unreadable"]
    readings.on_piece = lambda: None
    assert (await client("GET", HERE)).body == CONTENT


async def test_a_file_that_is_written_to_meanwhile_is_not_believed(
    client: Client, path: Path, readings: Readings
) -> None:
    restore(path, CONTENT)
    readings.on_piece = lambda: os.utime(path, ns=(0, readings.pieces))
    with hearing() as heard:
        assert await client.status_of(HERE) == 404
    assert [item["extra"]["why"] for item in heard] == ["somebody writes to it"]
    readings.on_piece = lambda: None
    assert (await client("GET", HERE)).body == CONTENT


async def test_a_link_or_another_owner_meanwhile_changes_no_bytes(
    client: Client, path: Path, readings: Readings
) -> None:
    def change() -> None:
        before = path.stat().st_ctime_ns
        while path.stat().st_ctime_ns == before:  # the clock of a file system is coarse
            path.chmod(0o600)

    restore(path, CONTENT)
    readings.on_piece = change
    with hearing() as heard:
        assert (await client("GET", HERE)).body == CONTENT
    assert heard == []


async def test_a_file_that_is_being_copied_there_is_left_to_grow(
    client: Client, served: Served, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stamps, "YOUNG_SECONDS", 3600.0)
    write(path, CONTENT[: len(CONTENT) // 2])
    with hearing() as heard:
        assert await client.status_of(HERE) == 404
    (told,) = heard
    assert told["message"] == "registry.blob_unreadable"
    assert told["extra"]["why"].endswith("may still be written")
    write(path, CONTENT)
    assert (await client("GET", HERE)).body == CONTENT


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_file_that_may_not_be_opened_is_not_there_until_it_is_pushed(
    client: Client,
    served: Served,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
) -> None:
    async def refuse(_: object) -> None:
        await trio.lowlevel.checkpoint()
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    restore(path, CONTENT)
    with monkeypatch.context() as patch, hearing() as heard:
        patch.setattr(served.actor.store, "open", refuse)
        assert await client.status_of(HERE, method) == 404
    assert [item["message"] for item in heard] == ["registry.blob_unreadable"]
    await client.push_blob(APP, CONTENT)
    assert (await client("GET", HERE)).body == CONTENT


async def test_a_row_with_another_size_is_mended_by_a_push(
    client: Client, served: Served, path: Path
) -> None:
    def damage(connection: sa.Connection) -> None:
        connection.execute(sa.update(blobs).values(size_bytes=1, stamp=None))

    await database_of(served).run(damage)
    assert await client.status_of(HERE) == 404
    await client.push_blob(APP, CONTENT)
    got = await client("GET", HERE)
    assert (got.body, got.headers["content-length"]) == (CONTENT, str(len(CONTENT)))


async def test_a_stamp_noted_for_another_repository_is_asked_for_once(
    client: Client, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    original = units.find_stamp

    def count(connection: sa.Connection, digest: Digest) -> FileStamp | None:
        asked.append(digest)
        return original(connection, digest)

    monkeypatch.setattr(units, "find_stamp", count)
    await client.push_blob(OTHER, CONTENT)
    there = f"/v2/{OTHER}/blobs/{DIGEST}"
    for target in (HERE, there):
        assert await client.status_of(target) == 200
    asked.clear()
    restore(path, CONTENT)
    for target in (there, HERE, HERE, HERE):
        assert await client.status_of(target) == 200
    assert len(asked) == 2


async def test_a_database_that_refuses_the_stamp_holds_up_no_pull(
    client: Client, served: Served, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object) -> None:
        await trio.lowlevel.checkpoint()
        raise ResourceExhausted("the database cannot be written: the disk is full")

    restore(path, CONTENT)
    monkeypatch.setattr(served.handle, "note_stamp", refuse)
    with hearing("WARNING") as heard:
        assert (await client("GET", HERE)).body == CONTENT
    assert [item["message"] for item in heard] == ["registry.stamp_not_stored"]


async def test_a_damaged_file_that_cannot_be_moved_is_not_served_either(
    client: Client, served: Served, path: Path
) -> None:
    damaged = flip(path)
    (served.root / "corrupt").write_bytes(b"not a directory")
    with hearing() as heard:
        assert await client.status_of(HERE) == 404
    assert content_of(path) == damaged
    assert heard[0]["extra"]["not_moved"] == "File exists"


async def test_a_damaged_manifest_is_moved_aside_and_told_of_once(
    tmp_path: Path,
) -> None:
    app = image({"a": b"1"})
    async with open_registry(tmp_path) as served:
        await Client(served.app, api_token()).push(APP, app, "1")
    path = served.actor.store.path(app.digest)
    damaged = flip(path)
    async with open_registry(tmp_path) as served:  # nothing of it is in memory
        client = Client(served.app, api_token())
        with hearing() as heard:
            for _ in range(2):
                got = await client("GET", f"/v2/{APP}/manifests/1")
                assert (got.status, got.code) == (404, "MANIFEST_UNKNOWN")
        (told,) = heard
        assert content_of(told["extra"]["moved_to"]) == damaged
        await client.push(APP, app, "1")
        assert (await client("GET", f"/v2/{APP}/manifests/1")).body == app.manifest


# What an upstream has is fetched again


LAYER = image({"a": b"1"}).blobs[1]
MIRRORED = f"/v2/mirror/{NAME}/acme/app/blobs/{digest_of(LAYER)}"


@pytest.fixture
async def mirrored(tmp_path: Path) -> AsyncIterator[Mirrored]:
    with trio.fail_after(60):
        async with open_mirror(tmp_path) as both:
            both.upstream.add("acme/app", image({"a": b"1"}), "1")
            assert (await both.client("GET", MIRRORED)).body == LAYER
            yield both


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_mirrored_file_with_other_bytes_is_fetched_again(
    mirrored: Mirrored, method: str
) -> None:
    path = mirrored.served.actor.store.path(digest_of(LAYER))
    flip(path)
    assert await mirrored.client.status_of(MIRRORED, method) == 200
    assert content_of(path) == LAYER
    asked = len(mirrored.upstream.seen)
    assert (await mirrored.client("GET", MIRRORED)).body == LAYER
    assert len(mirrored.upstream.seen) == asked


async def test_without_its_upstream_it_is_unavailable_and_later_it_is_there_again(
    mirrored: Mirrored,
) -> None:
    flip(mirrored.served.actor.store.path(digest_of(LAYER)))
    blob = f"/v2/acme/app/blobs/{digest_of(LAYER)}"
    mirrored.upstream.overrides[blob] = answer(503, connection="close")
    got = await mirrored.client("GET", MIRRORED)
    assert (got.status, got.code) == (502, "UNAVAILABLE")
    del mirrored.upstream.overrides[blob]
    mirrored.served.actor.mirror._pauses._pauses.clear()
    assert (await mirrored.client("GET", MIRRORED)).body == LAYER
