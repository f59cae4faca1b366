"""Upstreams that lie, stall, redirect and ask for credentials: nothing of it becomes content."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.lowlevel

from supervisor.registry.upstream_http import MAX_REDIRECTS
from tests.registry.images import digest_of, image
from tests.registry.mirroring import NAME, Mirrored, open_mirror
from tests.registry.upstream import PASSWORD, Answer, Seen, answer, open_upstream, token_service

APP = image({"a": b"1"})
LAYER = APP.blobs[1]
HERE = f"/v2/mirror/{NAME}/acme/app"
THERE = "/v2/acme/app"
BLOB = f"{HERE}/blobs/{digest_of(LAYER)}"
UPSTREAM_BLOB = f"{THERE}/blobs/{digest_of(LAYER)}"
BY_DIGEST = f"manifests/{APP.digest}"


@pytest.fixture
async def mirrored(tmp_path: Path) -> AsyncIterator[Mirrored]:
    with trio.fail_after(60):
        async with open_mirror(tmp_path, max_blob_bytes=4 << 20) as both:
            both.upstream.add("acme/app", APP, "1")
            yield both


async def expect(mirrored: Mirrored, target: str, status: int, code: str) -> None:
    """The answer is that error, and nothing of what the upstream sent stays."""
    got = await mirrored.client("GET", target)
    assert (got.status, got.code) == (status, code)
    for secret in (mirrored.upstream.address, PASSWORD, "t0ken"):
        assert secret not in got.body.decode()
    assert await mirrored.served.actor.store.stored() == []
    assert list((mirrored.served.root / "uploads").iterdir()) == []


def raw(head: str, body: bytes = b"", *, endless: bytes = b"", then_stall: bool = False) -> Answer:
    """Send exactly that, then `endless` for as long as anybody reads."""

    async def send(stream: trio.abc.Stream, _: Seen) -> None:
        await stream.send_all(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)
        while endless:
            await stream.send_all(endless)
        if then_stall:
            await trio.sleep_forever()

    return send


LIES: dict[str, Answer] = {
    "another content": answer(200, b"x" * len(LAYER)),
    "too little": raw(f"HTTP/1.1 200 x\ncontent-length: {len(LAYER)}", LAYER[:-1]),
    "a shorter one": answer(200, LAYER[:-1]),
    "a longer one": answer(200, LAYER + b"x"),
    "nothing": answer(200),
    "a huge announcement": answer(200, b"x", content_length=str(1 << 60)),
    "an absurd announcement": raw("HTTP/1.1 200 x\ncontent-length: many"),
    "no end": raw("HTTP/1.1 200 x", endless=b"x" * 65536),
    "no end in chunks": raw(
        "HTTP/1.1 200 x\ntransfer-encoding: chunked", endless=b"4000\r\n" + b"x" * 0x4000 + b"\r\n"
    ),
    "broken chunks": raw("HTTP/1.1 200 x\ntransfer-encoding: chunked", b"zz\r\nx"),
    "no HTTP": raw("SSH-2.0-x"),
    "endless headers": raw(
        "HTTP/1.1 200 x\n" + "\n".join(f"x-{i}: {'y' * 1000}" for i in range(500))
    ),
    "a part of it": raw(f"HTTP/1.1 206 x\ncontent-length: {len(LAYER)}", LAYER),
    "no status that is known": raw("HTTP/1.1 299 x\ncontent-length: 0"),
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_blob_that_is_not_what_it_is_called_is_no_content(
    mirrored: Mirrored, lie: str
) -> None:
    mirrored.upstream.overrides[UPSTREAM_BLOB] = LIES[lie]
    await expect(mirrored, BLOB, 502, "UNAVAILABLE")


BAD_MANIFESTS: dict[str, Answer] = {
    "another manifest": answer(200, image({"b": b"2"}).manifest),
    "no JSON": answer(200, b"{{{"),
    "not an object": answer(200, b"[]"),
    "deep JSON": answer(200, b"[" * 100_000),
    "bytes": answer(200, b"\xff\xfe"),
    "schema 1": answer(200, b'{"schemaVersion": 1, "fsLayers": []}'),
    "an error page": answer(200, b"<html>log in</html>", content_type="text/html"),
    "too large": answer(200, b" " * (5 << 20)),
    "without an end": raw("HTTP/1.1 200 x", endless=b" " * 65536),
    "with another digest": answer(
        200, APP.manifest, docker_content_digest=digest_of(b"x"), content_type="text/plain"
    ),
    "with another type": answer(
        200, APP.manifest, content_type="application/vnd.oci.image.index.v1+json"
    ),
}


@pytest.mark.parametrize("lie", BAD_MANIFESTS)
@pytest.mark.parametrize("target", ["manifests/1", BY_DIGEST])
async def test_what_is_no_manifest_is_no_content(mirrored: Mirrored, lie: str, target: str) -> None:
    if lie == "another manifest" and target == "manifests/1":
        target = BY_DIGEST  # a tag may lead anywhere
    mirrored.upstream.overrides[f"{THERE}/{target}"] = BAD_MANIFESTS[lie]
    await expect(mirrored, f"{HERE}/{target}", 502, "UNAVAILABLE")


async def test_a_lie_is_forgotten_when_the_truth_comes(mirrored: Mirrored) -> None:
    mirrored.upstream.overrides[UPSTREAM_BLOB] = answer(200, b"x")
    await expect(mirrored, BLOB, 502, "UNAVAILABLE")
    mirrored.upstream.overrides.clear()
    again = await mirrored.client("GET", BLOB)
    assert (again.status, mirrored.upstream.count("GET", "")) == (502, 1)  # left alone for now
    await trio.sleep(float(again.headers["retry-after"]))
    assert (await mirrored.client("GET", BLOB)).body == LAYER


@pytest.mark.parametrize(
    ("stall", "status"),
    [
        (raw("HTTP/1.1 200 x\ncontent-length: 9", b"x", then_stall=True), 502),
        (raw("HTTP/1.1 200 x", b"x", then_stall=True), 502),
        (raw("HTTP/1.1 100 x", then_stall=True), 503),
    ],
)
async def test_an_upstream_that_stalls_is_given_up(
    tmp_path: Path, stall: Answer, status: int
) -> None:
    with trio.fail_after(60):
        async with open_mirror(tmp_path, timeout=0.2) as mirrored:
            mirrored.upstream.overrides[UPSTREAM_BLOB] = stall
            await expect(mirrored, BLOB, status, "UNAVAILABLE")


async def test_an_upstream_that_dribbles_is_given_up(tmp_path: Path) -> None:
    async def dribble(stream: trio.abc.Stream, _: Seen) -> None:
        await stream.send_all(b"HTTP/1.1 200 x\r\n\r\n")
        while True:
            await stream.send_all(b"x")
            await trio.sleep(0.02)

    with trio.fail_after(60):
        async with open_mirror(tmp_path, timeout=0.3) as mirrored:
            mirrored.upstream.overrides[UPSTREAM_BLOB] = dribble
            await expect(mirrored, BLOB, 502, "UNAVAILABLE")


# Where it sends us


def redirect(location: str, status: int = 307) -> Answer:
    return answer(status, location=location, connection="close")


async def test_a_redirect_to_a_blob_store_is_followed_without_the_token(
    mirrored: Mirrored,
) -> None:
    token_service(mirrored.upstream)
    async with open_upstream() as store:
        store.overrides["/store/1"] = answer(200, LAYER)
        mirrored.upstream.overrides[UPSTREAM_BLOB] = challenged(
            mirrored, redirect(f"{store.url}/store/1?signature=x")
        )
        got = await mirrored.client("GET", BLOB)
        assert got.body == LAYER
        assert [item.target for item in store.seen] == ["/store/1?signature=x"]
        assert "authorization" not in store.seen[0].headers
        assert "cookie" not in store.seen[0].headers


def challenged(mirrored: Mirrored, then: Answer) -> Answer:
    """Answer so only to who has the token."""

    async def send(stream: trio.abc.Stream, seen: Seen) -> None:
        is_known = seen.headers.get("authorization") == mirrored.upstream.authorization
        challenge = mirrored.upstream.challenge
        refusal = answer(401, www_authenticate=challenge, connection="close")
        await (then if is_known else refusal)(stream, seen)

    return send


async def test_a_redirect_within_the_upstream_keeps_the_token(mirrored: Mirrored) -> None:
    token_service(mirrored.upstream)
    mirrored.upstream.overrides[UPSTREAM_BLOB] = challenged(mirrored, redirect("/elsewhere"))
    mirrored.upstream.overrides["/elsewhere"] = challenged(mirrored, answer(200, LAYER))
    assert (await mirrored.client("GET", BLOB)).body == LAYER


@pytest.mark.parametrize(
    "location",
    [
        "http://localhost:1/x",  # another host, without https
        "https://localhost:1/x",  # a host with no public address
        "https://169.254.169.254/latest/meta-data",
        "https://[::1]:1/x",
        "ftp://127.0.0.1/x",
        "file:///etc/passwd",
        "https://",
        "https://user:password@127.0.0.1/x",
        "http://127.0.0.1:99999/x",
        "\x7f",
        "//",
    ],
)
async def test_a_redirect_to_where_it_must_not_lead_is_refused(
    mirrored: Mirrored, location: str
) -> None:
    mirrored.upstream.overrides[UPSTREAM_BLOB] = redirect(location)
    await expect(mirrored, BLOB, 502, "UNAVAILABLE")


async def test_redirects_are_counted(mirrored: Mirrored) -> None:
    mirrored.upstream.overrides[UPSTREAM_BLOB] = redirect(UPSTREAM_BLOB)
    await expect(mirrored, BLOB, 502, "UNAVAILABLE")
    assert len(mirrored.upstream.seen) == MAX_REDIRECTS + 1


async def test_a_blob_store_that_fails_is_an_error(mirrored: Mirrored) -> None:
    async with open_upstream() as store:
        for status, (answered, code) in {
            401: (404, "NAME_UNKNOWN"),
            403: (404, "NAME_UNKNOWN"),
            500: (502, "UNAVAILABLE"),  # the last: the repository is left alone after it
        }.items():
            store.overrides["/x"] = answer(status, www_authenticate='Bearer realm="https://x"')
            digest = digest_of(str(status).encode())
            mirrored.upstream.overrides[f"{THERE}/blobs/{digest}"] = redirect(f"{store.url}/x")
            got = await mirrored.client("GET", f"{HERE}/blobs/{digest}")
            assert (got.status, got.code) == (answered, code)
        assert all(item.path == "/x" for item in store.seen)


# Who it thinks we are


async def test_a_token_is_fetched_for_pulling_and_kept(mirrored: Mirrored) -> None:
    token_service(mirrored.upstream, expires_in=300)
    for target in ("manifests/1", f"blobs/{digest_of(LAYER)}"):
        assert await mirrored.client.status_of(f"{HERE}/{target}") == 200
    (asked,) = [item for item in mirrored.upstream.seen if item.path == "/token"]
    assert asked.query == {"scope": ["repository:acme/app:pull"], "service": ["up"]}
    assert "authorization" not in asked.headers  # there are no credentials for it


async def test_a_token_that_ended_is_replaced(mirrored: Mirrored) -> None:
    token_service(mirrored.upstream, token="first", expires_in=300)
    assert await mirrored.client.status_of(f"{HERE}/manifests/1") == 200
    token_service(mirrored.upstream, token="second", expires_in=300)
    assert await mirrored.client.status_of(BLOB) == 200
    assert mirrored.upstream.count("GET", "/token") == 2


async def test_the_credentials_go_to_their_host_only(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with open_mirror(tmp_path, with_password=True) as mirrored, open_upstream() as other:
            mirrored.upstream.add("acme/app", APP, "1")
            token_service(mirrored.upstream)
            assert await mirrored.client.status_of(f"{HERE}/manifests/1") == 200
            (asked,) = [item for item in mirrored.upstream.seen if item.path == "/token"]
            assert asked.headers["authorization"] == f"Basic {PASSWORD}"
            # The same upstream names a token service of somebody else, on its own host even.
            other.overrides["/token"] = answer(200, json.dumps({"token": "new"}).encode())
            mirrored.upstream.challenge = f'Bearer realm="{other.url}/token"'
            mirrored.upstream.authorization = "Bearer new"
            assert await mirrored.client.status_of(BLOB) == 200
            assert "authorization" not in other.seen[0].headers


async def test_a_password_is_given_where_one_is_asked_for(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with open_mirror(tmp_path, with_password=True) as mirrored:
            mirrored.upstream.add("acme/app", APP, "1")
            mirrored.upstream.challenge = 'Basic realm="x"'
            mirrored.upstream.authorization = f"Basic {PASSWORD}"
            assert await mirrored.client.status_of(f"{HERE}/manifests/1") == 200


@pytest.mark.parametrize(
    ("challenge", "status", "code"),
    [
        ("", 502, "UNAVAILABLE"),
        ("Bearer", 502, "UNAVAILABLE"),
        ("Bearer realm=x", 502, "UNAVAILABLE"),
        ('Bearer realm="http://localhost:1/token"', 502, "UNAVAILABLE"),
        ('Bearer realm="https://127.0.0.2/token"', 502, "UNAVAILABLE"),
        ('Bearer realm="file:///etc/passwd"', 502, "UNAVAILABLE"),
        ('Bearer realm="https://a:b@example.com/"', 502, "UNAVAILABLE"),
        (f'Bearer realm="{"x" * 5000}"', 502, "UNAVAILABLE"),
        ("Negotiate", 502, "UNAVAILABLE"),
        ('Basic realm="x"', 404, "NAME_UNKNOWN"),  # there is no password
    ],
)
async def test_a_challenge_that_cannot_be_met_is_an_error(
    mirrored: Mirrored, challenge: str, status: int, code: str
) -> None:
    mirrored.upstream.overrides[UPSTREAM_BLOB] = answer(
        401, www_authenticate=challenge, connection="close"
    )
    await expect(mirrored, BLOB, status, code)


@pytest.mark.parametrize(
    ("given", "status"),
    [
        (answer(200, b"{{"), 502),
        (answer(200, b"[]"), 502),
        (answer(200, b'{"token": 1}'), 502),
        (answer(200, b'{"token": "a\\r\\nx-evil: 1"}'), 502),
        (answer(200, b'{"token": ""}'), 502),
        (answer(200, b"[" * 60_000), 502),
        (answer(200, b" " * 100_000), 502),
        (answer(200, b'{"token": "wrong"}'), 404),
        (answer(401), 404),
        (answer(500), 502),
        (answer(429, retry_after="7"), 429),
    ],
)
async def test_a_token_service_that_gives_no_token_is_an_error(
    mirrored: Mirrored, given: Answer, status: int
) -> None:
    token_service(mirrored.upstream)
    mirrored.upstream.overrides["/token"] = given
    got = await mirrored.client("GET", BLOB)
    assert got.status == status
    assert mirrored.upstream.count("GET", "/token") == 1


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("0", 1), ("30", 30), ("999999", 3600), ("soon", 60), ("-1", 60), ("9" * 30, 60)],
)
async def test_a_wish_to_be_left_alone_is_kept_in_bounds(
    mirrored: Mirrored, header: str, seconds: int
) -> None:
    mirrored.upstream.overrides[UPSTREAM_BLOB] = answer(429, retry_after=header)
    got = await mirrored.client("GET", BLOB)
    assert (got.status, got.headers["retry-after"]) == (429, str(seconds))
