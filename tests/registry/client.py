"""A client that calls the ASGI application directly: exact, fast, and able to misbehave."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import trio

from supervisor.model.oci import Digest
from supervisor.registry.http import AsgiApp
from tests.registry.images import Image, digest_of

CHUNK = 64 << 10


@dataclass
class Answer:
    """What came back."""

    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    all_headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    is_complete: bool = False

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The code of the first error; fails unless the body is the specification's error form."""
        (error,) = self.json["errors"]
        assert set(error) <= {"code", "message", "detail"}
        assert self.headers["content-type"] == "application/json"
        value: str = error["code"]
        return value


def basic(token: str, user: str = "x") -> str:
    """Return an Authorization value with the token as password."""
    return "Basic " + base64.b64encode(f"{user}:{token}".encode()).decode()


class Client:
    """One user of the registry."""

    def __init__(self, app: AsgiApp, token: str | None = None, host: str = "registry.test") -> None:
        self.app = app
        self.host = host
        self.authorization = None if token is None else f"Bearer {token}"

    async def __call__(
        self,
        method: str,
        target: str,
        body: bytes | Iterable[bytes] = b"",
        *,
        headers: Mapping[str, str] | None = None,
        vanish_after: int | None = None,
        vanish_when: trio.Event | None = None,
        stalled: trio.Event | None = None,
        on_piece: Callable[[bytes], None] | None = None,
    ) -> Answer:
        """Make one request.

        `vanish_after`: after that many chunks of the body the client is gone, though not before
        `vanish_when`. `stalled`: the body
        never ends, and the event is set when all chunks were taken.
        """
        path, _, query = target.partition("?")
        given = {"host": self.host, **(headers or {})}
        if self.authorization is not None:
            given.setdefault("authorization", self.authorization)
        if isinstance(body, bytes):
            if body or method in ("PUT", "POST", "PATCH"):
                given.setdefault("content-length", str(len(body)))
            chunks = [body[i : i + CHUNK] for i in range(0, len(body), CHUNK)]
        else:
            given.setdefault("transfer-encoding", "chunked")
            chunks = list(body)
        messages: list[dict[str, Any]] = [
            {"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks
        ]
        messages.append({"type": "http.request", "body": b"", "more_body": False})
        if vanish_after is not None:
            messages = [*messages[:vanish_after], {"type": "http.disconnect"}]
        pending = iter(messages)
        answer = Answer()

        async def receive() -> Mapping[str, Any]:
            await trio.lowlevel.checkpoint()
            message = next(pending, None)
            if message is None or (stalled is not None and not message["more_body"]):
                if stalled is not None:
                    stalled.set()
                await trio.sleep_forever()
            if message["type"] == "http.disconnect" and vanish_when is not None:
                await vanish_when.wait()
            return message

        async def send(message: dict[str, Any]) -> None:
            await trio.lowlevel.checkpoint()
            if message["type"] == "http.response.start":
                answer.status = message["status"]
                answer.all_headers = [(k.decode(), v.decode()) for k, v in message["headers"]]
                answer.headers = dict(answer.all_headers)
                return
            if on_piece is not None:
                on_piece(message["body"])
            answer.body += message["body"]
            answer.is_complete = not message["more_body"]

        scope = {
            "type": "http",
            "method": method,
            "scheme": "http",
            "path": unquote(path),
            "query_string": query.encode(),
            "headers": [(k.encode(), v.encode("latin-1")) for k, v in given.items()],
            "state": {},
        }
        await self.app(scope, receive, send)
        return answer

    async def push_blob(self, repository: str, content: bytes) -> Digest:
        """Push a blob in one request."""
        digest = digest_of(content)
        answer = await self("POST", f"/v2/{repository}/blobs/uploads/?digest={digest}", content)
        assert answer.status == 201, answer
        return digest

    async def push_manifest(self, repository: str, image: Image, reference: str = "") -> Answer:
        """Put a manifest, by digest unless a tag is given."""
        return await self(
            "PUT",
            f"/v2/{repository}/manifests/{reference or image.digest}",
            image.manifest,
            headers={"content-type": image.media_type},
        )

    async def push(self, repository: str, image: Image, tag: str = "") -> Digest:
        """Push an image with all that it needs."""
        for child in image.children:
            await self.push(repository, child)
        for content in image.blobs:
            await self.push_blob(repository, content)
        answer = await self.push_manifest(repository, image, tag)
        assert answer.status == 201, answer
        return image.digest

    async def begin(self, repository: str, query: str = "") -> str:
        """Begin an upload and return its location."""
        answer = await self("POST", f"/v2/{repository}/blobs/uploads/{query}")
        assert answer.status == 202, answer
        return answer.headers["location"]

    async def status_of(self, target: str, method: str = "GET") -> int:
        """Return the status of a request without a body."""
        return (await self(method, target)).status
