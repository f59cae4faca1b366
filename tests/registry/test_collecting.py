"""Garbage collection, alone and while pushes run."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from supervisor.actors.registry_handle import Collected, CollectionPolicy
from supervisor.model.oci import RepositoryName
from supervisor.runtime.clock import wall_clock
from tests.registry.client import Client
from tests.registry.images import Image, digest_of, image, index
from tests.registry.policies import AT_ONCE
from tests.registry.serve import Served, admin_token, api_token, open_registry

HOUR = 3600.0


class ManualClock:
    """A wall clock that the test moves."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return wall_clock() + self.ahead


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def served(tmp_path: Path, clock: ManualClock) -> AsyncIterator[Served]:
    """A registry with the policy of production and a clock to move."""
    with trio.fail_after(120):
        async with open_registry(tmp_path / "data", clock=clock) as registry:
            yield registry


@pytest.fixture
def client(served: Served) -> Client:
    return Client(served.app, api_token(lifetime_seconds=1000 * HOUR))


async def files(served: Served) -> set[str]:
    return set(await served.actor.store.stored())


async def test_what_a_tag_leads_to_stays(
    served: Served, client: Client, clock: ManualClock
) -> None:
    app = index({"amd64": image({"a": b"1"}), "arm64": image({"a": b"2"}, architecture="arm64")})
    await client.push("acme/app", app, "1")
    before = await files(served)
    clock.ahead = 100 * HOUR
    assert await served.handle.collect() == Collected()
    assert await files(served) == before
    assert await served.handle.holds_image("acme/app", app.digest)


async def test_a_blob_without_a_manifest_goes_after_a_day(
    served: Served, client: Client, clock: ManualClock
) -> None:
    digest = await client.push_blob("acme/app", b"layer")
    clock.ahead = 23 * HOUR
    await served.handle.collect()
    assert await files(served) == {digest}
    clock.ahead = 25 * HOUR
    assert await served.handle.collect() == Collected(links=1, blobs=1)
    assert await files(served) == set()
    assert await client.status_of(f"/v2/acme/app/blobs/{digest}") == 404


async def test_a_blob_that_a_client_asked_for_stays_another_day(
    served: Served, client: Client, clock: ManualClock
) -> None:
    """A client that finds its layer there does not send it: it must still be there for the push."""
    app = image({"a": b"1"})
    for content in app.blobs:
        await client.push_blob("acme/app", content)
    clock.ahead = 23 * HOUR
    for content in app.blobs:
        target = f"/v2/acme/app/blobs/{digest_of(content)}"
        assert await client.status_of(target, "HEAD") == 200
    clock.ahead = 46 * HOUR
    await served.handle.collect()
    assert (await client.push_manifest("acme/app", app, "1")).status == 201


async def test_a_blob_of_two_repositories_stays_until_both_let_go(
    served: Served, client: Client, clock: ManualClock
) -> None:
    digest = await client.push_blob("acme/app", b"layer")
    await client("POST", f"/v2/acme/web/blobs/uploads/?mount={digest}&from=acme/app")
    await client("DELETE", f"/v2/acme/app/blobs/{digest}")
    await served.handle.collect()
    assert await files(served) == {digest}
    assert await client.status_of(f"/v2/acme/web/blobs/{digest}") == 200
    await client("DELETE", f"/v2/acme/web/blobs/{digest}")
    assert await served.handle.collect() == Collected(blobs=1)
    assert await files(served) == set()


async def test_a_removed_repository_leaves_nothing(served: Served, client: Client) -> None:
    app = image({"a": b"1"})
    await client.push("acme/app", app, "1")
    await client.begin("acme/app")
    assert await served.handle.delete_repository(RepositoryName("acme/app"))
    assert not await served.handle.delete_repository(RepositoryName("acme/app"))
    assert await client.status_of("/v2/acme/app/manifests/1") == 404
    assert await client.status_of("/v2/acme/app/tags/list") == 404
    await served.handle.collect()
    assert await files(served) == set()


async def test_an_upload_is_abandoned_after_a_day_without_progress(
    served: Served, client: Client, clock: ManualClock
) -> None:
    idle, busy = await client.begin("acme/app"), await client.begin("acme/app")
    for location in (idle, busy):
        await client("PATCH", location, b"x")
    clock.ahead = 25 * HOUR
    path = served.root / "uploads" / busy.rpartition("/")[2]
    os.utime(path, (clock(), clock()))
    assert (await served.handle.collect()).uploads == 1
    assert await client.status_of(idle) == 404
    assert await client.status_of(busy) == 204
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


async def test_an_upload_that_receives_is_not_abandoned(
    served: Served, client: Client, clock: ManualClock
) -> None:
    location = await client.begin("acme/app")
    stalled = trio.Event()

    async def receive_slowly() -> None:
        await client("PATCH", location, b"x" * 10, stalled=stalled)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive_slowly)
        await stalled.wait()
        clock.ahead = 25 * HOUR
        assert (await served.handle.collect()).uploads == 0
        assert await client.status_of(location) == 204
        nursery.cancel_scope.cancel(reason="seen enough")


async def test_strays_of_a_crash_go(served: Served, clock: ManualClock) -> None:
    content = b"renamed, and then the power went"
    (served.root / "uploads" / ("0" * 32)).write_bytes(content)
    served.actor.store.path(digest_of(content)).write_bytes(content)
    clock.ahead = 2 * HOUR
    assert await served.handle.collect() == Collected(uploads=1, blobs=1)
    assert await files(served) == set()
    assert list((served.root / "uploads").iterdir()) == []


async def test_exports_that_were_replaced_go_from_caches_only(
    served: Served, clock: ManualClock
) -> None:
    admin = Client(served.app, admin_token())
    first, second = image({"a": b"1"}), image({"a": b"2"})
    for repository in ("cache/acme/web", "acme/app"):
        await admin.push(repository, first, "latest")
        await admin.push(repository, second, "latest")
    clock.ahead = 25 * HOUR
    admin = Client(served.app, admin_token())
    collected = await served.handle.collect()
    assert collected.manifests == 1
    assert not await served.handle.holds_image("cache/acme/web", first.digest)
    assert await served.handle.holds_image("cache/acme/web", second.digest)
    assert await served.handle.holds_image("acme/app", first.digest)


def unique(number: int) -> Image:
    shared = {"shared": b"s" * 50_000}
    return image({"own": b"%d" % number}, shared)


async def test_no_push_fails_while_collections_run(tmp_path: Path) -> None:
    """Pushes of images that share a layer, deletions and collections, all at once."""
    policy = CollectionPolicy(interval_seconds=1e9, batch=3)
    async with open_registry(tmp_path / "data", policy=policy) as served:
        client = Client(served.app, api_token())

        async def push_and_delete(worker: int) -> None:
            for number in range(8):
                app = unique(worker * 100 + number)
                repository = f"acme/app{number % 3}"
                await client.push(repository, app, f"{worker}")
                assert await served.handle.holds_image(repository, app.digest)
                target = f"/v2/{repository}/manifests/{app.digest}"
                assert await client.status_of(target, "DELETE") == 202

        await run_with_collections(served, push_and_delete)


async def test_garbage_at_once_never_costs_what_was_taken(tmp_path: Path) -> None:
    """The worst case: everything unreferenced is garbage the moment it is there.

    Then a push may be told that its layers are gone, and sends them again. But whatever was
    answered 201 is whole, until it is deleted; and nothing ever fails otherwise.
    """
    async with open_registry(tmp_path / "data", policy=AT_ONCE) as served:
        client = Client(served.app, api_token())

        async def push_and_delete(worker: int) -> None:
            for number in range(6):
                app = unique(number)  # the same images in all workers
                repository = f"acme/app{worker}"
                await push_stubbornly(client, repository, app)
                for content in (app.manifest, *app.blobs):
                    assert served.actor.store.path(digest_of(content)).read_bytes() == content
                assert await served.handle.holds_image(repository, app.digest)
                target = f"/v2/{repository}/manifests/{app.digest}"
                assert await client.status_of(target, "DELETE") == 202

        await run_with_collections(served, push_and_delete)
        await served.handle.collect()
        assert await files(served) == set()
        assert list((served.root / "uploads").iterdir()) == []


async def push_stubbornly(client: Client, repository: str, app: Image) -> None:
    while True:
        for content in app.blobs:
            await client.push_blob(repository, content)
        answer = await client.push_manifest(repository, app, "latest")
        if answer.status == 201:
            return
        assert answer.code == "MANIFEST_BLOB_UNKNOWN"


async def run_with_collections(served: Served, work: object) -> None:
    begun = 0

    async def collect_always() -> None:
        nonlocal begun
        while True:
            begun += 1
            await served.handle.collect()

    with trio.fail_after(120):
        async with trio.open_nursery() as outer:
            outer.start_soon(collect_always)
            async with trio.open_nursery() as workers:
                for worker in range(4):
                    workers.start_soon(work, worker)  # type: ignore[arg-type]
            outer.cancel_scope.cancel(reason="all is pushed")
    assert begun > 1, "one went on from its beginning to its end meanwhile"


async def test_a_policy_runs_by_itself(tmp_path: Path) -> None:
    policy = replace(AT_ONCE, interval_seconds=0.01)
    async with open_registry(tmp_path / "data", policy=policy) as served:
        client = Client(served.app, api_token())
        digest = await client.push_blob("acme/app", b"layer")
        with trio.fail_after(30):
            while digest in await files(served):
                await trio.lowlevel.checkpoint()
