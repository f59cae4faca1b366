"""The body of a submission: a multipart form whose source streams, whatever its size."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Protocol, Self


class Source(Protocol):
    """Something that hands out the bytes of an archive."""

    async def receive(self) -> bytes:
        """Return the next piece, `b""` at the end. Raises CtlError if there is none to be had."""
        ...


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """What a submission says beside its source; the names are those of the API. None: not said."""

    dockerfile: str | None = None
    dockerfile_path: str | None = None
    target: str | None = None
    build_args: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    secrets: tuple[Mapping[str, str], ...] = ()
    source_hash: str | None = None
    base_image_digest: str | None = None
    cache_scope: str | None = None
    global_cache_key: str | None = None
    timeout_seconds: int | None = None
    memory_mb: int | None = None
    cpus: int | None = None
    network_mode: str | None = None
    allowed_domains: tuple[str, ...] = ()
    no_cache: bool = False
    image_name: str | None = None

    def as_parts(self) -> dict[str, str]:
        """Return the form's text parts: only what was said, structures as JSON."""
        parts = {}
        for spec in fields(self):
            value = getattr(self, spec.name)
            if value is None or value is False or value == () or value == {}:
                continue
            if isinstance(value, str):
                parts[spec.name] = value
            else:
                parts[spec.name] = json.dumps(value)
        return parts


class MultipartBody:
    """The form as an asynchronous iterator of bytes: the texts, then the source as it comes."""

    def __init__(self, parts: Mapping[str, str], source: Source) -> None:
        self._boundary = f"hypeman-{secrets.token_hex(16)}"
        texts = [_head(self._boundary, name) + f"{text}\r\n" for name, text in parts.items()]
        file = _head(self._boundary, "source", "source.tar.gz")
        self._head = ("".join(texts) + file).encode()
        self._source = source
        self._is_over = False

    @property
    def content_type(self) -> str:
        """The header that goes with the body."""
        return f"multipart/form-data; boundary={self._boundary}"

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        """Return the next piece of the body."""
        if self._head:
            head, self._head = self._head, b""
            return head
        if self._is_over:
            raise StopAsyncIteration
        data = await self._source.receive()
        if data:
            return data
        self._is_over = True
        return f"\r\n--{self._boundary}--\r\n".encode()


def _head(boundary: str, name: str, filename: str = "") -> str:
    file = f'; filename="{filename}"\r\nContent-Type: application/gzip' if filename else ""
    return f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'
