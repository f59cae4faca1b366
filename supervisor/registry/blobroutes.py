"""`/v2/<name>/blobs/<digest>`: reading and removing blobs."""

from __future__ import annotations

import os
from functools import partial
from http import HTTPStatus

import trio

from supervisor.model.oci import Digest
from supervisor.model.registry import BlobInfo, Removal
from supervisor.registry.blobs import BlobStore
from supervisor.registry.call import Call
from supervisor.registry.errors import (
    Code,
    Header,
    RegistryError,
    blob_damaged,
    blob_unknown,
    unsupported,
)
from supervisor.registry.facts import Facts
from supervisor.registry.http import Request, header
from supervisor.registry.mirror import Mirror
from supervisor.registry.ranges import Span, Unsatisfiable, parse_byte_range
from supervisor.registry.sound import SoundBlobs
from supervisor.registry.upstream_errors import UpstreamError

PIECE_BYTES = 1 << 20
"""What is read from the disk, and sent, at a time."""
SMALL_BYTES = 32 << 10
"""What is no longer goes out in one write with its head."""


class BlobRoutes:
    """Answers requests for blobs that a repository links."""

    def __init__(self, facts: Facts, mirror: Mirror, store: BlobStore, sound: SoundBlobs) -> None:
        self._facts = facts
        self._mirror = mirror
        self._store = store
        self._sound = sound

    async def head(self, call: Call) -> None:
        """Say whether the blob is there, and how large it is."""
        try:
            blob = await self._find(call)
        except UpstreamError as exc:
            # Asked by whoever is about to push it, also when there is no way to the upstream.
            raise blob_unknown() from exc
        # Whoever is told that it is there does not send it, and only sending it mends it.
        if not await self._sound.is_sound(call.repository, blob, call.request.unless_gone):
            raise blob_damaged()
        await self._facts.note_use(call.repository, blob)
        await call.request.start(HTTPStatus.OK, _headers(blob.digest, blob.size_bytes))
        await call.request.send_piece(b"", more=False)

    async def get(self, call: Call) -> None:
        """Send the blob, or the part of it that was asked for."""
        blob = await self._find(call)
        span = _wanted(call.request, blob)
        headers = _headers(blob.digest, blob.size_bytes if span is None else span.length)
        status = HTTPStatus.OK
        if span is not None:
            status = HTTPStatus.PARTIAL_CONTENT
            text = f"bytes {span.start}-{span.stop - 1}/{blob.size_bytes}"
            headers.append(header("content-range", text))
        try:
            fd = await self._sound.open(call.repository, blob, call.request.unless_gone)
        except FileNotFoundError as exc:
            raise blob_damaged() from exc  # or removed since it was found
        try:
            await self._send(call.request, fd, span or Span(0, blob.size_bytes), status, headers)
        finally:
            os.close(fd)

    async def delete(self, call: Call) -> None:
        """Remove the blob from the repository; its bytes go by garbage collection."""
        match await self._facts.unlink_blob(call.repository, call.digest):
            case Removal.NOT_FOUND:
                raise blob_unknown()
            case Removal.IN_USE:
                raise unsupported("a manifest of this repository needs the blob; delete that first")
        await call.request.answer(HTTPStatus.ACCEPTED)

    async def _find(self, call: Call) -> BlobInfo:
        repository, digest = call.repository, call.digest
        if self._mirror.covers(repository):
            look = partial(self._mirror.find_blob, repository, digest)
            blob = await call.request.unless_gone(look)
        else:
            blob = await self._facts.find_blob(repository, digest)
        if blob is None:
            raise blob_unknown()
        return blob

    async def _send(
        self, request: Request, fd: int, span: Span, status: int, headers: list[Header]
    ) -> None:
        if request.can_send_files and span.length > SMALL_BYTES:
            await request.start(status, headers)
            await self._store.send(request.send_file, fd, span.start, span.length)
            await request.send_piece(b"", more=False)
            return
        piece = await self._store.read(fd, span.start, min(span.length, PIECE_BYTES))
        await request.start(status, headers)
        if len(piece) == span.length:
            await request.send_piece(piece, more=False)
            return
        async with trio.open_nursery() as nursery:
            # The server swallows what is sent to a client that has gone: only this notices.
            nursery.start_soon(_cancel_when_closed, request, nursery.cancel_scope)
            offset = span.start + len(piece)
            while offset < span.stop:
                await request.send_piece(piece, more=True)
                piece = await self._store.read(fd, offset, min(span.stop - offset, PIECE_BYTES))
                assert piece, "a blob's file is shorter than its size"
                offset += len(piece)
            await request.send_piece(piece, more=False)
            nursery.cancel_scope.cancel(reason="the blob is sent")


async def _cancel_when_closed(request: Request, scope: trio.CancelScope) -> None:
    await request.wait_closed()
    scope.cancel(reason="the client is gone")


def _wanted(request: Request, blob: BlobInfo) -> Span | None:
    asked = request.header(b"range")
    if asked is None:
        return None
    try:
        return parse_byte_range(asked, blob.size_bytes)
    except Unsatisfiable as exc:
        raise RegistryError(
            HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
            Code.SIZE_INVALID,
            f"the range is outside of the blob's {blob.size_bytes} bytes",
            headers=[header("content-range", f"bytes */{blob.size_bytes}")],
        ) from exc


def _headers(digest: Digest, length: int) -> list[Header]:
    return [
        (b"content-type", b"application/octet-stream"),
        (b"accept-ranges", b"bytes"),
        (b"content-length", b"%d" % length),
        header("docker-content-digest", digest),
        header("etag", f'"{digest}"'),
    ]
