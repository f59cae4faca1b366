"""RegistryActor: order, failures, restarts, cancellation; and what its cache may never do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
import trio

from supervisor.actors.registry import RegistryActor
from supervisor.actors.registry_cache import FactCache
from supervisor.errors import HostError
from supervisor.model.oci import Digest, RepositoryName, Tag
from supervisor.model.registry import BlobInfo, ManifestInfo
from supervisor.registry.layout import LayoutError
from supervisor.registry.media import parse_manifest
from supervisor.runtime.mailbox import ActorGone
from supervisor.runtime.supervise import RestartPolicy, supervise
from supervisor.runtime.threads import Threads
from supervisor.store import registry as units
from supervisor.store.database import open_database
from tests.kit import cancel_at_every_checkpoint
from tests.registry.client import Client
from tests.registry.images import digest_of, image, index, write_layout
from tests.registry.policies import AT_ONCE
from tests.registry.serve import Served, api_token, database_of, open_registry

APP = RepositoryName("acme/app")
POLICY = RestartPolicy(intensity=3, period_seconds=60, delay_seconds=0)


@asynccontextmanager
async def supervised(directory: Path) -> AsyncIterator[RegistryActor]:
    with trio.fail_after(60):
        async with open_database(directory / "hypeman.db") as database:
            actor = RegistryActor(database, directory / "registry", Threads(), lambda: 1000.0)
            async with trio.open_nursery() as nursery:

                async def run(task_status: trio.TaskStatus[None]) -> None:
                    await supervise("registry", actor.run, policy=POLICY, task_status=task_status)

                await nursery.start(run)
                yield actor
                nursery.cancel_scope.cancel(reason="the test is over")
            actor.close()


async def store_image(actor: RegistryActor, repository: RepositoryName, tag: str) -> Digest:
    """Put the image without its HTTP."""
    app = image({"a": tag.encode()})
    for content in app.blobs:
        digest = digest_of(content)
        async with actor.store.keeping(digest):
            await actor.store.put(digest, content)
            upload = actor.uploads.create(repository)
            await actor.handle.link_blob(repository, BlobInfo(digest, len(content)), upload.id)
    manifest = parse_manifest(app.manifest, None, app.digest)
    async with actor.store.keeping(app.digest):
        await actor.store.put(app.digest, app.manifest)
        assert await actor.handle.put_manifest(repository, manifest, [Tag(tag)]) is None
    return app.digest


async def test_a_crash_fails_the_asker_and_the_next_one_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(*_: object) -> None:
        raise AssertionError("a bug")

    async with supervised(tmp_path) as actor:
        digest = await store_image(actor, APP, "1")
        assert await actor.handle.find_tagged(APP, Tag("1")) is not None
        with monkeypatch.context() as patch:
            patch.setattr(units, "delete_tag", explode)
            with pytest.raises(ActorGone):
                await actor.handle.delete_tag(APP, Tag("1"))
        assert await actor.handle.holds_image(APP, digest)
        await actor.handle.delete_tag(APP, Tag("1"))
        assert await actor.handle.find_tagged(APP, Tag("1")) is None


async def test_a_change_asked_for_during_the_restart_is_made_after_it(tmp_path: Path) -> None:
    async with open_database(tmp_path / "hypeman.db") as database:
        actor = RegistryActor(database, tmp_path / "registry", Threads(), lambda: 1000.0)
        started = []
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                started.append(await actor.handle.start_upload(APP))

            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            async with trio.open_nursery() as running:
                await running.start(lambda task_status: actor.run(task_status=task_status))
                with trio.fail_after(30):
                    while not started:
                        await trio.lowlevel.checkpoint()
                running.cancel_scope.cancel(reason="the test is over")
        assert started[0] is not None


async def test_a_closed_actor_answers_nobody(tmp_path: Path) -> None:
    async with supervised(tmp_path) as actor:
        pass
    with pytest.raises(ActorGone):
        await actor.handle.start_upload(APP)


async def test_a_host_error_reaches_the_asker_and_costs_no_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise HostError("the disk is full")

    async with supervised(tmp_path) as actor:
        with monkeypatch.context() as patch:
            patch.setattr(units, "delete_tag", fail)
            for _ in range(POLICY.intensity + 2):
                with pytest.raises(HostError):
                    await actor.handle.delete_tag(APP, Tag("1"))
        assert await actor.handle.start_upload(APP) is not None


async def test_uploads_into_one_repository_are_limited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("supervisor.actors.registry_handle.MOST_UPLOADS_PER_REPOSITORY", 2)
    async with open_registry(tmp_path) as served:
        client = Client(served.app, api_token())
        for _ in range(2):
            await client.begin("acme/app")
        answer = await client("POST", "/v2/acme/app/blobs/uploads/")
        assert (answer.status, answer.code) == (429, "TOOMANYREQUESTS")
        await client.begin("acme/other")


# What builds and the start-up ask for


async def test_an_image_is_held_only_whole(tmp_path: Path) -> None:
    async with open_registry(tmp_path) as served:
        client = Client(served.app, api_token())
        both = index({"amd64": image({"a": b"1"}), "arm64": image({"a": b"2"})})
        await client.push("acme/app", both, "1")
        holds = served.handle.holds_image
        assert await holds("acme/app", both.digest)
        assert not await holds("acme/other", both.digest)
        assert not await holds("acme/app", digest_of(b"x"))
        assert not await holds("acme/app", "sha256:../../x")
        assert not await holds("../x", both.digest)
        # A row that is missing, as no request can make it, is noticed at any depth.
        layer = digest_of(both.children[1].blobs[1])
        await unlink_by_force(served, layer)
        assert not await holds("acme/app", both.digest)
        assert not await holds("acme/app", both.children[1].digest)
        assert await holds("acme/app", both.children[0].digest)


async def unlink_by_force(served: Served, digest: Digest) -> None:
    def unit(connection: sa.Connection) -> None:
        connection.execute(
            sa.text("DELETE FROM registry_links WHERE digest = :digest"), {"digest": digest}
        )

    await database_of(served).run(unit)


async def test_an_image_gets_another_name(tmp_path: Path) -> None:
    async with open_registry(tmp_path) as served:
        client = Client(served.app, api_token())
        both = index({"amd64": image({"a": b"1"}), "arm64": image({"a": b"2"})})
        await client.push("acme/source", both)
        for _ in range(2):
            await served.handle.tag("acme/app", "v1", both.digest, source="acme/source")
        await served.handle.delete_repository(RepositoryName("acme/source"))
        await served.handle.collect()
        assert await served.handle.holds_image("acme/app", both.digest)
        answer = await client("GET", "/v2/acme/app/manifests/v1")
        assert answer.body == both.manifest
        for child in both.children:
            for content in child.blobs:
                answer = await client("GET", f"/v2/acme/app/blobs/{digest_of(content)}")
                assert answer.body == content


@pytest.mark.parametrize(
    ("repository", "tag", "digest"),
    [
        ("acme/app", "v1", digest_of(b"unknown")),
        ("acme/app", "v1", "nonsense"),
        ("../app", "v1", digest_of(b"x")),
        ("acme/app", "not a tag", digest_of(b"x")),
    ],
)
async def test_what_cannot_be_named_is_an_error(
    tmp_path: Path, repository: str, tag: str, digest: str
) -> None:
    async with open_registry(tmp_path) as served:
        with pytest.raises(HostError):
            await served.handle.tag(repository, tag, digest, source="acme/source")


async def test_a_layout_is_imported_once(tmp_path: Path) -> None:
    single, both = image({"a": b"1"}), index({"amd64": image({"a": b"2"})})
    layout = write_layout(
        tmp_path / "layout",
        {"base/single:1": single, "base/both:latest": both, "unnamed": image({"a": b"3"})},
    )
    async with open_registry(tmp_path / "data") as served:
        for _ in range(2):
            names = await served.handle.import_layout(layout)
            assert names == ["base/single:1", "base/both:latest"]
        client = Client(served.app, api_token())
        for repository, tag, item in (("single", "1", single), ("both", "latest", both)):
            answer = await client("GET", f"/v2/base/{repository}/manifests/{tag}")
            assert answer.body == item.manifest
            assert await served.handle.holds_image(f"base/{repository}", item.digest)
        stamp = {path: path.stat().st_mtime_ns for path in (served.root / "blobs").rglob("*")}
        await served.handle.import_layout(layout)
        assert stamp == {
            path: path.stat().st_mtime_ns for path in (served.root / "blobs").rglob("*")
        }


async def test_what_is_gone_of_a_layout_is_imported_again(tmp_path: Path) -> None:
    both = index({"amd64": image({"a": b"1"})})
    (child,) = both.children
    layout = write_layout(tmp_path / "layout", {"base/app:1": both})
    for content in (both.manifest, child.manifest, *child.blobs):
        async with open_registry(tmp_path / "data") as served:  # nothing of it is in memory
            path = served.actor.store.path(digest_of(content))
            path.unlink(missing_ok=True)
            await served.handle.import_layout(layout)
            assert path.read_bytes() == content


async def test_a_tag_follows_a_layout_that_changed(tmp_path: Path) -> None:
    first, second = image({"a": b"1"}), image({"a": b"2"})
    write_layout(tmp_path / "one", {"base/app:1": first})
    write_layout(tmp_path / "two", {"base/app:1": second})
    async with open_registry(tmp_path / "data") as served:
        for name, item in (("one", first), ("two", second), ("one", first)):
            await served.handle.import_layout(tmp_path / name)
            tagged = await served.handle.find_tagged(RepositoryName("base/app"), Tag("1"))
            assert tagged is not None
            assert tagged.digest == item.digest


async def test_a_broken_layout_is_named(tmp_path: Path) -> None:
    app = image({"a": b"1"})
    layout = write_layout(tmp_path / "layout", {"base/app:1": app})
    blob = layout / "blobs" / "sha256" / digest_of(app.blobs[1]).partition(":")[2]
    async with open_registry(tmp_path / "data") as served:
        with pytest.raises(LayoutError, match=r"index\.json"):
            await served.handle.import_layout(tmp_path)
        blob.write_bytes(b"something else")
        with pytest.raises(LayoutError, match="other content"):
            await served.handle.import_layout(layout)
        blob.unlink()
        with pytest.raises(LayoutError, match="cannot be read"):
            await served.handle.import_layout(layout)
        assert not await served.handle.holds_image("base/app", app.digest)
        assert list((served.root / "uploads").iterdir()) == []


# Cancellation


async def test_cancelling_a_push_at_any_point_leaves_no_garbage(tmp_path: Path) -> None:
    content = b"x" * 200_000
    async with open_registry(tmp_path, policy=AT_ONCE) as served:
        client = Client(served.app, api_token())

        async def push() -> None:
            location = await client.begin("acme/app")
            await client("PATCH", location, content[:100_000])
            answer = await client(
                "PUT", f"{location}?digest={digest_of(content)}", content[100_000:]
            )
            assert answer.status == 201

        async def check(_: int) -> None:
            stored = await served.actor.store.stored()
            assert set(stored) <= {digest_of(content)}
            for digest in stored:
                assert served.actor.store.path(digest).read_bytes() == content
            await served.handle.collect()
            assert await served.actor.store.stored() == []
            assert list((served.root / "uploads").iterdir()) == []

        assert await cancel_at_every_checkpoint(push, check) > 20


async def test_cancelling_a_manifest_put_at_any_point_leaves_all_or_nothing(
    tmp_path: Path,
) -> None:
    app = image({"a": b"1"})
    async with open_registry(tmp_path) as served:
        client = Client(served.app, api_token())
        for content in app.blobs:
            await client.push_blob("acme/app", content)

        async def put() -> None:
            assert (await client.push_manifest("acme/app", app, "1")).status == 201

        async def check(_: int) -> None:
            answer = await client("GET", "/v2/acme/app/manifests/1")
            if answer.status == 200:
                assert answer.body == app.manifest
                await client("DELETE", f"/v2/acme/app/manifests/{app.digest}")
            else:
                assert answer.status == 404
            await served.handle.collect()
            assert len(await served.actor.store.stored()) == len(app.blobs)

        assert await cancel_at_every_checkpoint(put, check) > 5


# The cache


def info(text: str) -> ManifestInfo:
    return ManifestInfo(digest_of(text.encode()), "x", 1)


def test_a_change_forgets_the_repository_and_no_other() -> None:
    cache = FactCache()
    for name in ("a", "b"):
        with cache.reading(RepositoryName(name)) as reading:
            reading.keep("tag", info(name))
    cache.drop(RepositoryName("a"))
    assert cache.get(RepositoryName("a"), "tag") is None
    assert cache.get(RepositoryName("b"), "tag") == info("b")


def test_what_was_read_before_a_change_is_not_kept_after_it() -> None:
    cache = FactCache()
    with cache.reading(APP) as reading:
        cache.drop(APP)
        reading.keep("tag", info("old"))
    assert cache.get(APP, "tag") is None
    assert cache.readings == {}


def test_clearing_outdates_what_is_being_read() -> None:
    cache = FactCache()
    with cache.reading(APP) as reading:
        cache.clear()
        reading.keep("tag", info("old"))
    assert cache.get(APP, "tag") is None


def test_the_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("supervisor.actors.registry_cache._MOST_ENTRIES", 10)
    monkeypatch.setattr("supervisor.actors.registry_cache._MOST_IN_ONE", 4)
    cache = FactCache()
    for repository in range(20):
        for key in range(9):
            cache.store(RepositoryName(f"r{repository}"), key, info("x"))
    kept = sum(
        cache.get(RepositoryName(f"r{repository}"), key) is not None
        for repository in range(20)
        for key in range(9)
    )
    assert 0 < kept <= 10
