"""Pushing blobs: every way that the specification knows, and what is refused on the way."""

from __future__ import annotations

import os
from functools import partial

import pytest
import trio

from supervisor.model.oci import Digest
from tests.registry.client import CHUNK, Client
from tests.registry.images import digest_of
from tests.registry.serve import Served

UPLOADS = "/v2/acme/app/blobs/uploads/"


async def blob(client: Client, digest: Digest, repository: str = "acme/app") -> bytes | None:
    """Return what a blob reads as, or None."""
    answer = await client("GET", f"/v2/{repository}/blobs/{digest}")
    return answer.body if answer.status == 200 else None


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize("size", [0, 1, CHUNK, 3 * 1024 * 1024 + 17])
async def test_single_post_stores_the_blob(client: Client, algorithm: str, size: int) -> None:
    content = os.urandom(size)
    digest = digest_of(content, algorithm)
    answer = await client("POST", f"{UPLOADS}?digest={digest}", content)
    assert answer.status == 201
    assert answer.headers["location"] == f"/v2/acme/app/blobs/{digest}"
    assert answer.headers["docker-content-digest"] == digest
    assert await blob(client, digest) == content


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize("announced", [True, False])
async def test_post_then_put_stores_the_blob(
    client: Client, algorithm: str, announced: bool
) -> None:
    content = os.urandom(100_000)
    digest = digest_of(content, algorithm)
    location = await client.begin("acme/app", f"?digest-algorithm={algorithm}" if announced else "")
    answer = await client("PUT", f"{location}?digest={digest}", content)
    assert answer.status == 201
    assert await blob(client, digest) == content


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
async def test_chunks_are_put_together(client: Client, algorithm: str) -> None:
    content = os.urandom(2_500_000)
    digest = digest_of(content, algorithm)
    location = await client.begin("acme/app")
    for start in range(0, 2_000_000, 1_000_000):
        chunk = content[start : start + 1_000_000]
        span = f"{start}-{start + 999_999}"
        answer = await client("PATCH", location, chunk, headers={"content-range": span})
        assert answer.status == 202
        assert answer.headers["range"] == f"0-{start + 999_999}"
        location = answer.headers["location"]
    span = "2000000-2499999"
    last = content[2_000_000:]
    answer = await client(
        "PUT", f"{location}?digest={digest}", last, headers={"content-range": span}
    )
    assert answer.status == 201
    assert await blob(client, digest) == content


async def test_a_stream_of_unknown_length_is_taken(client: Client) -> None:
    pieces = [os.urandom(size) for size in (1, 70_000, 3, 1_200_000)]
    content = b"".join(pieces)
    location = await client.begin("acme/app")
    answer = await client("PATCH", location, iter(pieces))
    assert answer.status == 202
    answer = await client("PUT", f"{location}?digest={digest_of(content)}")
    assert answer.status == 201
    assert await blob(client, digest_of(content)) == content


async def test_a_body_in_tiny_pieces_is_taken(client: Client) -> None:
    content = os.urandom(3000)
    pieces = [content[i : i + 1] for i in range(len(content))]
    answer = await client("POST", f"{UPLOADS}?digest={digest_of(content)}", iter(pieces))
    assert answer.status == 201
    assert await blob(client, digest_of(content)) == content


async def test_progress_is_told(client: Client) -> None:
    location = await client.begin("acme/app")
    answer = await client("GET", location)
    assert (answer.status, answer.headers["range"]) == (204, "0-0")
    await client("PATCH", location, b"x" * 10)
    answer = await client("GET", location)
    assert (answer.status, answer.headers["range"]) == (204, "0-9")
    assert answer.headers["location"] == location


async def test_a_chunk_out_of_order_is_refused_with_the_right_offset(client: Client) -> None:
    location = await client.begin("acme/app")
    await client("PATCH", location, b"x" * 10, headers={"content-range": "0-9"})
    for span in ("0-9", "5-14", "11-20"):
        answer = await client("PATCH", location, b"y" * 10, headers={"content-range": span})
        assert (answer.status, answer.code) == (416, "BLOB_UPLOAD_INVALID")
        assert answer.headers["range"] == "0-9"
    digest = digest_of(b"x" * 10)
    answer = await client(
        "PUT", f"{location}?digest={digest}", b"z", headers={"content-range": "9-9"}
    )
    assert answer.status == 416
    assert (await client("PUT", f"{location}?digest={digest}")).status == 201


@pytest.mark.parametrize(
    ("span", "code"),
    [
        ("junk", "BLOB_UPLOAD_INVALID"),
        ("-1-5", "BLOB_UPLOAD_INVALID"),
        ("5-0", "BLOB_UPLOAD_INVALID"),
        ("0-99999999999999999999999999", "BLOB_UPLOAD_INVALID"),
        ("0-8", "SIZE_INVALID"),
        ("0-10", "SIZE_INVALID"),
    ],
)
async def test_a_content_range_that_lies_is_refused(client: Client, span: str, code: str) -> None:
    location = await client.begin("acme/app")
    answer = await client("PATCH", location, b"x" * 10, headers={"content-range": span})
    assert (answer.status, answer.code) == (400, code)


async def test_a_stream_longer_or_shorter_than_its_content_range_is_refused(
    client: Client,
) -> None:
    for length in (9, 11):
        location = await client.begin("acme/app")
        answer = await client(
            "PATCH", location, iter([b"x" * length]), headers={"content-range": "0-9"}
        )
        assert (answer.status, answer.code) == (400, "SIZE_INVALID")


async def test_a_wrong_digest_stores_nothing(client: Client, served: Served) -> None:
    wrong = digest_of(b"other")
    answer = await client("POST", f"{UPLOADS}?digest={wrong}", b"content")
    assert (answer.status, answer.code) == (400, "DIGEST_INVALID")
    location = await client.begin("acme/app")
    answer = await client("PUT", f"{location}?digest={wrong}", b"content")
    assert (answer.status, answer.code) == (400, "DIGEST_INVALID")
    assert await client.status_of(location) == 404
    assert await blob(client, wrong) is None
    assert await blob(client, digest_of(b"content")) is None
    assert list((served.root / "uploads").iterdir()) == []
    assert await served.actor.store.stored() == []


@pytest.mark.parametrize(
    "digest",
    ["", "sha256:", "sha256:xyz", "md5:" + "0" * 32, "sha256:" + "A" * 64, "../../etc/passwd"],
)
async def test_a_malformed_digest_is_refused(client: Client, digest: str) -> None:
    answer = await client("POST", f"{UPLOADS}?digest={digest}", b"x")
    assert (answer.status, answer.code) == (400, "DIGEST_INVALID")
    location = await client.begin("acme/app")
    answer = await client("PUT", f"{location}?digest={digest}", b"x")
    assert (answer.status, answer.code) == (400, "DIGEST_INVALID")
    answer = await client("GET", f"/v2/acme/app/referrers/{digest or 'x'}")
    assert answer.status in (400, 404)


async def test_a_put_without_a_digest_is_refused(client: Client) -> None:
    answer = await client("PUT", await client.begin("acme/app"), b"x")
    assert (answer.status, answer.code) == (400, "DIGEST_INVALID")


async def test_an_unknown_algorithm_is_refused(client: Client) -> None:
    answer = await client("POST", f"{UPLOADS}?digest-algorithm=md5")
    assert (answer.status, answer.code) == (400, "DIGEST_INVALID")


async def test_a_cancelled_upload_is_gone(client: Client, served: Served) -> None:
    location = await client.begin("acme/app")
    await client("PATCH", location, b"x" * 10)
    assert await client.status_of(location, "DELETE") == 204
    for method in ("GET", "PATCH", "DELETE"):
        assert await client.status_of(location, method) == 404
    assert list((served.root / "uploads").iterdir()) == []


async def test_an_upload_belongs_to_its_repository(client: Client) -> None:
    location = await client.begin("acme/app")
    elsewhere = location.replace("acme/app", "acme/other")
    answer = await client("PATCH", elsewhere, b"x")
    assert (answer.status, answer.code) == (404, "BLOB_UPLOAD_UNKNOWN")


@pytest.mark.parametrize("name", ["0" * 32, "../x", "x", "%2e%2e"])
async def test_an_unknown_upload_is_not_found(client: Client, name: str) -> None:
    answer = await client("GET", f"{UPLOADS}{name}")
    assert answer.status == 404


async def test_a_client_that_vanishes_can_come_back(client: Client) -> None:
    content = os.urandom(5 * CHUNK)
    location = await client.begin("acme/app")
    await client("PATCH", location, content, vanish_after=3)
    answer = await client("GET", location)
    assert answer.headers["range"] == f"0-{3 * CHUNK - 1}"
    answer = await client("PATCH", location, content[3 * CHUNK :])
    assert answer.status == 202
    digest = digest_of(content)
    assert (await client("PUT", f"{location}?digest={digest}")).status == 201
    assert await blob(client, digest) == content


async def test_a_single_post_that_breaks_off_leaves_nothing(client: Client, served: Served) -> None:
    content = os.urandom(5 * CHUNK)
    target = f"{UPLOADS}?digest={digest_of(content)}"
    answer = await client("POST", target, content, vanish_after=3)
    assert answer.status == 0
    assert list((served.root / "uploads").iterdir()) == []


async def test_a_second_connection_takes_an_upload_over(client: Client) -> None:
    """The first one hangs half-way, as a connection does whose other end is gone."""
    location = await client.begin("acme/app")
    stalled = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(client, "PATCH", location, b"x" * 10, stalled=stalled))
        await stalled.wait()
        answer = await client("PUT", f"{location}?digest={digest_of(b'y' * 5)}", b"y" * 5)
        assert answer.status == 201
        nursery.cancel_scope.cancel(reason="the first connection never ends by itself")
