"""`/v2/<name>/manifests/<tag or digest>`: the entries through which content is found."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from http import HTTPStatus

from supervisor.model.oci import (
    Digest,
    RepositoryName,
    Tag,
    algorithm_of,
    parse_digest,
    parse_tag,
)
from supervisor.model.registry import ManifestInfo, NewManifest, PutRefused, Removal
from supervisor.registry.blobs import BlobStore
from supervisor.registry.call import Call, require_digest
from supervisor.registry.errors import (
    Code,
    Header,
    RegistryError,
    digest_invalid,
    manifest_damaged,
    manifest_invalid,
    manifest_unknown,
    unsupported,
)
from supervisor.registry.facts import Facts
from supervisor.registry.http import header
from supervisor.registry.media import MAX_MANIFEST_BYTES, ManifestError, parse_manifest
from supervisor.registry.mirror import Mirror

_NAMED_IN_ERRORS = 20


class ManifestRoutes:
    """Takes, shows and removes manifests and tags."""

    def __init__(self, facts: Facts, mirror: Mirror, store: BlobStore) -> None:
        self._facts = facts
        self._mirror = mirror
        self._store = store

    async def head(self, call: Call) -> None:
        """Say which manifest it is, and how large."""
        manifest, _ = await self._read(call)
        await call.request.start(HTTPStatus.OK, _headers(manifest))
        await call.request.send_piece(b"", more=False)

    async def get(self, call: Call) -> None:
        """Send the manifest as it was pushed."""
        manifest, content = await self._read(call)
        await call.request.start(HTTPStatus.OK, _headers(manifest))
        await call.request.send_piece(content, more=False)

    async def put(self, call: Call) -> None:
        """Store a manifest whose content is in the repository, and tag it."""
        request = call.request
        named, tags = _parse_target(call)
        content = await request.read_all(MAX_MANIFEST_BYTES)
        digest = _digest_of(content, named)
        try:
            manifest = parse_manifest(content, request.header(b"content-type"), digest)
        except ManifestError as exc:
            raise manifest_invalid(str(exc)) from exc
        await self._require_references(call.repository, manifest)
        async with self._store.keeping(digest):
            await self._store.put(digest, content)
            refused = await self._facts.put_manifest(call.repository, manifest, tags)
        if refused is not None:
            await self._facts.drop_if_unused(digest)
            raise _refusal(refused)
        headers = [
            header("location", f"/v2/{call.repository}/manifests/{digest}"),
            header("docker-content-digest", digest),
        ]
        if manifest.subject is not None:
            headers.append(header("oci-subject", manifest.subject))
        if named is not None:
            headers += [header("oci-tag", tag) for tag in tags]
        await request.answer(HTTPStatus.CREATED, headers=headers)

    async def delete(self, call: Call) -> None:
        """Remove a tag, or a manifest with all its tags."""
        digest, tag = _parse_reference(call)
        if tag is not None:
            removal = await self._facts.delete_tag(call.repository, tag)
        else:
            assert digest is not None
            removal = await self._facts.delete_manifest(call.repository, digest)
        match removal:
            case Removal.NOT_FOUND:
                raise manifest_unknown()
            case Removal.IN_USE:
                raise unsupported("an index of this repository needs the manifest; delete it first")
        await call.request.answer(HTTPStatus.ACCEPTED)

    async def _require_references(self, repository: RepositoryName, manifest: NewManifest) -> None:
        """Raise RegistryError unless the repository has what the manifest needs, with its files."""
        refused = await self._facts.check_references(repository, manifest) or PutRefused()
        # A row does not say that the file is there: a damaged one has been moved aside. Nobody
        # learns whether there is a file that the repository does not link: it may be another's.
        foreign = frozenset(refused.unknown)
        held = [item.digest for item in manifest.references if item.digest not in foreign]
        unknown = (*refused.unknown, *await self._store.missing(held))
        if unknown or refused.wrong_size:
            raise _refusal(PutRefused(unknown, refused.wrong_size))

    async def _read(self, call: Call) -> tuple[ManifestInfo, bytes]:
        manifest = await self._find(call)
        try:
            return manifest, await self._store.read_whole(manifest.digest)
        except FileNotFoundError as exc:
            raise manifest_damaged() from exc  # or removed since it was found

    async def _find(self, call: Call) -> ManifestInfo:
        digest, tag = _parse_reference(call)
        is_mirrored = self._mirror.covers(call.repository)
        finder: Facts | Mirror = self._mirror if is_mirrored else self._facts
        look: Callable[[], Awaitable[ManifestInfo | None]]
        if tag is not None:
            look = partial(finder.find_tagged, call.repository, tag)
        else:
            assert digest is not None
            look = partial(finder.find_manifest, call.repository, digest)
        found = await (call.request.unless_gone(look) if is_mirrored else look())
        if found is None:
            raise manifest_unknown()
        return found


def _parse_reference(call: Call) -> tuple[Digest | None, Tag | None]:
    """Return the one of the two that the reference is. Raises RegistryError."""
    if (tag := parse_tag(call.reference)) is not None:
        return None, tag
    if ":" in call.reference:
        return require_digest(call.reference), None
    raise manifest_invalid("a manifest is named by a digest or by a tag of up to 128 characters")


def _parse_target(call: Call) -> tuple[Digest | None, Sequence[Tag]]:
    """Return the digest that the manifest must have, if one is named, and the tags it is to get."""
    digest, tag = _parse_reference(call)
    if tag is not None:
        return None, [tag]
    tags = []
    for text in call.request.query.get("tag", []):
        parsed = parse_tag(text)
        if parsed is None:
            raise manifest_invalid("a tag has up to 128 letters, digits, '.', '_' and '-'")
        tags.append(parsed)
    return digest, tags


def _digest_of(content: bytes, named: Digest | None) -> Digest:
    algorithm = "sha256" if named is None else algorithm_of(named).value
    digest = parse_digest(f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}")
    assert digest is not None
    if named is not None and named != digest:
        raise digest_invalid("the manifest does not have this digest; nothing was stored")
    return digest


def _refusal(refused: PutRefused) -> RegistryError:
    if refused.unknown:
        return RegistryError(
            HTTPStatus.BAD_REQUEST,
            Code.MANIFEST_BLOB_UNKNOWN,
            f"{len(refused.unknown)} of what the manifest references is not in this repository",
            detail=list(refused.unknown[:_NAMED_IN_ERRORS]),
        )
    return RegistryError(
        HTTPStatus.BAD_REQUEST,
        Code.SIZE_INVALID,
        "a descriptor of the manifest does not have the size of its content",
        detail=list(refused.wrong_size[:_NAMED_IN_ERRORS]),
    )


def _headers(manifest: ManifestInfo) -> list[Header]:
    return [
        header("content-type", manifest.media_type),
        (b"content-length", b"%d" % manifest.size_bytes),
        header("docker-content-digest", manifest.digest),
        header("etag", f'"{manifest.digest}"'),
    ]
