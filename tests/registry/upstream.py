"""An upstream registry that does what it is told: serve images, ask for tokens, lie, or stall."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

import trio
import trio.testing

from supervisor.model.oci import Digest
from tests.registry.images import Image, digest_of

PASSWORD = base64.b64encode(b"operator:secret").decode()


@dataclass(frozen=True)
class Seen:
    """A request that arrived."""

    method: str
    target: str
    headers: Mapping[str, str]

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    @property
    def query(self) -> Mapping[str, Sequence[str]]:
        return parse_qs(urlsplit(self.target).query)


Answer = Callable[[trio.abc.Stream, Seen], Awaitable[None]]


def answer(status: int, body: bytes = b"", **headers: str) -> Answer:
    """Return a plain answer; `_` in a header's name is a dash."""
    lines = {name.replace("_", "-"): value for name, value in headers.items()}
    lines.setdefault("content-length", str(len(body)))

    async def send(stream: trio.abc.Stream, seen: Seen) -> None:
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        content = b"" if seen.method == "HEAD" else body
        await stream.send_all(f"HTTP/1.1 {status} x\r\n{head}\r\n".encode() + content)

    return send


@dataclass
class FakeUpstream:
    """The server. `overrides` by path come before anything else."""

    address: str = ""
    seen: list[Seen] = field(default_factory=list)
    overrides: dict[str, Answer] = field(default_factory=dict)
    manifests: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    challenge: str = ""
    """Not empty: what is asked of requests without the right Authorization."""
    authorization: str = ""
    behind: str = ""
    """Not empty: where a real registry is, which answers everything else."""
    listening: trio.CancelScope = field(default_factory=trio.CancelScope)

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    def add(self, repository: str, image: Image, tag: str = "") -> Digest:
        """Have an image."""
        for child in image.children:
            self.add(repository, child)
        for content in image.blobs:
            self.blobs[f"/v2/{repository}/blobs/{digest_of(content)}"] = content
        for reference in filter(None, (image.digest, tag)):
            path = f"/v2/{repository}/manifests/{reference}"
            self.manifests[path] = image.media_type, image.manifest
        return image.digest

    def count(self, method: str, ending: str) -> int:
        """Return how often something was asked for."""
        return sum(item.method == method and item.path.endswith(ending) for item in self.seen)

    async def listen(self, listeners: Sequence[trio.SocketListener]) -> None:
        """Serve until `stop`; then nobody answers at the address."""
        with self.listening:
            await trio.serve_listeners(self.serve, listeners)

    async def stop(self) -> None:
        """Be gone."""
        self.listening.cancel(reason="the upstream goes down")
        await trio.testing.wait_all_tasks_blocked()

    async def serve(self, stream: trio.SocketStream) -> None:
        """Answer one request of a connection, then close it."""
        head = bytearray()
        async with stream:
            while b"\r\n\r\n" not in head:
                piece = await stream.receive_some()
                if not piece:
                    return
                head += piece
            seen = _parse(bytes(head))
            self.seen.append(seen)
            try:
                await self._answer(seen)(stream, seen)
            except trio.BrokenResourceError:
                return  # the mirror had enough of it

    def _answer(self, seen: Seen) -> Answer:
        if seen.path in self.overrides:
            return self.overrides[seen.path]
        if self.challenge and seen.headers.get("authorization") != self.authorization:
            return answer(401, www_authenticate=self.challenge, connection="close")
        if self.behind:
            return self._forward
        if seen.path in self.manifests:
            media_type, content = self.manifests[seen.path]
            return answer(
                200,
                content,
                content_type=media_type,
                docker_content_digest=digest_of(content),
                connection="close",
            )
        if seen.path in self.blobs:
            return answer(200, self.blobs[seen.path], connection="close")
        return answer(404, b'{"errors": []}', connection="close")

    async def _forward(self, stream: trio.abc.Stream, seen: Seen) -> None:
        own = {"authorization", "connection"}
        headers = [f"{name}: {value}" for name, value in seen.headers.items() if name not in own]
        head = [f"{seen.method} {seen.target} HTTP/1.1", *headers, "connection: close", "", ""]
        host, _, port = self.behind.partition(":")
        async with await trio.open_tcp_stream(host, int(port)) as registry:
            await registry.send_all("\r\n".join(head).encode("latin-1"))
            async for piece in registry:
                await stream.send_all(piece)


def token_service(upstream: FakeUpstream, token: str = "t0ken", **more: object) -> None:
    """Make the upstream ask for tokens, and give them at /token."""
    upstream.challenge = f'Bearer realm="{upstream.url}/token",service="up",scope="repository:x:*"'
    upstream.authorization = f"Bearer {token}"
    body = json.dumps({"token": token, **more}).encode()
    upstream.overrides["/token"] = answer(200, body, connection="close")


@asynccontextmanager
async def open_upstream() -> AsyncIterator[FakeUpstream]:
    """Run one on a free port of loopback."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    upstream = FakeUpstream()
    upstream.address = "{}:{}".format(*listeners[0].socket.getsockname()[:2])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(upstream.listen, listeners)
        yield upstream
        nursery.cancel_scope.cancel(reason="the test is over")


def _parse(head: bytes) -> Seen:
    first, *lines = head.decode("latin-1").split("\r\n\r\n")[0].split("\r\n")
    method, target, _ = first.split(" ")
    pairs = (line.partition(":") for line in lines)
    return Seen(method, target, {name.lower(): value.strip() for name, _, value in pairs})
