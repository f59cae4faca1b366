"""`/v2/<name>/blobs/uploads/…`: pushing blobs, in one request or in many, and mounting them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus

from supervisor.model.oci import (
    Algorithm,
    Digest,
    algorithm_of,
    parse_repository,
    parse_upload_id,
)
from supervisor.registry.access import TenantOfBuild, may_mount_from
from supervisor.registry.blobs import BlobStore
from supervisor.registry.call import Call, require_digest
from supervisor.registry.errors import (
    Code,
    Header,
    RegistryError,
    digest_invalid,
    name_invalid,
    upload_unknown,
)
from supervisor.registry.facts import Facts
from supervisor.registry.http import Request, header
from supervisor.registry.intake import finish_upload
from supervisor.registry.ranges import Span, parse_chunk_range
from supervisor.registry.sound import SoundBlobs
from supervisor.registry.uploads import DigestMismatch, Superseded, Upload, Uploads


class UploadRoutes:
    """Takes blobs."""

    def __init__(
        self,
        facts: Facts,
        store: BlobStore,
        sound: SoundBlobs,
        uploads: Uploads,
        tenant_of_build: TenantOfBuild,
    ) -> None:
        self._facts = facts
        self._store = store
        self._sound = sound
        self._uploads = uploads
        self._tenant_of_build = tenant_of_build

    async def post(self, call: Call) -> None:
        """Mount a blob, take a whole one, or begin an upload."""
        request = call.request
        if (mounted := request.parameter("mount")) is not None:
            digest = require_digest(mounted)
            if await self._mount(call, digest):
                await _answer_created(call, digest)
                return
        if (named := request.parameter("digest")) is not None:
            await self._take_whole(call, require_digest(named))
            return
        algorithm = _parse_algorithm(request.parameter("digest-algorithm"))
        record = await self._facts.start_upload(call.repository)
        if record is None:
            raise RegistryError(
                HTTPStatus.TOO_MANY_REQUESTS,
                Code.TOOMANYREQUESTS,
                "too many uploads are open in this repository; finish or cancel some",
            )
        upload = self._uploads.create(call.repository, record.id)
        upload.expect(algorithm)
        await request.answer(HTTPStatus.ACCEPTED, headers=_progress(call.repository, upload))

    async def patch(self, call: Call) -> None:
        """Take a chunk."""
        async with self._using(call) as upload:
            await _append(call, upload)
            headers = _progress(call.repository, upload)
        await call.request.answer(HTTPStatus.ACCEPTED, headers=headers)

    async def put(self, call: Call) -> None:
        """Take the last chunk, if there is one, and make the blob."""
        named = call.request.parameter("digest")
        if named is None:
            raise digest_invalid("name the digest of the whole blob: ?digest=<digest>")
        digest = require_digest(named)
        async with self._using(call) as upload:
            upload.expect(algorithm_of(digest))
            await _append(call, upload)
            try:
                await finish_upload(self._facts, self._store, call.repository, upload, digest)
            except FileNotFoundError as exc:
                raise upload_unknown() from exc  # cancelled meanwhile
            except DigestMismatch:
                is_blob = False
            else:
                is_blob = True
                self._uploads.release(upload)
        if not is_blob:
            self._uploads.discard(upload.id)
            await self._facts.end_upload(upload.id)
            raise _mismatch()
        await _answer_created(call, digest)

    async def get(self, call: Call) -> None:
        """Say how far the upload has come."""
        upload = await self._open(call)
        headers = _progress(call.repository, upload)
        await call.request.answer(HTTPStatus.NO_CONTENT, headers=headers)

    async def delete(self, call: Call) -> None:
        """Cancel the upload."""
        upload = await self._open(call)
        upload.interrupt()
        await self._facts.end_upload(upload.id)
        self._uploads.discard(upload.id)
        await call.request.answer(HTTPStatus.NO_CONTENT)

    async def _open(self, call: Call) -> Upload:
        upload_id = parse_upload_id(call.reference)
        if upload_id is None:
            raise upload_unknown()
        if (upload := self._uploads.find(call.repository, upload_id)) is not None:
            return upload
        if await self._facts.find_upload(call.repository, upload_id) is None:
            raise upload_unknown()
        return await self._uploads.resume(call.repository, upload_id)

    @asynccontextmanager
    async def _using(self, call: Call) -> AsyncIterator[Upload]:
        """Have an upload for this request alone. One that still receives for it is interrupted."""
        while True:
            upload = await self._open(call)
            upload.interrupt()
            async with upload.lock:
                # While this request waited, the upload may have been finished, or dropped from
                # memory: then its state is another object's now.
                if self._uploads.find(call.repository, upload.id) is upload:
                    yield upload
                    return

    async def _mount(self, call: Call, digest: Digest) -> bool:
        """Link a blob that is in the registry already. False: the client must send it."""
        if (source := call.request.parameter("from")) is not None:
            parsed = parse_repository(source)
            if parsed is None:
                raise name_invalid()
            candidates = [parsed]
        else:
            candidates = list(await self._facts.find_linking_repositories(digest))
        for repository in candidates:
            if not await may_mount_from(call.principal, repository, self._tenant_of_build):
                continue
            blob = await self._facts.find_blob(repository, digest)
            if blob is None:
                continue
            waiting = call.request.unless_gone if call.request.has_ended else None
            if not await self._sound.is_sound(repository, blob, waiting):
                return False  # what is damaged is mended by whoever sends it
            if await self._facts.mount_blob(repository, call.repository, digest) is not None:
                return True
        return False

    async def _take_whole(self, call: Call, digest: Digest) -> None:
        upload = self._uploads.create(call.repository)
        try:
            async with upload.lock:
                upload.expect(algorithm_of(digest))
                await upload.append(call.request)
                await finish_upload(self._facts, self._store, call.repository, upload, digest)
        except DigestMismatch as exc:
            raise _mismatch() from exc
        finally:
            self._uploads.discard(upload.id)
        await _answer_created(call, digest)


async def _append(call: Call, upload: Upload) -> None:
    body = _checked_body(call, upload)
    try:
        await upload.append(body)
    except Superseded as exc:
        raise RegistryError(
            HTTPStatus.CONFLICT,
            Code.BLOB_UPLOAD_INVALID,
            "another request goes on with this upload",
        ) from exc
    body.check_complete()


class _Body:
    """A request's body, held to the length that its Content-Range names."""

    def __init__(self, request: Request, expected: int | None) -> None:
        self._request = request
        self._expected = expected
        self._seen = 0

    async def read_batch(self, at_least: int) -> list[bytes]:
        """Return more chunks. Raises RegistryError when they are more than announced."""
        chunks = await self._request.read_batch(at_least)
        self._seen += sum(map(len, chunks))
        if self._expected is not None and self._seen > self._expected:
            raise _wrong_length()
        return chunks

    def check_complete(self) -> None:
        """Raise RegistryError if there was less than announced."""
        if self._expected is not None and self._seen < self._expected:
            raise _wrong_length()


def _checked_body(call: Call, upload: Upload) -> _Body:
    """Return the body of a chunk that belongs where the upload stands. Raises RegistryError."""
    text = call.request.header(b"content-range")
    if text is None:
        return _Body(call.request, None)
    span: Span | None = parse_chunk_range(text)
    if span is None:
        raise RegistryError(
            HTTPStatus.BAD_REQUEST,
            Code.BLOB_UPLOAD_INVALID,
            "the Content-Range of a chunk is <first byte>-<last byte>",
        )
    if span.start != upload.size_bytes:
        raise RegistryError(
            HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
            Code.BLOB_UPLOAD_INVALID,
            f"the next chunk begins at byte {upload.size_bytes}",
            headers=_progress(call.repository, upload),
        )
    length = call.request.content_length()
    if length is not None and length != span.length:
        raise _wrong_length()
    return _Body(call.request, span.length)


def _parse_algorithm(text: str | None) -> Algorithm:
    if text is None:
        return Algorithm.SHA256
    try:
        return Algorithm(text)
    except ValueError as exc:
        raise digest_invalid("digest-algorithm is sha256 or sha512") from exc


def _progress(repository: str, upload: Upload) -> list[Header]:
    return [
        header("location", f"/v2/{repository}/blobs/uploads/{upload.id}"),
        header("range", f"0-{max(0, upload.size_bytes - 1)}"),
        header("docker-upload-uuid", upload.id),
    ]


async def _answer_created(call: Call, digest: Digest) -> None:
    headers = [
        header("location", f"/v2/{call.repository}/blobs/{digest}"),
        header("docker-content-digest", digest),
    ]
    await call.request.answer(HTTPStatus.CREATED, headers=headers)


def _mismatch() -> RegistryError:
    return digest_invalid("the content does not have this digest; nothing was stored")


def _wrong_length() -> RegistryError:
    return RegistryError(
        HTTPStatus.BAD_REQUEST,
        Code.SIZE_INVALID,
        "the length of the chunk is not that of its Content-Range",
    )
