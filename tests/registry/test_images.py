"""Whole images: what is listed, what removing and pruning take, and that the bytes are true."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
import trio

from supervisor.actors.images import ImageService
from supervisor.model.build import Status
from supervisor.model.ids import BuildId, Tenant
from supervisor.model.inventory import Pruned, PruneWish, UsageKind
from supervisor.model.oci import RepositoryName, Tag
from supervisor.model.registry import Removal
from supervisor.runtime.clock import wall_clock
from supervisor.runtime.threads import Threads
from supervisor.store.builds import insert_build, update_build
from supervisor.store.registry_images import STEP_ROWS, find_reclaimable
from supervisor.store.registry_tables import blobs, links, repositories
from tests.registry.client import Client
from tests.registry.images import Image, artifact, digest_of, image, index
from tests.registry.serve import Served, admin_token, database_of, open_registry
from tests.samples import a_build, build_id

HOUR = 3600.0
ACME = Tenant("acme")
APP = RepositoryName("acme/app")


class World:
    """A registry, and the service about its images."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self.client = Client(served.app, admin_token())
        self.data_dir = served.root.parent
        self.images = ImageService(
            served.actor,
            database_of(served),
            Threads(),
            self.source_path,
            data_dir=self.data_dir,
            images_dir=self.data_dir / "images",
        )

    def source_path(self, build_id: BuildId) -> Path:
        return self.data_dir / "builds" / build_id / "source" / "source.tar.gz"

    async def push(self, repository: str, pushed: Image, tag: str = "") -> Image:
        await self.client.push(repository, pushed, tag)
        return pushed

    async def add_build(self, number: int, status: Status = Status.READY) -> BuildId:
        completed_at = wall_clock() if status.is_final else None
        build = a_build(number, status=status, completed_at=completed_at)
        await database_of(self.served).run(insert_build, build)
        return build.id

    async def names(self, tenant: Tenant | None = None) -> list[tuple[str, tuple[str, ...]]]:
        found = await self.images.list(tenant, repository=None, after=("", ""), limit=100)
        return [(image.repository, image.tags) for image in found]

    def bytes_on_disk(self) -> int:
        blobs = self.served.root / "blobs"
        return sum(path.stat().st_size for path in blobs.rglob("*") if path.is_file())

    async def prune(self, **wish: object) -> Pruned:
        """Prune whatever its age; check that what was promised and reported is what went."""
        wanted = replace(PruneWish(before=wall_clock() + HOUR), **wish)  # type: ignore[arg-type]
        promised = await self.images.prune(wanted, is_dry=True)
        before = self.bytes_on_disk()
        done = await self.images.prune(wanted)
        assert before - self.bytes_on_disk() == done.freed_bytes
        assert done == promised
        return done


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    with trio.fail_after(60):
        async with open_registry(tmp_path / "data") as served:
            yield World(served)


def size_of(pushed: Image) -> int:
    contents = {pushed.manifest, *pushed.blobs}
    for child in pushed.children:
        contents |= {child.manifest, *child.blobs}
    return sum(map(len, contents))


async def test_an_image_is_listed_with_its_tags_and_all_of_its_bytes(world: World) -> None:
    small = await world.push("acme/app", image({"a": b"1"}), "1")
    await world.client.push_manifest("acme/app", small, "latest")
    shared = image({"a": b"same"})
    both = index({"amd64": shared, "arm64": image({"a": b"same"}, architecture="arm64")})
    await world.push("acme/both", both, "1")
    listed = await world.images.list(None, repository=None, after=("", ""), limit=100)
    assert [(found.repository, found.tags, found.size_bytes) for found in listed] == [
        ("acme/app", ("1", "latest"), size_of(small)),
        ("acme/both", ("1",), size_of(both)),
    ]
    assert await world.images.get(ACME, APP, Tag("latest")) == listed[0]
    assert await world.images.get(ACME, APP, small.digest) == listed[0]


async def test_caches_and_signatures_are_no_images(world: World) -> None:
    app = await world.push("acme/app", image({"a": b"1"}), "1")
    await world.push("acme/app", artifact(b"signed", "application/x-signature", app))
    await world.push("cache/acme/main", image({"c": b"1"}), "latest")
    assert await world.names() == [("acme/app", ("1",))]
    assert await world.images.get(None, RepositoryName("cache/acme/main"), Tag("latest")) is None


async def test_a_tenant_has_what_is_below_its_name_and_what_its_builds_made(world: World) -> None:
    mine, lost = await world.add_build(1), build_id(3)
    for repository in (
        "acme/app", "acme-2/app", "rival/app", f"builds/{mine}", f"builds/{lost}", "base/busybox",
    ):  # fmt: skip
        await world.push(repository, image({"a": repository.encode()}), "latest")
    assert [name for name, _ in await world.names(ACME)] == ["acme/app", f"builds/{mine}"]
    assert len(await world.names()) == 6
    latest = Tag("latest")
    for foreign in ("rival/app", f"builds/{lost}", "base/busybox", "acme-2/app"):
        assert await world.images.get(ACME, RepositoryName(foreign), latest) is None
    assert await world.images.get(ACME, RepositoryName(f"builds/{mine}"), latest) is not None


async def test_pages_leave_nothing_out(world: World) -> None:
    for number in range(5):
        await world.push("acme/app", image({"a": b"%d" % number}), f"v{number}")
    await world.push("acme/other", image({"a": b"x"}), "1")
    found, after = [], ("", "")
    while page := await world.images.list(None, repository=None, after=after, limit=2):
        found += page
        after = (page[-1].repository, page[-1].digest)
    assert len({(item.repository, item.digest) for item in found}) == len(found) == 6


async def test_the_documents_are_what_was_pushed(world: World) -> None:
    app = await world.push("acme/app", image({"a": b"1"}), "1")
    found = await world.images.get(None, APP, app.digest)
    assert found is not None
    documents = await world.images.documents(found)
    assert (documents.manifest, documents.config) == (app.manifest, app.blobs[0])


async def test_an_index_for_one_platform_has_its_configuration(world: World) -> None:
    app, other = image({"a": b"1"}), image({"a": b"1"}, architecture="arm64")
    one, two = index({"amd64": app}), index({"amd64": app, "arm64": other})
    for several, config in ((one, app.blobs[0]), (two, None)):
        await world.push("acme/several", several, "1")
        found = await world.images.get(None, RepositoryName("acme/several"), several.digest)
        assert found is not None
        assert (await world.images.documents(found)).config == config


async def test_an_image_goes_with_its_last_tag(world: World) -> None:
    app = await world.push("acme/app", image({"a": b"1"}), "1")
    await world.client.push_manifest("acme/app", app, "2")
    assert await world.images.remove(APP, Tag("1")) is Removal.DONE
    assert await world.images.remove(APP, Tag("1")) is Removal.NOT_FOUND
    assert await world.names() == [("acme/app", ("2",))]
    assert await world.images.remove(APP, Tag("2")) is Removal.DONE
    assert await world.names() == []
    freed = await world.prune()
    assert (freed.blobs, freed.freed_bytes) == (3, size_of(app))
    assert world.bytes_on_disk() == 0


async def test_what_an_index_is_made_of_goes_with_it_only(world: World) -> None:
    child = image({"a": b"1"})
    await world.push("acme/app", index({"amd64": child}), "1")
    assert await world.images.remove(APP, child.digest) is Removal.IN_USE
    await world.client.push_manifest("acme/app", child, "child")
    assert await world.images.remove(APP, Tag("child")) is Removal.DONE
    assert await world.served.handle.holds_image("acme/app", child.digest)
    await world.images.remove(APP, Tag("1"))
    assert (await world.prune()).manifests == 1  # the child, which nothing leads to any more
    assert world.bytes_on_disk() == 0


async def test_what_images_share_stays_until_the_last_of_them_goes(world: World) -> None:
    layer = {"a": b"shared"}
    await world.push("acme/app", image(layer, {"b": b"1"}), "1")
    await world.push("rival/app", image(layer, {"b": b"2"}), "1")
    await world.images.remove(APP, Tag("1"))
    await world.prune()
    (left,) = await world.images.list(None, repository=None, after=("", ""), limit=9)
    assert world.bytes_on_disk() == left.size_bytes
    assert await world.served.handle.holds_image("rival/app", left.digest)


async def test_pruning_leaves_everything_that_has_a_name(world: World) -> None:
    known = await world.add_build(1)
    for repository in ("acme/app", "cache/acme/main", f"builds/{known}", "base/b", "mirror/m/a"):
        await world.push(repository, image({"a": repository.encode()}), "latest")
    await world.push("base/b", image({"a": b"by digest only"}))
    await world.push("mirror/m/a", image({"a": b"by digest only"}))
    before = world.bytes_on_disk()
    assert await world.prune() == Pruned()
    assert world.bytes_on_disk() == before


async def test_pruning_takes_what_is_young_only_if_wished(world: World) -> None:
    await world.push("acme/app", image({"a": b"1"}))
    await world.client.push_blob("acme/app", b"a layer whose manifest is yet to come")
    wish = PruneWish(before=wall_clock() - HOUR)
    assert await world.images.prune(wish) == Pruned()
    assert (await world.prune()).manifests == 1
    assert world.bytes_on_disk() == 0


async def test_what_a_push_was_just_told_is_there_stays(tmp_path: Path) -> None:
    ahead = 0.0
    with trio.fail_after(60):
        async with open_registry(tmp_path / "data", clock=lambda: wall_clock() + ahead) as served:
            world, app = World(served), image({"a": b"1"})
            for content in app.blobs:
                await world.client.push_blob("acme/app", content)
            ahead = 0.9 * HOUR
            for content in app.blobs:
                target = f"/v2/acme/app/blobs/{digest_of(content)}"
                assert await world.client.status_of(target, "HEAD") == 200
            ahead = 1.1 * HOUR
            assert await world.images.prune(PruneWish(before=wall_clock() + 0.1 * HOUR)) == Pruned()
            assert (await world.client.push_manifest("acme/app", app, "1")).status == 201


async def test_a_build_that_starts_during_a_prune_keeps_its_cache(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = a_build(1, status=Status.QUEUED)
    build = replace(build, request=replace(build.request, cache_scope="main"))
    await database_of(world.served).run(insert_build, build)
    await world.push("cache/acme/main", image({"a": b"1"}), "latest")
    take_step = world.served.handle.prune

    async def start_and_take_step(
        unit: Callable[[sa.Connection], Sequence[RepositoryName]],
    ) -> Sequence[RepositoryName]:
        started = replace(build, status=Status.BUILDING)
        await database_of(world.served).run(update_build, started)
        return await take_step(unit)

    monkeypatch.setattr(world.served.handle, "prune", start_and_take_step)
    wish = PruneWish(before=wall_clock() + HOUR, caches=True)
    assert await world.images.prune(wish) == Pruned()
    assert await world.served.handle.find_tagged(RepositoryName("cache/acme/main"), Tag("latest"))


async def test_images_of_builds_that_nobody_knows_go(world: World) -> None:
    lost, known = build_id(3), await world.add_build(1)
    await world.push(f"builds/{lost}", image({"a": b"1"}), "latest")
    await world.push(f"builds/{known}", image({"a": b"2"}), "latest")
    assert (await world.prune()).repositories == 1
    assert [name for name, _ in await world.names()] == [f"builds/{known}"]
    assert (await world.client("GET", "/v2/_catalog")).json["repositories"] == [f"builds/{known}"]


async def test_caches_go_if_wished_and_not_those_of_running_builds(world: World) -> None:
    running = a_build(1, status=Status.BUILDING)
    running = replace(running, request=replace(running.request, cache_scope="main"))
    await database_of(world.served).run(insert_build, running)
    await world.push("cache/acme/main", image({"a": b"1"}), "latest")
    await world.push("cache/acme/old", image({"a": b"2"}), "latest")
    await world.client.push_blob(f"builds/{running.id}", b"pushed already")
    assert await world.prune() == Pruned()
    assert (await world.prune(caches=True)).repositories == 1
    assert await world.served.handle.find_tagged(RepositoryName("cache/acme/main"), Tag("latest"))
    digest = digest_of(b"pushed already")
    assert await world.served.handle.find_blob(RepositoryName(f"builds/{running.id}"), digest)


async def test_nothing_is_taken_from_where_an_upload_is_open(world: World) -> None:
    digest = await world.client.push_blob("acme/app", b"first layer")
    assert (await world.client("POST", "/v2/acme/app/blobs/uploads/")).status == 202
    assert await world.prune() == Pruned()
    assert await world.served.handle.find_blob(APP, digest)


async def test_pruning_images_stays_with_the_tenant_and_reports_its_own(world: World) -> None:
    mine = await world.push("acme/app", image({"a": b"1"}))
    await world.push("rival/app", image({"a": b"2"}))
    await world.push(f"builds/{build_id(3)}", image({"a": b"3"}), "latest")
    wish = PruneWish(before=wall_clock() + HOUR, images_only=True, tenant=ACME)
    tried = await world.images.prune(wish, is_dry=True)
    done = await world.images.prune(wish)
    assert tried == done == Pruned(manifests=1, blobs=3, freed_bytes=size_of(mine))
    assert [name for name, _ in await world.names()] == [f"builds/{build_id(3)}", "rival/app"]


async def test_sources_go_if_wished_and_what_retries_share_counts_once(world: World) -> None:
    first, again, running = (
        await world.add_build(1), await world.add_build(2), await world.add_build(3, Status.QUEUED),
    )  # fmt: skip
    for build, content in ((first, b"12345678"), (running, b"123")):
        world.source_path(build).parent.mkdir(parents=True)
        world.source_path(build).write_bytes(content)
    world.source_path(again).parent.mkdir(parents=True)
    os.link(world.source_path(first), world.source_path(again))
    wish = PruneWish(before=wall_clock() + HOUR, sources=True)
    usage = {line.kind: line for line in await world.images.usage(wish)}
    assert usage[UsageKind.SOURCES].count == 2
    tried = await world.images.prune(wish, is_dry=True)
    assert tried == Pruned(sources=2, freed_bytes=8)
    assert await world.images.prune(wish) == tried
    assert not world.source_path(first).exists()
    assert not world.source_path(again).exists()
    assert world.source_path(running).exists()


async def test_usage_adds_up(world: World) -> None:
    app = await world.push("acme/app", image({"a": b"shared"}, {"b": b"1"}), "1")
    cache = await world.push("cache/acme/main", image({"a": b"shared"}), "latest")
    await world.push("acme/app", image({"c": b"dangling"}))
    wish = PruneWish(before=wall_clock() + HOUR)
    usage = {line.kind: line for line in await world.images.usage(wish)}
    assert usage[UsageKind.REGISTRY].size_bytes == world.bytes_on_disk()
    assert usage[UsageKind.IMAGES].count == 2
    assert usage[UsageKind.CACHES].size_bytes == size_of(cache)
    freed = await world.prune()
    assert freed.freed_bytes == usage[UsageKind.REGISTRY].reclaimable_bytes
    with_caches = await world.prune(caches=True)
    assert with_caches.freed_bytes == usage[UsageKind.CACHES].reclaimable_bytes
    assert world.bytes_on_disk() == size_of(app)


async def test_what_is_freed_is_reported_also_while_others_push_and_pull(world: World) -> None:
    for number in range(5):
        await world.push("acme/app", image({"a": b"dangling %d" % number}))
    kept = await world.push("acme/app", image({"k": b"kept"}), "kept")
    before = world.bytes_on_disk()
    pushed = [image({"n": b"new %d" % number}) for number in range(5)]

    async def push_and_pull() -> None:
        for number, new in enumerate(pushed):
            await world.push("acme/new", new, f"v{number}")
            got = await world.client("GET", f"/v2/acme/app/blobs/{digest_of(kept.blobs[0])}")
            assert got.status == 200

    done = Pruned()
    wish = PruneWish(before=wall_clock())  # what is pushed from now on is not reclaimable
    async with trio.open_nursery() as nursery:
        nursery.start_soon(push_and_pull)
        done = await world.images.prune(wish)
    assert done.manifests == 5
    assert before + sum(map(size_of, pushed)) - world.bytes_on_disk() == done.freed_bytes
    assert {name for name, tags in await world.names() if tags} == {"acme/app", "acme/new"}
    assert len(await world.names()) == 1 + len(pushed)


async def test_looking_for_what_could_go_is_as_many_queries_for_much_as_for_little(
    world: World,
) -> None:
    counts = []
    for number in (1, 3 * STEP_ROWS):
        await database_of(world.served).run(add_unused_links, number)
        counts.append(await database_of(world.served).run(count_queries))
    assert counts[0] == counts[1]


def add_unused_links(connection: sa.Connection, number: int) -> None:
    digests = [digest_of(b"unused %d of %d" % (each, number)) for each in range(number)]
    rows = [{"repository": "acme/app", "digest": digest} for digest in digests]
    connection.execute(
        sa.insert(repositories).prefix_with("OR IGNORE"), {"name": "acme/app", "created_at": 0}
    )
    connection.execute(
        sa.insert(blobs), [{"digest": digest, "size_bytes": 1} for digest in digests]
    )
    connection.execute(sa.insert(links), [{**row, "used_at": 0} for row in rows])


def count_queries(connection: sa.Connection) -> int:
    """Return how many queries it takes to find what could go."""
    counted = 0

    def count(*_: object) -> None:
        nonlocal counted
        counted += 1

    sa.event.listen(connection, "before_cursor_execute", count)
    found = find_reclaimable(connection, PruneWish(before=wall_clock()))
    sa.event.remove(connection, "before_cursor_execute", count)
    assert found.blobs == found.freed_bytes
    return counted
