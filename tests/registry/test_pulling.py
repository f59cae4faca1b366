"""Reading blobs and manifests: whole, in parts, by tag and by digest."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from supervisor.model.oci import Digest
from supervisor.registry.media import DOCKER_MANIFEST
from supervisor.runtime.logs import log
from tests.registry.client import Client
from tests.registry.images import Image, descriptor, digest_of, image, index
from tests.registry.serve import Served, api_token, open_registry

SIZE = 3 * 1024 * 1024 + 5
CONTENT = os.urandom(SIZE)


@pytest.fixture
async def stored(client: Client) -> Digest:
    """A blob larger than one piece."""
    return await client.push_blob("acme/app", CONTENT)


async def test_a_blob_reads_as_it_was_pushed(client: Client, stored: Digest) -> None:
    answer = await client("GET", f"/v2/acme/app/blobs/{stored}")
    assert (answer.status, answer.body == CONTENT, answer.is_complete) == (200, True, True)
    assert answer.headers["content-length"] == str(SIZE)
    assert answer.headers["docker-content-digest"] == stored
    assert answer.headers["content-type"] == "application/octet-stream"


async def test_a_client_that_leaves_while_a_blob_is_sent_is_no_error_of_ours(
    client: Client, stored: Digest
) -> None:
    def leave(piece: bytes) -> None:
        raise BrokenPipeError

    said: list[str] = []
    handler = log.add(lambda message: said.append(message.record["message"]), level="ERROR")
    try:
        await client("GET", f"/v2/acme/app/blobs/{stored}", on_piece=leave)
    finally:
        log.remove(handler)
    assert said == []


async def test_head_tells_the_size_and_sends_nothing(client: Client, stored: Digest) -> None:
    answer = await client("HEAD", f"/v2/acme/app/blobs/{stored}")
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers["content-length"] == str(SIZE)


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=500-1499", 500, 1500),
        ("bytes=500-", 500, SIZE),
        ("bytes=-500", SIZE - 500, SIZE),
        (f"bytes=-{SIZE * 2}", 0, SIZE),
        (f"bytes={SIZE - 1}-{SIZE * 2}", SIZE - 1, SIZE),
    ],
)
async def test_a_range_is_sent(
    client: Client, stored: Digest, asked: str, start: int, stop: int
) -> None:
    answer = await client("GET", f"/v2/acme/app/blobs/{stored}", headers={"range": asked})
    assert answer.status == 206
    assert answer.body == CONTENT[start:stop]
    assert answer.headers["content-range"] == f"bytes {start}-{stop - 1}/{SIZE}"
    assert answer.headers["content-length"] == str(stop - start)


@pytest.mark.parametrize("asked", [f"bytes={SIZE}-", "bytes=5-4", "bytes=-0"])
async def test_a_range_outside_is_refused(client: Client, stored: Digest, asked: str) -> None:
    answer = await client("GET", f"/v2/acme/app/blobs/{stored}", headers={"range": asked})
    assert answer.status == 416
    assert answer.headers["content-range"] == f"bytes */{SIZE}"
    assert answer.code == "SIZE_INVALID"


@pytest.mark.parametrize("asked", ["bytes=0-1,5-9", "lines=1-2", "bytes=-", "bytes=" + "9" * 400])
async def test_what_is_not_one_range_gets_the_whole(
    client: Client, stored: Digest, asked: str
) -> None:
    answer = await client("GET", f"/v2/acme/app/blobs/{stored}", headers={"range": asked})
    assert (answer.status, len(answer.body)) == (200, SIZE)


async def test_a_reader_that_goes_away_ends_the_reading(client: Client, stored: Digest) -> None:
    answer = await client("GET", f"/v2/acme/app/blobs/{stored}", vanish_after=0)
    assert not answer.is_complete


async def test_an_unknown_blob_is_not_found(client: Client, stored: Digest) -> None:
    for method in ("GET", "DELETE"):
        answer = await client(method, f"/v2/acme/app/blobs/{digest_of(b'other')}")
        assert (answer.status, answer.code) == (404, "BLOB_UNKNOWN")


async def test_a_manifest_reads_as_it_was_pushed(client: Client) -> None:
    app = image({"a": b"1"}, {"b": b"2"})
    await client.push("acme/app", app, "1")
    for reference in ("1", app.digest):
        answer = await client("GET", f"/v2/acme/app/manifests/{reference}")
        assert (answer.status, answer.body) == (200, app.manifest)
        assert answer.headers["content-type"] == app.media_type
        assert answer.headers["docker-content-digest"] == app.digest
        head = await client("HEAD", f"/v2/acme/app/manifests/{reference}")
        assert (head.status, head.body) == (200, b"")
        assert head.headers["content-length"] == str(len(app.manifest))


async def test_a_tag_moves(client: Client) -> None:
    first, second = image({"a": b"1"}), image({"a": b"2"})
    for app in (first, second):
        await client.push("acme/app", app, "latest")
        answer = await client("GET", "/v2/acme/app/manifests/latest")
        assert answer.headers["docker-content-digest"] == app.digest
    assert await client.status_of(f"/v2/acme/app/manifests/{first.digest}") == 200


async def test_docker_manifests_keep_their_media_type(client: Client) -> None:
    config = await client.push_blob("acme/app", b"{}")
    content = (
        f'{{"schemaVersion":2,"mediaType":"{DOCKER_MANIFEST}","config":{{"mediaType":'
        f'"application/vnd.docker.container.image.v1+json","size":2,"digest":"{config}"}},'
        '"layers":[]}'
    ).encode()
    await client.push("acme/app", Image(content), "1")
    answer = await client("GET", "/v2/acme/app/manifests/1")
    assert (answer.body, answer.headers["content-type"]) == (content, DOCKER_MANIFEST)


async def test_an_index_reads_with_its_images(client: Client) -> None:
    both = index({"amd64": image({"a": b"1"}), "arm64": image({"a": b"2"}, architecture="arm64")})
    await client.push("acme/app", both, "1")
    for item in (both, *both.children):
        answer = await client("GET", f"/v2/acme/app/manifests/{item.digest}")
        assert answer.body == item.manifest


async def test_many_readers_and_a_deletion_do_not_disturb_each_other(
    client: Client, stored: Digest
) -> None:
    bodies = []

    async def read() -> None:
        answer = await client("GET", f"/v2/acme/app/blobs/{stored}")
        bodies.append(answer.body if answer.status == 200 else None)

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(read)
        nursery.start_soon(client, "DELETE", f"/v2/acme/app/blobs/{stored}")
    assert all(body in (None, CONTENT) for body in bodies)


async def test_a_referenced_blob_of_another_size_is_refused(client: Client) -> None:
    config = await client.push_blob("acme/app", b"{}")
    app = image()
    wrong = descriptor("application/vnd.oci.image.config.v1+json", b"{}", size=3)
    assert wrong["digest"] == config
    content = app.manifest.decode()
    await client.push("acme/app", app)
    old = descriptor("application/vnd.oci.image.config.v1+json", app.blobs[0])
    changed = Image(
        content.replace(old["digest"], config)
        .replace(f'"size": {old["size"]}', '"size": 3')
        .encode()
    )
    answer = await client.push_manifest("acme/app", changed, "1")
    assert (answer.status, answer.code) == (400, "SIZE_INVALID")
    assert answer.json["errors"][0]["detail"] == [config]


@pytest.mark.parametrize("content", [CONTENT[:-1], b"", CONTENT + b"x", None])
async def test_a_blob_whose_file_has_another_length_is_not_served(
    client: Client, served: Served, stored: Digest, content: bytes | None
) -> None:
    path = served.actor.store.path(stored)
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    for headers in ({}, {"range": "bytes=0-9"}):
        answer = await client("GET", f"/v2/acme/app/blobs/{stored}", headers=headers)
        assert (answer.status, answer.code) == (404, "BLOB_UNKNOWN")
    # Nobody is told that it is there, so that it is pushed again.
    assert (await client("HEAD", f"/v2/acme/app/blobs/{stored}")).status == 404
    mount = f"/v2/acme/other/blobs/uploads/?mount={stored}&from=acme/app"
    assert (await client("POST", mount)).status == 202
    # Whoever pushes it again mends it.
    assert await client.push_blob("acme/app", CONTENT) == stored
    assert (await client("GET", f"/v2/acme/app/blobs/{stored}")).body == CONTENT


@pytest.mark.parametrize("damage", [lambda old: b"x" + old[1:], lambda old: old[:-1], None])
async def test_a_manifest_whose_file_has_other_bytes_is_not_served(
    tmp_path: Path, damage: Callable[[bytes], bytes] | None
) -> None:
    app, other = image({"a": b"1"}), image({"b": b"2"})
    async with open_registry(tmp_path) as registry:
        client = Client(registry.app, api_token())
        await client.push("acme/app", app, "1")
        await client.push("acme/app", other, "2")
        path = registry.actor.store.path(app.digest)
    path.unlink()
    if damage is not None:
        path.write_bytes(damage(app.manifest))
    async with open_registry(tmp_path) as registry:  # nothing of it is in memory
        client = Client(registry.app, api_token())
        for reference in ("1", app.digest):
            answer = await client("GET", f"/v2/acme/app/manifests/{reference}")
            assert (answer.status, answer.code) == (404, "MANIFEST_UNKNOWN")
            answer = await client("HEAD", f"/v2/acme/app/manifests/{reference}")
            assert answer.status == 404
        answer = await client("GET", "/v2/acme/app/manifests/2")
        assert (answer.status, answer.body) == (200, other.manifest)
        await client.push("acme/app", app, "1")
        assert (await client("GET", "/v2/acme/app/manifests/1")).body == app.manifest


async def test_what_goes_in_and_out_is_counted_to_the_byte(tmp_path: Path) -> None:
    counted = {"in": 0, "out": 0}

    def count(direction: str, number: int) -> None:
        counted[direction] += number

    ours = image({"file": CONTENT})
    everything = sum(map(len, ours.blobs)) + len(ours.manifest)
    async with open_registry(tmp_path, count_bytes=count) as served:
        client = Client(served.app, api_token())
        await client.push("acme/app", ours, "1")
        assert counted == {"in": everything, "out": 0}
        await client("GET", "/v2/acme/app/manifests/1")
        for content in ours.blobs:
            await client("GET", f"/v2/acme/app/blobs/{digest_of(content)}")
        assert counted == {"in": everything, "out": everything}
        part = {"range": "bytes=0-9"}
        await client("GET", f"/v2/acme/app/blobs/{digest_of(ours.blobs[-1])}", headers=part)
        await client("HEAD", "/v2/acme/app/manifests/1")
        await client("GET", "/v2/acme/app/manifests/none")
        await client("GET", "/v2/acme/app/tags/list")
        assert counted == {"in": everything, "out": everything + 10}
