"""Manifests and tags: pushing with references, listing, referrers, deleting, mounting."""

from __future__ import annotations

import json

import pytest

from supervisor.registry.media import MAX_MANIFEST_BYTES, OCI_INDEX, OCI_MANIFEST
from tests.registry.client import Answer, Client
from tests.registry.images import Image, artifact, digest_of, image, index
from tests.registry.serve import Served


async def test_a_manifest_whose_blobs_are_missing_is_refused(
    client: Client, served: Served
) -> None:
    app = image({"a": b"1"})
    config, _ = app.blobs
    await client.push_blob("acme/app", config)
    answer = await client.push_manifest("acme/app", app, "1")
    assert (answer.status, answer.code) == (400, "MANIFEST_BLOB_UNKNOWN")
    assert answer.json["errors"][0]["detail"] == [digest_of(app.blobs[1])]
    assert await client.status_of("/v2/acme/app/manifests/1") == 404
    assert app.digest not in await served.actor.store.stored()


async def test_blobs_of_another_repository_do_not_count(client: Client) -> None:
    app = image({"a": b"1"})
    await client.push("acme/other", app)
    answer = await client.push_manifest("acme/app", app, "1")
    assert (answer.status, answer.code) == (400, "MANIFEST_BLOB_UNKNOWN")


async def test_an_index_needs_its_images(client: Client) -> None:
    both = index({"amd64": image({"a": b"1"})})
    answer = await client.push_manifest("acme/app", both, "1")
    assert (answer.status, answer.code) == (400, "MANIFEST_BLOB_UNKNOWN")


async def test_an_index_of_blobs_is_taken(client: Client) -> None:
    """BuildKit's cache in its older form is an index that lists layers."""
    layer = await client.push_blob("acme/app", b"layer")
    content = {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [{"mediaType": "application/x", "digest": layer, "size": 5}],
    }
    await client.push("acme/app", Image(json.dumps(content).encode()), "cache")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not json",
        b"[]",
        b"[" * 100_000,
        b'{"schemaVersion":1}',
        b'{"schemaVersion":2,"mediaType":5}',
        b'{"schemaVersion":2,"config":{},"layers":[]}',
        b'{"schemaVersion":2,"config":null,"layers":{}}',
        '{"schemaVersion":2}'.encode("utf-16"),
    ],
)
async def test_what_is_not_a_manifest_is_refused(client: Client, content: bytes) -> None:
    answer = await client(
        "PUT", "/v2/acme/app/manifests/1", content, headers={"content-type": OCI_MANIFEST}
    )
    assert (answer.status, answer.code) == (400, "MANIFEST_INVALID")


async def test_a_content_type_that_contradicts_the_manifest_is_refused(client: Client) -> None:
    app = image()
    await client.push("acme/app", app)
    answer = await client(
        "PUT", "/v2/acme/app/manifests/1", app.manifest, headers={"content-type": OCI_INDEX}
    )
    assert (answer.status, answer.code) == (400, "MANIFEST_INVALID")


async def test_a_manifest_over_the_limit_is_refused(client: Client) -> None:
    announced = b" " * (MAX_MANIFEST_BYTES + 1)
    answer = await client("PUT", "/v2/acme/app/manifests/1", announced)
    assert answer.status == 413
    pieces = [announced[:65536]] * 65
    answer = await client("PUT", "/v2/acme/app/manifests/1", iter(pieces))
    assert answer.status == 413


async def test_a_manifest_under_a_wrong_digest_is_refused(client: Client) -> None:
    app = image()
    await client.push("acme/app", app)
    answer = await client.push_manifest("acme/app", app, digest_of(b"other"))
    assert (answer.status, answer.code) == (400, "DIGEST_INVALID")


async def test_tags_are_given_with_a_push_by_digest(client: Client) -> None:
    app = image()
    await client.push("acme/app", app)
    answer = await client(
        "PUT", f"/v2/acme/app/manifests/{app.digest}?tag=1&tag=1.2&tag=latest", app.manifest
    )
    assert answer.status == 201
    given = [value for name, value in answer.all_headers if name == "oci-tag"]
    assert given == ["1", "1.2", "latest"]
    assert await tags(client) == ["1", "1.2", "latest"]


async def tags(client: Client, query: str = "") -> list[str]:
    answer = await client("GET", f"/v2/acme/app/tags/list{query}")
    assert answer.json["name"] == "acme/app"
    listed: list[str] = answer.json["tags"]
    return listed


async def test_tags_are_listed_in_ascii_order_and_pages(client: Client) -> None:
    app = image()
    for tag in ("b", "a", "B", "10", "9", "_x"):
        await client.push("acme/app", app, tag)
    everything = ["10", "9", "B", "_x", "a", "b"]
    assert await tags(client) == everything
    assert await tags(client, "?last=B") == ["_x", "a", "b"]
    assert await tags(client, "?n=0") == []
    answer = await client("GET", "/v2/acme/app/tags/list?n=4")
    seen = [*answer.json["tags"]]
    assert answer.headers["link"] == '</v2/acme/app/tags/list?n=4&last=_x>; rel="next"'
    answer = await client("GET", answer.headers["link"].split(">")[0][1:])
    assert "link" not in answer.headers
    assert seen + answer.json["tags"] == everything


@pytest.mark.parametrize("query", ["?n=-1", "?n=x", "?n=1e3", "?n=" + "9" * 30, "?n=٣"])
async def test_a_bad_page_size_is_refused(client: Client, query: str) -> None:
    await client.push("acme/app", image(), "1")
    answer = await client("GET", f"/v2/acme/app/tags/list{query}")
    assert (answer.status, answer.code) == (400, "UNSUPPORTED")


async def test_tags_of_nothing_are_not_found(client: Client) -> None:
    answer = await client("GET", "/v2/acme/none/tags/list")
    assert (answer.status, answer.code) == (404, "NAME_UNKNOWN")


def referring(answer: Answer) -> list[str]:
    assert answer.status == 200
    assert answer.headers["content-type"] == OCI_INDEX
    return [item["digest"] for item in answer.json["manifests"]]


async def test_referrers_are_listed_and_filtered(client: Client) -> None:
    app = image({"a": b"1"})
    sbom = artifact(b"sbom", "application/vnd.test.sbom", app, note="one")
    signature = artifact(b"signature", "application/vnd.test.signature", app)
    answer = await client("GET", f"/v2/acme/app/referrers/{app.digest}")
    assert referring(answer) == []
    # A referrer may come before its subject.
    for content in (*sbom.blobs, *signature.blobs):
        await client.push_blob("acme/app", content)
    answer = await client.push_manifest("acme/app", sbom)
    assert answer.headers["oci-subject"] == app.digest
    await client.push("acme/app", app, "1")
    await client.push("acme/app", signature)
    answer = await client("GET", f"/v2/acme/app/referrers/{app.digest}")
    assert set(referring(answer)) == {sbom.digest, signature.digest}
    answer = await client(
        "GET", f"/v2/acme/app/referrers/{app.digest}?artifactType=application/vnd.test.sbom"
    )
    assert referring(answer) == [sbom.digest]
    assert answer.headers["oci-filters-applied"] == "artifactType"
    (entry,) = answer.json["manifests"]
    assert entry["annotations"] == {"note": "one"}
    assert entry["size"] == len(sbom.manifest)


async def test_many_large_referrers_come_in_pages(client: Client) -> None:
    app = image()
    expected = set()
    for number in range(6):
        item = artifact(b"x", "application/vnd.test", app, note=f"{number}" + "y" * 1_000_000)
        expected.add(await client.push("acme/app", item))
    target: str | None = f"/v2/acme/app/referrers/{app.digest}"
    seen: list[str] = []
    pages = 0
    while target is not None:
        answer = await client("GET", target)
        assert len(answer.body) <= MAX_MANIFEST_BYTES
        seen += referring(answer)
        pages += 1
        link = answer.headers.get("link")
        target = link.split(">")[0][1:] if link else None
    assert pages == 2
    assert set(seen) == expected
    assert len(seen) == len(expected)


async def test_deleting_a_tag_leaves_the_manifest(client: Client) -> None:
    app = image()
    await client.push("acme/app", app, "1")
    assert await client.status_of("/v2/acme/app/manifests/1", "DELETE") == 202
    assert await client.status_of("/v2/acme/app/manifests/1") == 404
    assert await client.status_of(f"/v2/acme/app/manifests/{app.digest}") == 200
    assert await client.status_of("/v2/acme/app/manifests/1", "DELETE") == 404


async def test_deleting_a_manifest_takes_its_tags_along(client: Client) -> None:
    app = image()
    for tag in ("1", "2"):
        await client.push("acme/app", app, tag)
    assert await client.status_of(f"/v2/acme/app/manifests/{app.digest}", "DELETE") == 202
    for reference in ("1", "2", app.digest):
        assert await client.status_of(f"/v2/acme/app/manifests/{reference}") == 404
    assert await tags(client) == []


async def test_what_something_needs_cannot_be_deleted(client: Client) -> None:
    child = image({"a": b"1"})
    both = index({"amd64": child})
    await client.push("acme/app", both, "1")
    answer = await client("DELETE", f"/v2/acme/app/manifests/{child.digest}")
    assert (answer.status, answer.code) == (405, "UNSUPPORTED")
    answer = await client("DELETE", f"/v2/acme/app/blobs/{digest_of(child.blobs[0])}")
    assert (answer.status, answer.code) == (405, "UNSUPPORTED")
    for digest in (both.digest, child.digest):
        assert await client.status_of(f"/v2/acme/app/manifests/{digest}", "DELETE") == 202
    target = f"/v2/acme/app/blobs/{digest_of(child.blobs[0])}"
    assert await client.status_of(target, "DELETE") == 202
    assert await client.status_of(target) == 404


async def test_a_blob_is_mounted_without_sending_it(client: Client) -> None:
    digest = await client.push_blob("acme/app", b"layer")
    for query in (f"?mount={digest}&from=acme/app", f"?mount={digest}"):
        target = f"acme/other{len(query)}"
        answer = await client("POST", f"/v2/{target}/blobs/uploads/{query}")
        assert answer.status == 201
        assert answer.headers["location"] == f"/v2/{target}/blobs/{digest}"
        answer = await client("GET", f"/v2/{target}/blobs/{digest}")
        assert answer.body == b"layer"


async def test_what_cannot_be_mounted_becomes_an_upload(client: Client) -> None:
    unknown = digest_of(b"unknown")
    for query in (f"?mount={unknown}&from=acme/app", f"?mount={unknown}"):
        answer = await client("POST", f"/v2/acme/other/blobs/uploads/{query}")
        assert answer.status == 202
        assert "/blobs/uploads/" in answer.headers["location"]


async def test_a_hostile_mount_is_refused(client: Client) -> None:
    answer = await client("POST", "/v2/acme/app/blobs/uploads/?mount=nonsense&from=acme/x")
    assert (answer.status, answer.code) == (400, "DIGEST_INVALID")
    digest = digest_of(b"x")
    answer = await client("POST", f"/v2/acme/app/blobs/uploads/?mount={digest}&from=../x")
    assert (answer.status, answer.code) == (400, "NAME_INVALID")
