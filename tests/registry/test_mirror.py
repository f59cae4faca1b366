"""The mirror: what it fetches, keeps, confirms and shares; and without its upstream."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from supervisor.model.oci import RepositoryName, Tag
from supervisor.registry.media import DOCKER_MANIFEST
from supervisor.registry.mirror import Mirror
from supervisor.runtime.logs import log
from tests.kit import cancel_at_every_checkpoint
from tests.registry.client import Client
from tests.registry.images import Image, digest_of, image, index
from tests.registry.mirroring import NAME, TTL, Mirrored, open_mirror
from tests.registry.policies import AT_ONCE
from tests.registry.serve import admin_token
from tests.registry.upstream import Answer, Seen, answer

DAY = 24 * 3600.0
APP = image({"a": b"1"}, {"b": b"2"})
NEWER = image({"a": b"3"})
BOTH = index({"amd64": APP, "arm64": NEWER})
HERE = f"/v2/mirror/{NAME}/acme/app"
THERE = "/v2/acme/app"


@pytest.fixture
async def mirrored(tmp_path: Path) -> AsyncIterator[Mirrored]:
    with trio.fail_after(60):
        async with open_mirror(tmp_path) as both:
            yield both


def down(mirrored: Mirrored, status: int = 500, **headers: str) -> None:
    """Let every request for the repository be answered so."""
    upstream = mirrored.upstream
    for path in (*upstream.manifests, *upstream.blobs):
        upstream.overrides[path] = answer(status, connection="close", **headers)


async def pull(client: Client, item: Image, reference: str = "", here: str = HERE) -> None:
    """Pull an image with everything, and compare it."""
    got = await client("GET", f"{here}/manifests/{reference or item.digest}")
    assert (got.status, got.body) == (200, item.manifest)
    assert got.headers["content-type"] == item.media_type
    assert got.headers["docker-content-digest"] == item.digest
    for child in item.children:
        await pull(client, child, here=here)
    for content in item.blobs:
        got = await client("GET", f"{here}/blobs/{digest_of(content)}")
        assert (got.status, got.body) == (200, content)


async def test_an_image_is_fetched_once_and_then_served_from_here(mirrored: Mirrored) -> None:
    mirrored.upstream.add("acme/app", BOTH, "1")
    await pull(mirrored.client, BOTH, "1")
    asked = len(mirrored.upstream.seen)
    assert asked == 3 + 5  # an index, two manifests; their configs and layers
    await pull(mirrored.client, BOTH, "1")
    assert len(mirrored.upstream.seen) == asked
    assert await mirrored.served.handle.holds_image(f"mirror/{NAME}/acme/app", BOTH.digest)


async def test_only_the_platform_that_is_asked_for_is_fetched(mirrored: Mirrored) -> None:
    mirrored.upstream.add("acme/app", BOTH, "1")
    assert (await mirrored.client("HEAD", f"{HERE}/manifests/1")).status == 200
    await pull(mirrored.client, APP)
    assert not any(item.path.endswith(NEWER.digest) for item in mirrored.upstream.seen)
    assert not await mirrored.served.handle.holds_image(f"mirror/{NAME}/acme/app", BOTH.digest)


async def test_a_digest_is_served_for_ever_without_asking(mirrored: Mirrored) -> None:
    mirrored.upstream.add("acme/app", APP)
    await pull(mirrored.client, APP)
    down(mirrored)
    asked = len(mirrored.upstream.seen)
    mirrored.clock.ahead = 20 * DAY
    await mirrored.served.handle.collect()
    await pull(mirrored.client, APP)
    assert len(mirrored.upstream.seen) == asked


async def test_a_blob_whose_file_is_damaged_is_fetched_again(mirrored: Mirrored) -> None:
    mirrored.upstream.add("acme/app", APP)
    await pull(mirrored.client, APP)
    path = mirrored.served.actor.store.path(digest_of(APP.blobs[0]))
    path.write_bytes(path.read_bytes()[:-1])
    await pull(mirrored.client, APP)
    assert path.read_bytes() == APP.blobs[0]


DAMAGES = [lambda old: b"x" + old[1:], lambda old: old[:-1], None]


def damage_manifest(mirrored: Mirrored, damage: Callable[[bytes], bytes] | None) -> Path:
    """Damage the file of `APP`'s manifest, None: remove it; as after a restart, no memory of it."""
    store = mirrored.served.actor.store
    path = store.path(APP.digest)
    path.unlink()
    if damage is not None:
        path.write_bytes(damage(APP.manifest))
    store._forget(APP.digest)
    return path


@pytest.mark.parametrize("ahead", [0.0, TTL + 10])
@pytest.mark.parametrize("reference", ["1", APP.digest])
@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_manifest_whose_file_is_damaged_is_fetched_again(
    mirrored: Mirrored, damage: Callable[[bytes], bytes] | None, reference: str, ahead: float
) -> None:
    mirrored.upstream.add("acme/app", APP, "1")
    await pull(mirrored.client, APP, "1")
    path = damage_manifest(mirrored, damage)
    mirrored.clock.ahead = ahead
    await pull(mirrored.client, APP, reference)
    assert path.read_bytes() == APP.manifest
    asked = len(mirrored.upstream.seen)
    await pull(mirrored.client, APP, reference)
    assert len(mirrored.upstream.seen) == asked


async def test_a_damaged_manifest_without_its_upstream_is_unavailable(
    mirrored: Mirrored,
) -> None:
    mirrored.upstream.add("acme/app", APP, "1")
    await pull(mirrored.client, APP, "1")
    damage_manifest(mirrored, None)
    down(mirrored, 502)
    got = await mirrored.client("GET", f"{HERE}/manifests/1")
    assert (got.status, got.code) == (502, "UNAVAILABLE")


async def test_a_damaged_manifest_that_was_pushed_is_not_replaced_by_another_one(
    mirrored: Mirrored,
) -> None:
    operator = Client(mirrored.served.app, admin_token())
    await operator.push(f"mirror/{NAME}/acme/app", APP, "1")
    mirrored.upstream.add("acme/app", NEWER, "1")
    damage_manifest(mirrored, None)
    assert await mirrored.client.status_of(f"{HERE}/manifests/1") == 404
    assert mirrored.upstream.seen == []


async def test_a_tag_is_confirmed_when_it_is_old_and_costs_no_fetch(mirrored: Mirrored) -> None:
    mirrored.upstream.add("acme/app", APP, "1")
    await pull(mirrored.client, APP, "1")
    mirrored.clock.ahead = TTL - 10
    await pull(mirrored.client, APP, "1")
    assert mirrored.upstream.count("HEAD", "/1") == 0
    mirrored.clock.ahead = TTL + 10
    for _ in range(2):
        await pull(mirrored.client, APP, "1")
    assert mirrored.upstream.count("HEAD", "/1") == 1
    assert mirrored.upstream.count("GET", "/1") == 1
    asked = mirrored.upstream.seen[-1]
    assert asked.headers["if-none-match"] == f'"{APP.digest}"'


async def test_not_modified_confirms_too(mirrored: Mirrored) -> None:
    mirrored.upstream.add("acme/app", APP, "1")
    await pull(mirrored.client, APP, "1")
    mirrored.upstream.overrides[f"{THERE}/manifests/1"] = answer(304, connection="close")
    mirrored.clock.ahead = TTL + 10
    for _ in range(2):
        await pull(mirrored.client, APP, "1")
    assert mirrored.upstream.count("HEAD", "/1") == 1


async def test_a_tag_that_moved_is_followed(mirrored: Mirrored) -> None:
    mirrored.upstream.add("acme/app", APP, "1")
    await pull(mirrored.client, APP, "1")
    mirrored.upstream.add("acme/app", NEWER, "1")
    await pull(mirrored.client, APP, "1")
    mirrored.clock.ahead = TTL + 10
    await pull(mirrored.client, NEWER, "1")
    await pull(mirrored.client, APP)


async def test_a_tag_that_is_gone_upstream_is_gone_here(mirrored: Mirrored) -> None:
    mirrored.upstream.add("acme/app", APP, "1")
    await pull(mirrored.client, APP, "1")
    del mirrored.upstream.manifests[f"{THERE}/manifests/1"]
    mirrored.clock.ahead = TTL + 10
    got = await mirrored.client("GET", f"{HERE}/manifests/1")
    assert (got.status, got.code) == (404, "MANIFEST_UNKNOWN")
    mirrored.clock.ahead = 0.0
    assert await mirrored.client.status_of(f"{HERE}/manifests/1") == 404
    await pull(mirrored.client, APP)


@pytest.mark.parametrize("status", [401, 403, 429, 500, 503])
async def test_without_its_upstream_the_old_tag_is_served(mirrored: Mirrored, status: int) -> None:
    mirrored.upstream.add("acme/app", APP, "1")
    await pull(mirrored.client, APP, "1")
    down(mirrored, status)
    mirrored.clock.ahead = TTL + 10
    await pull(mirrored.client, APP, "1")
    assert mirrored.upstream.count("HEAD", "/1") >= 1


async def test_the_log_says_that_an_old_tag_is_served_and_why(mirrored: Mirrored) -> None:
    lines: list[str] = []
    sink = log.add(lines.append, format="{message} {extra}")
    try:
        mirrored.upstream.add("acme/app", APP, "1")
        await pull(mirrored.client, APP, "1")
        down(mirrored, 429, retry_after="1800")
        mirrored.clock.ahead = TTL + 10
        for _ in range(3):
            await pull(mirrored.client, APP, "1")
    finally:
        log.remove(sink)
    (line,) = [line for line in lines if line.startswith("mirror.stale_served")]
    for fact in (NAME, "acme/app", APP.digest, "1800"):
        assert fact in line


async def test_a_rate_limit_is_respected(mirrored: Mirrored) -> None:
    mirrored.upstream.add("acme/app", APP, "1")
    mirrored.upstream.add("acme/other", NEWER, "1")
    await pull(mirrored.client, APP, "1")
    down(mirrored, 429, retry_after="1800")
    mirrored.clock.ahead = TTL + 10
    await pull(mirrored.client, APP, "1")
    asked = len(mirrored.upstream.seen)
    for _ in range(3):
        await pull(mirrored.client, APP, "1")
        got = await mirrored.client("GET", f"/v2/mirror/{NAME}/acme/other/manifests/1")
        assert (got.status, got.code) == (429, "TOOMANYREQUESTS")
        assert 1790 <= int(got.headers["retry-after"]) <= 1800
    assert len(mirrored.upstream.seen) == asked


async def test_trouble_of_one_repository_leaves_the_others_alone(mirrored: Mirrored) -> None:
    mirrored.upstream.add("acme/app", APP, "1")
    down(mirrored, 502)
    for _ in range(3):
        got = await mirrored.client("GET", f"{HERE}/manifests/1")
        assert (got.status, got.code) == (502, "UNAVAILABLE")
    assert mirrored.upstream.count("GET", "/1") == 1
    mirrored.upstream.add("acme/other", NEWER, "1")
    await pull(mirrored.client, NEWER, "1", here=f"/v2/mirror/{NAME}/acme/other")


async def test_an_upstream_that_is_not_there_is_unavailable(mirrored: Mirrored) -> None:
    mirrored.upstream.add("acme/app", APP, "1")
    await pull(mirrored.client, APP, "1")
    await mirrored.upstream.stop()
    got = await mirrored.client("GET", f"{HERE}/manifests/2")
    assert (got.status, got.code) == (503, "UNAVAILABLE")
    assert int(got.headers["retry-after"]) >= 1
    mirrored.clock.ahead = TTL + 10
    await pull(mirrored.client, APP, "1")


async def test_docker_hubs_short_names_are_one_repository(mirrored: Mirrored) -> None:
    mirrored.upstream.add("library/app", APP, "1")
    await pull(mirrored.client, APP, "1", here="/v2/mirror/docker.io/app")
    asked = len(mirrored.upstream.seen)
    await pull(mirrored.client, APP, "1", here="/v2/mirror/docker.io/library/app")
    assert len(mirrored.upstream.seen) == asked


async def test_docker_schema_2_keeps_its_media_type(mirrored: Mirrored) -> None:
    fields = {**json.loads(APP.manifest), "mediaType": DOCKER_MANIFEST}
    docker = Image(json.dumps(fields).encode(), APP.blobs)
    mirrored.upstream.add("acme/app", docker, "1")
    await pull(mirrored.client, docker, "1")


async def test_what_no_upstream_has_is_unknown(mirrored: Mirrored) -> None:
    for target, code in (
        (f"{HERE}/manifests/1", "MANIFEST_UNKNOWN"),
        (f"{HERE}/manifests/{APP.digest}", "MANIFEST_UNKNOWN"),
        (f"{HERE}/blobs/{APP.digest}", "BLOB_UNKNOWN"),
    ):
        got = await mirrored.client("GET", target)
        assert (got.status, got.code) == (404, code)


@pytest.mark.parametrize(
    "repository", ["mirror/other.example/acme/app", "mirror/acme", "acme/app", f"mirror/{NAME}"]
)
async def test_nothing_else_is_ever_contacted(mirrored: Mirrored, repository: str) -> None:
    mirrored.upstream.add("acme/app", APP, "1")
    assert await mirrored.client.status_of(f"/v2/{repository}/manifests/1") == 404
    assert await mirrored.client.status_of(f"/v2/{repository}/blobs/{APP.digest}") == 404
    assert mirrored.upstream.seen == []


# One fetch for many


def held(release: trio.Event, begun: trio.Event, then: Answer) -> Answer:
    async def send(stream: trio.abc.Stream, seen: Seen) -> None:
        begun.set()
        await release.wait()
        await then(stream, seen)

    return send


async def test_many_who_wait_share_one_fetch(mirrored: Mirrored) -> None:
    mirrored.upstream.add("acme/app", APP, "1")
    release, begun = trio.Event(), trio.Event()
    layer = APP.blobs[1]
    path = f"{THERE}/blobs/{digest_of(layer)}"
    mirrored.upstream.overrides[path] = held(release, begun, answer(200, layer))
    answers = []

    async def ask() -> None:
        answers.append(await mirrored.client("GET", f"{HERE}/blobs/{digest_of(layer)}"))

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(ask)
        await begun.wait()
        release.set()
    assert [item.body for item in answers] == [layer] * 20
    assert mirrored.upstream.count("GET", digest_of(layer)) == 1


@pytest.mark.parametrize(("kind", "at_once"), [("blobs", 16), ("manifests", 32)])
async def test_an_upstream_that_hangs_takes_nothing_from_another_one(
    mirrored: Mirrored, kind: str, at_once: int
) -> None:
    mirrored.upstream.add("library/app", APP, "1")
    full = trio.Event()

    async def hang(_: trio.abc.Stream, __: Seen) -> None:
        if mirrored.upstream.count("GET", "") == at_once:
            full.set()
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        for digest in (digest_of(str(i).encode()) for i in range(at_once + 4)):
            mirrored.upstream.overrides[f"{THERE}/{kind}/{digest}"] = hang
            nursery.start_soon(mirrored.client, "GET", f"{HERE}/{kind}/{digest}")
        await full.wait()
        await pull(mirrored.client, APP, "1", here="/v2/mirror/docker.io/library/app")
        nursery.cancel_scope.cancel(reason="the test is over")


async def test_when_the_last_one_leaves_the_fetch_ends_and_leaves_nothing(
    mirrored: Mirrored,
) -> None:
    gone = trio.Event()

    async def stall(stream: trio.abc.Stream, _: Seen) -> None:
        await stream.send_all(
            b"HTTP/1.1 200 x\r\ncontent-length: 9000000\r\n\r\n" + b"x" * 4_000_000
        )
        assert await stream.receive_some() == b""  # the mirror closes the connection
        gone.set()

    digest = digest_of(b"x" * 9_000_000)
    mirrored.upstream.overrides[f"{THERE}/blobs/{digest}"] = stall
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mirrored.client, "GET", f"{HERE}/blobs/{digest}")
        uploads = mirrored.served.root / "uploads"
        while not list(uploads.iterdir()):
            await trio.testing.wait_all_tasks_blocked(0.01)
        nursery.cancel_scope.cancel(reason="the client is gone")
    await gone.wait()
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert list(uploads.iterdir()) == []
    assert await mirrored.served.actor.store.stored() == []


async def test_a_client_that_goes_away_is_noticed_while_it_waits(mirrored: Mirrored) -> None:
    begun, gone = trio.Event(), trio.Event()

    async def stall(stream: trio.abc.Stream, _: Seen) -> None:
        begun.set()
        assert await stream.receive_some() == b""
        gone.set()

    mirrored.upstream.overrides[f"{THERE}/manifests/1"] = stall
    got = await mirrored.client("GET", f"{HERE}/manifests/1", vanish_after=0, vanish_when=begun)
    assert got.status == 0
    await gone.wait()


async def test_a_fetch_that_is_cancelled_at_any_point_leaves_nothing_half(
    mirrored: Mirrored,
) -> None:
    layer = APP.blobs[1]
    digest = digest_of(layer)
    mirrored.upstream.add("acme/app", APP)
    mirror: Mirror = mirrored.served.actor.mirror
    place = mirror._require(RepositoryName(f"mirror/{NAME}/acme/app"))
    store = mirrored.served.actor.store

    async def check(_: int) -> None:
        assert list((mirrored.served.root / "uploads").iterdir()) == []
        for stored in await store.stored():
            assert await store.read_whole(stored) == layer
        await mirrored.served.handle.unlink_blob(place.local, digest)
        await mirrored.served.handle.collect()
        assert await store.stored() == []

    assert await cancel_at_every_checkpoint(lambda: mirror._fetch_blob(place, digest), check) > 10


async def test_after_a_restart_of_its_actor_the_mirror_goes_on(mirrored: Mirrored) -> None:
    mirrored.upstream.add("acme/app", APP, "1")
    actor = mirrored.served.actor
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: actor.mirror.run(task_status=task_status))
        nursery.cancel_scope.cancel(reason="the actor fails")
    got = await mirrored.client("GET", f"{HERE}/manifests/1")
    assert (got.status, got.code) == (503, "UNAVAILABLE")
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: actor.mirror.run(task_status=task_status))
        await pull(mirrored.client, APP, "1")
        nursery.cancel_scope.cancel(reason="the test is over")


# What an operator pushes, and what goes


async def test_what_the_operator_pushed_stands(mirrored: Mirrored) -> None:
    operator = Client(mirrored.served.app, admin_token())
    repository = f"mirror/{NAME}/acme/app"
    await operator.push(repository, APP, "1")
    mirrored.upstream.add("acme/app", NEWER, "1")
    mirrored.clock.ahead = 40 * DAY
    await mirrored.served.handle.collect()
    assert await mirrored.served.handle.find_tagged(RepositoryName(repository), Tag("1"))
    mirrored.clock.ahead = 0
    await pull(mirrored.client, APP, "1")
    assert mirrored.upstream.seen == []


async def test_an_image_can_be_pushed_where_there_is_no_way_to_the_upstream(
    mirrored: Mirrored,
) -> None:
    """A client asks whether a blob is there before it pushes it."""
    mirrored.upstream.add("acme/app", APP, "1")
    down(mirrored, 500)
    operator = Client(mirrored.served.app, admin_token())
    for content in APP.blobs:
        assert await operator.status_of(f"{HERE}/blobs/{digest_of(content)}", "HEAD") == 404
    await operator.push(f"mirror/{NAME}/acme/app", APP, "1")
    await pull(mirrored.client, APP, "1")


async def test_a_tenant_cannot_push_into_the_mirror(mirrored: Mirrored) -> None:
    got = await mirrored.client("POST", f"{HERE}/blobs/uploads/")
    assert (got.status, got.code) == (403, "DENIED")


async def test_nobody_gets_into_the_mirror_without_a_token(mirrored: Mirrored) -> None:
    mirrored.upstream.add("acme/app", APP, "1")
    nobody = Client(mirrored.served.app)
    assert await nobody.status_of(f"{HERE}/manifests/1") == 401
    assert mirrored.upstream.seen == []


async def test_what_no_upstream_confirmed_for_a_month_goes(mirrored: Mirrored) -> None:
    mirrored.upstream.add("acme/app", BOTH, "1")
    await pull(mirrored.client, BOTH, "1")
    mirrored.clock.ahead = 29 * DAY
    assert (await mirrored.served.handle.collect()).blobs == 0
    mirrored.clock.ahead = 31 * DAY
    for _ in range(3):  # an index, what it lists, what those reference
        await mirrored.served.handle.collect()
    assert await mirrored.served.actor.store.stored() == []
    await pull(mirrored.client, BOTH, "1")


async def test_a_tag_in_use_keeps_its_image(mirrored: Mirrored) -> None:
    mirrored.upstream.add("acme/app", BOTH, "1")
    await pull(mirrored.client, BOTH, "1")
    for days in (20, 40, 60):
        mirrored.clock.ahead = days * DAY
        await mirrored.client("HEAD", f"{HERE}/manifests/1")
        await mirrored.served.handle.collect()
    asked = mirrored.upstream.count("GET", "")
    await pull(mirrored.client, BOTH, "1")
    assert mirrored.upstream.count("GET", "") == asked


async def test_collection_at_once_never_costs_what_is_being_pulled(tmp_path: Path) -> None:
    policy = replace(AT_ONCE, mirror_seconds=3600.0)
    with trio.fail_after(60):
        async with open_mirror(tmp_path, policy=policy) as mirrored:
            mirrored.upstream.add("acme/app", BOTH, "1")
            async with trio.open_nursery() as nursery:

                async def collect() -> None:
                    while True:
                        await mirrored.served.handle.collect()

                nursery.start_soon(collect)
                await pull(mirrored.client, BOTH, "1")
                nursery.cancel_scope.cancel(reason="it was pulled")
