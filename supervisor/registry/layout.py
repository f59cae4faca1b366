"""Importing an OCI layout directory: how base images and seeds get in without a client."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from supervisor.errors import HostError
from supervisor.model.oci import (
    Digest,
    RepositoryName,
    TagReference,
    algorithm_of,
    encoded_part,
    parse_digest,
    parse_tag_reference,
)
from supervisor.model.registry import NewManifest, Reference
from supervisor.registry.blobs import BlobStore
from supervisor.registry.facts import Facts
from supervisor.registry.intake import finish_upload
from supervisor.registry.media import (
    MAX_MANIFEST_BYTES,
    ManifestError,
    is_index,
    parse_manifest,
)
from supervisor.registry.uploads import DigestMismatch, Uploads
from supervisor.runtime.threads import Threads, run_in_thread

REF_NAME = "org.opencontainers.image.ref.name"
_MAX_DEPTH = 4
_MAX_INDEX_BYTES = 4 << 20


class LayoutError(HostError):
    """The directory is not a layout that can be imported; the message names what is wrong."""


class LayoutImporter:
    """Copies images out of layouts into the registry."""

    def __init__(self, facts: Facts, store: BlobStore, uploads: Uploads, threads: Threads) -> None:
        self._facts = facts
        self._store = store
        self._uploads = uploads
        self._threads = threads

    async def run(self, layout: Path) -> list[str]:
        """Import every image that the layout's index names `<repository>:<tag>`; return the names.

        What the registry holds already is not copied again, so doing this at every start is cheap.
        Raises LayoutError; images before the bad one stay imported.
        """
        names = []
        entries = await run_in_thread(self._threads.blobs, _read_index_sync, layout)
        for reference, digest, media_type in entries:
            await self._import_manifest(layout, reference.repository, digest, media_type, 0)
            await self._tag(reference, digest, layout, media_type)
            names.append(f"{reference.repository}:{reference.tag}")
        return names

    async def _tag(
        self, reference: TagReference, digest: Digest, layout: Path, media_type: str | None
    ) -> None:
        tagged = await self._facts.find_tagged(reference.repository, reference.tag)
        if tagged is None or tagged.digest != digest:
            manifest, content = await self._read_manifest(layout, digest, media_type)
            await self._put(reference, manifest, content)

    async def _import_manifest(
        self,
        layout: Path,
        repository: RepositoryName,
        digest: Digest,
        media_type: str | None,
        depth: int,
    ) -> None:
        if await self._is_held(repository, digest):
            return
        if depth > _MAX_DEPTH:
            raise LayoutError(f"{layout}: indexes are nested more than {_MAX_DEPTH} deep")
        manifest, content = await self._read_manifest(layout, digest, media_type)
        for reference in manifest.references:
            if is_index(manifest.media_type) and await self._is_manifest(layout, reference):
                await self._import_manifest(layout, repository, reference.digest, None, depth + 1)
            else:
                await self._import_blob(layout, repository, reference)
        await self._put(repository, manifest, content)

    async def _is_held(self, repository: RepositoryName, digest: Digest) -> bool:
        """Say whether the repository has a manifest and, at every level, the files that it needs.

        Its rows do not say that: what is damaged has been moved aside.
        """
        found = await self._facts.find_manifest(repository, digest)
        if found is None:
            return False
        try:
            content = await self._store.read_whole(digest)
            manifest = parse_manifest(content, found.media_type, digest)
        except (OSError, ManifestError):
            return False
        needed = [item.digest for item in manifest.references]
        if await self._store.missing(needed):
            return False
        if is_index(manifest.media_type):
            for item in needed:
                is_child = await self._facts.find_manifest(repository, item) is not None
                if is_child and not await self._is_held(repository, item):
                    return False
        return True

    async def _put(
        self, target: TagReference | RepositoryName, manifest: NewManifest, content: bytes
    ) -> None:
        repository, tags = (
            (target.repository, [target.tag]) if isinstance(target, TagReference) else (target, [])
        )
        async with self._store.keeping(manifest.digest):
            await self._store.put(manifest.digest, content)
            refused = await self._facts.put_manifest(repository, manifest, tags)
        if refused is not None:
            raise LayoutError(f"{manifest.digest} describes content that is not in the layout")

    async def _import_blob(
        self, layout: Path, repository: RepositoryName, reference: Reference
    ) -> None:
        is_linked = await self._facts.find_blob(repository, reference.digest) is not None
        if is_linked and not await self._store.missing([reference.digest]):
            return
        upload = self._uploads.create(repository)
        try:
            async with upload.lock:
                upload.expect(algorithm_of(reference.digest))
                with _open(_path(layout, reference.digest)) as fd:
                    await upload.append(_FileBody(fd, self._threads))
                await finish_upload(self._facts, self._store, repository, upload, reference.digest)
        except DigestMismatch as exc:
            raise LayoutError(f"{layout}: {reference.digest} has other content") from exc
        finally:
            self._uploads.discard(upload.id)

    async def _is_manifest(self, layout: Path, reference: Reference) -> bool:
        # BuildKit's older cache format lists layers in an index.
        try:
            await self._read_manifest(layout, reference.digest, None)
        except LayoutError:
            return False
        return True

    async def _read_manifest(
        self, layout: Path, digest: Digest, media_type: str | None
    ) -> tuple[NewManifest, bytes]:
        content = await run_in_thread(
            self._threads.blobs, _read_bounded_sync, _path(layout, digest), MAX_MANIFEST_BYTES
        )
        try:
            return parse_manifest(content, media_type, digest), content
        except ManifestError as exc:
            raise LayoutError(f"{layout}: {digest} is not a manifest: {exc}") from exc


class _FileBody:
    """A file as the body of an upload."""

    def __init__(self, fd: int, threads: Threads) -> None:
        self._fd = fd
        self._threads = threads

    async def read_batch(self, at_least: int) -> list[bytes]:
        """Return the next piece; an empty list at the end."""
        piece = await run_in_thread(self._threads.blobs, os.read, self._fd, at_least)
        return [piece] if piece else []


def _read_index_sync(layout: Path) -> list[tuple[TagReference, Digest, str | None]]:
    content = _read_bounded_sync(layout / "index.json", _MAX_INDEX_BYTES)
    try:
        manifests = json.loads(content)["manifests"]
        found = [_read_entry(item) for item in manifests]
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise LayoutError(f"{layout}/index.json is not an image index") from exc
    return [entry for entry in found if entry is not None]


def _read_entry(item: Any) -> tuple[TagReference, Digest, str | None] | None:
    """Return what an entry of the index names; None if it has no `<repository>:<tag>` name."""
    name = (item.get("annotations") or {}).get(REF_NAME)
    reference = parse_tag_reference(name) if isinstance(name, str) and ":" in name else None
    digest = parse_digest(item["digest"])
    if reference is None or digest is None:
        return None
    return reference, digest, item.get("mediaType")


def _path(layout: Path, digest: Digest) -> Path:
    return layout / "blobs" / algorithm_of(digest) / encoded_part(digest)


@contextlib.contextmanager
def _open(path: Path) -> Iterator[int]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as exc:
        raise LayoutError(f"{path} cannot be read: {exc.strerror}") from exc
    try:
        yield fd
    finally:
        os.close(fd)


def _read_bounded_sync(path: Path, limit_bytes: int) -> bytes:
    with _open(path) as fd, open(fd, "rb", closefd=False) as file:
        content = file.read(limit_bytes + 1)
    if len(content) > limit_bytes:
        raise LayoutError(f"{path} is larger than {limit_bytes} bytes")
    return content
