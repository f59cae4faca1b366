"""The registry under its real server: sockets, back-pressure, memory, connections that break."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from supervisor.model.oci import RepositoryName
from supervisor.model.registry import BlobInfo
from tests.registry.images import digest_of
from tests.registry.serve import Served, api_token, serve_registry

MIB = 1 << 20


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    with trio.fail_after(120):
        async with serve_registry(tmp_path / "data") as registry:
            yield registry


async def connect(served: Served) -> trio.SocketStream:
    host, _, port = served.address.partition(":")
    return await trio.open_tcp_stream(host, int(port))


def head(
    served: Served, method: str, target: str, *headers: str, token: str | None = None
) -> bytes:
    token = api_token() if token is None else token
    lines = [
        f"{method} {target} HTTP/1.1",
        f"Host: {served.address}",
        f"Authorization: Bearer {token}",
        *headers,
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


async def read_until(stream: trio.SocketStream, end: bytes) -> bytes:
    seen = b""
    while end not in seen:
        piece = await stream.receive_some(65536)
        if not piece:
            break
        seen += piece
    return seen


async def request(served: Served, method: str, target: str, *headers: str) -> bytes:
    async with await connect(served) as stream:
        await stream.send_all(head(served, method, target, "Connection: close", *headers))
        return await read_until(stream, b"nothing ends like this")


async def begin(served: Served) -> str:
    answer = await request(served, "POST", "/v2/acme/app/blobs/uploads/", "Content-Length: 0")
    assert answer.startswith(b"HTTP/1.1 202")
    (location,) = [
        line.partition(b": ")[2].decode()
        for line in answer.split(b"\r\n")
        if line.lower().startswith(b"location:")
    ]
    return location


async def test_memory_does_not_grow_with_the_blob(served: Served) -> None:
    """Both ways, by more than the buffers of one transfer."""
    size = 256 * MIB
    piece = os.urandom(MIB)
    whole = hashlib.sha256()
    for _ in range(size // MIB):
        whole.update(piece)
    digest = f"sha256:{whole.hexdigest()}"
    location = await begin(served)
    before = resident_bytes()
    async with await connect(served) as stream:
        target = f"{location}?digest={digest}"
        await stream.send_all(head(served, "PUT", target, f"Content-Length: {size}"))
        for _ in range(size // MIB):
            await stream.send_all(piece)
        answer = await read_until(stream, b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 201")
        await stream.send_all(head(served, "GET", f"/v2/acme/app/blobs/{digest}"))
        received = 0
        while received < size:
            received += len(await stream.receive_some(MIB))
    assert resident_bytes() - before < 32 * MIB


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


async def test_a_connection_that_breaks_leaves_an_upload_to_go_on_with(served: Served) -> None:
    content = os.urandom(3 * MIB)
    location = await begin(served)
    stream = await connect(served)
    await stream.send_all(head(served, "PATCH", location, f"Content-Length: {len(content)}"))
    await stream.send_all(content[: 2 * MIB])
    await stream.aclose()
    received = b"range: 0-%d\r\n" % (2 * MIB - 1)
    while received not in await request(served, "GET", location):  # noqa: ASYNC110
        await trio.sleep(0.01)
    digest = digest_of(content)
    async with await connect(served) as stream:
        rest = content[2 * MIB :]
        target = f"{location}?digest={digest}"
        await stream.send_all(head(served, "PUT", target, f"Content-Length: {len(rest)}") + rest)
        assert (await read_until(stream, b"\r\n\r\n")).startswith(b"HTTP/1.1 201")


async def test_a_refusal_is_readable_while_the_client_still_sends(served: Served) -> None:
    """A client that sends its body before it looks gets the answer, not a reset connection."""
    async with await connect(served) as stream:
        request_head = head(
            served,
            "POST",
            "/v2/evil/app/blobs/uploads/?digest=" + digest_of(b"x"),
            f"Content-Length: {4 * MIB}",
        )
        await stream.send_all(request_head)
        await stream.send_all(bytes(4 * MIB))
        answer = await read_until(stream, b"DENIED")
    assert answer.startswith(b"HTTP/1.1 403")
    assert b"DENIED" in answer


async def test_requests_share_a_connection(served: Served) -> None:
    content = b"x" * 1000
    digest = digest_of(content)
    async with await connect(served) as stream:
        for _ in range(3):
            target = f"/v2/acme/app/blobs/uploads/?digest={digest}"
            await stream.send_all(
                head(served, "POST", target, f"Content-Length: {len(content)}") + content
            )
            assert (await read_until(stream, b"\r\n\r\n")).startswith(b"HTTP/1.1 201")
            await stream.send_all(head(served, "HEAD", f"/v2/acme/app/blobs/{digest}"))
            assert (await read_until(stream, b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
            await stream.send_all(head(served, "GET", "/v2/acme/none/tags/list"))
            assert (await read_until(stream, b"}]}")).startswith(b"HTTP/1.1 404")


async def test_a_reader_that_hangs_up_frees_its_file(served: Served) -> None:
    content = os.urandom(32 * MIB)
    digest = digest_of(content)
    store = served.actor.store
    async with store.keeping(digest):
        await store.put(digest, content)
        upload = served.actor.uploads.create(RepositoryName("acme/app"))
        await served.handle.link_blob(
            RepositoryName("acme/app"), BlobInfo(digest, len(content)), upload.id
        )
    stream = await connect(served)
    await stream.send_all(head(served, "GET", f"/v2/acme/app/blobs/{digest}"))
    await stream.receive_some(1000)
    path = str(store.path(digest))
    assert path in open_files()
    await stream.aclose()
    while path in open_files():  # noqa: ASYNC110 - another task closes it, in its own time
        await trio.sleep(0.01)


def open_files() -> set[str]:
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found.add(str(entry.readlink()))
        except OSError:
            continue
    return found


async def test_pushes_of_one_blob_at_once_do_not_disturb_each_other(served: Served) -> None:
    content = os.urandom(2 * MIB)
    digest = digest_of(content)
    answers = []

    async def push() -> None:
        async with await connect(served) as stream:
            target = f"/v2/acme/app/blobs/uploads/?digest={digest}"
            await stream.send_all(
                head(served, "POST", target, f"Content-Length: {len(content)}") + content
            )
            answers.append((await read_until(stream, b"\r\n\r\n"))[:12])

    async with trio.open_nursery() as nursery:
        for _ in range(16):
            nursery.start_soon(push)
    assert answers == [b"HTTP/1.1 201"] * 16
    assert served.actor.store.path(digest).read_bytes() == content
    assert list((served.root / "uploads").iterdir()) == []


async def test_two_credentials_are_none(served: Served) -> None:
    again = f"Authorization: Bearer {api_token()}"
    assert (await request(served, "GET", "/v2/")).startswith(b"HTTP/1.1 200")
    answer = await request(served, "GET", "/v2/", again)
    assert answer.startswith(b"HTTP/1.1 401")
    assert b"more than one" in answer
