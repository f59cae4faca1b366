"""Whole images as users and operators see them: list, show, remove, prune, and what takes up room.

Reading goes to the database, which is a consistent view at any moment; every change goes through
the registry's actor. What is pruned is what nothing can use: see `PruneWish`.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from supervisor.actors.grants import grants_of
from supervisor.actors.registry import RegistryActor
from supervisor.model.build import RUNNING, Build
from supervisor.model.ids import BuildId, Tenant
from supervisor.model.inventory import (
    ImageDocuments,
    Pruned,
    PruneWish,
    StoredImage,
    Usage,
    UsageKind,
)
from supervisor.model.oci import Digest, RepositoryName, Tag, parse_digest
from supervisor.model.registry import Removal
from supervisor.runtime.threads import Threads, run_in_thread
from supervisor.store import registry_images as units
from supervisor.store.builds import BuildFilter, finished_before, list_builds
from supervisor.store.database import Database

MAX_DOCUMENT_BYTES = 4 << 20
"""What the registry takes as a manifest; a configuration that is larger is not shown."""
_ALL = 1 << 30


class ImageService:
    """Images and disk usage. Raises the errors of `supervisor.errors`, and ActorGone."""

    def __init__(
        self,
        registry: RegistryActor,
        database: Database,
        threads: Threads,
        source_path: Callable[[BuildId], Path],
        *,
        data_dir: Path,
        images_dir: Path,
    ) -> None:
        self._registry = registry
        self._database = database
        self._threads = threads
        self._source_path = source_path
        self._data_dir = data_dir
        self._images_dir = images_dir

    async def list(
        self,
        tenant: Tenant | None,
        *,
        repository: RepositoryName | None,
        after: tuple[str, str],
        limit: int,
    ) -> Sequence[StoredImage]:
        """Return images by name; of one tenant, or everybody's."""
        return await self._database.run(
            units.list_images, tenant, repository=repository, after=after, limit=limit
        )

    async def get(
        self, tenant: Tenant | None, repository: RepositoryName, reference: Tag | Digest
    ) -> StoredImage | None:
        """Return the image of that name, if there is one that the tenant owns."""
        return await self._database.run(units.find_image, tenant, repository, reference)

    async def documents(self, image: StoredImage) -> ImageDocuments:
        """Return an image's manifest and configuration. Raises FileNotFoundError if it has gone."""
        manifest = await self._registry.store.read_whole(image.digest)
        return ImageDocuments(image, manifest, await self._read_config(image, manifest))

    async def remove(self, repository: RepositoryName, reference: Tag | Digest) -> Removal:
        """Remove a tag, and the image with its last; or the image. Its bytes go by pruning."""
        return await self._registry.handle.remove_image(repository, reference)

    async def prune(self, wish: PruneWish, *, is_dry: bool = False) -> Pruned:
        """Remove what nothing can use, and report what that has freed; or would free.

        Cancelling it is safe at any point: what is left is found the next time. With a wish for
        images only, what other garbage goes with them is not reported.
        """
        sources, source_bytes = await self._prune_sources(wish, is_dry=is_dry)
        planned = await self._database.run(_find_reclaimable, wish)
        if is_dry:
            freed_bytes = planned.freed_bytes + source_bytes
            return replace(planned, sources=sources, freed_bytes=freed_bytes)
        counts: Counter[str] = Counter()
        for kind, step in units.prune_steps(wish):
            unit = partial(_take_step, step=step, wish=wish)
            while changed := await self._registry.handle.prune(unit):
                counts[kind] += len(changed)
        blobs, blob_bytes = await self._registry.handle.free_blobs()
        if wish.images_only:
            blobs, blob_bytes = min(blobs, planned.blobs), min(blob_bytes, planned.freed_bytes)
        return Pruned(
            repositories=counts["repositories"],
            manifests=counts["manifests"],
            blobs=blobs,
            sources=sources,
            freed_bytes=blob_bytes + source_bytes,
        )

    async def usage(self, wish: PruneWish) -> Sequence[Usage]:
        """Return what takes up room. `wish` says how old a thing must be to be reclaimable."""
        run = self._database.run
        wish = replace(wish, caches=False)
        registry = await run(_find_reclaimable, wish)
        with_caches = await run(_find_reclaimable, replace(wish, caches=True))
        _, old_sources = await self._prune_sources(replace(wish, sources=True), is_dry=True)
        sources, logs = await run_in_thread(
            self._threads.disk, _measure_builds_sync, self._data_dir / "builds"
        )
        builder = await run_in_thread(self._threads.disk, _measure_sync, self._images_dir)
        database = await run_in_thread(
            self._threads.disk, _measure_files_sync, self._data_dir, "hypeman.db*"
        )
        return [
            Usage(UsageKind.IMAGES, *await run(units.usage_of, None)),
            Usage(
                UsageKind.CACHES,
                *await run(units.usage_of, [units.CACHES]),
                with_caches.freed_bytes - registry.freed_bytes,
            ),
            Usage(UsageKind.BASES, *await run(units.usage_of, [units.BASE, units.MIRROR])),
            Usage(UsageKind.REGISTRY, *await run(units.total_usage), registry.freed_bytes),
            Usage(UsageKind.SOURCES, *sources, old_sources),
            Usage(UsageKind.LOGS, *logs),
            Usage(UsageKind.DATABASE, *database),
            Usage(UsageKind.BUILDER_IMAGES, *builder),
        ]

    async def _read_config(self, image: StoredImage, manifest: bytes) -> bytes | None:
        """Return the configuration that a manifest leads to, if it is a small blob of that place.

        Of an index that is what its only platform has: attestations beside it are of none.
        """
        document = _parse_object(manifest)
        only = _only_platform(document)
        if only is not None:
            if await self._registry.handle.find_manifest(image.repository, only) is None:
                return None
            document = _parse_object(await self._registry.store.read_whole(only))
        digest = _digest_in(document.get("config"))
        if digest is None:
            return None
        blob = await self._registry.handle.find_blob(image.repository, digest)
        if blob is None or blob.size_bytes > MAX_DOCUMENT_BYTES:
            return None
        return await self._registry.store.read_whole(digest)

    async def _prune_sources(self, wish: PruneWish, *, is_dry: bool) -> tuple[int, int]:
        """Remove the archives of builds that have ended; return how many, and their bytes."""
        if not wish.sources:
            return 0, 0
        ended = await self._database.run(finished_before, wish.before)
        return await run_in_thread(self._threads.disk, self._prune_sources_sync, ended, is_dry)

    def _prune_sources_sync(self, ended: Sequence[BuildId], is_dry: bool) -> tuple[int, int]:
        count, freed_bytes = 0, 0
        left: dict[int, int] = {}  # names of a file that retries share, by inode
        for build_id in ended:
            path = self._source_path(build_id)
            try:
                status = path.stat()
                if not is_dry:
                    path.unlink()
            except FileNotFoundError:
                continue
            count += 1
            left[status.st_ino] = left.get(status.st_ino, status.st_nlink) - 1
            if not left[status.st_ino]:
                freed_bytes += status.st_size
        return count, freed_bytes


def _find_reclaimable(connection: sa.Connection, wish: PruneWish) -> Pruned:
    return units.find_reclaimable(connection, _with_busy(connection, wish))


def _take_step(
    connection: sa.Connection, step: units.PruneStep, wish: PruneWish
) -> Sequence[RepositoryName]:
    """Run a step; a build that has started since the one before is spared, too."""
    return step(connection, _with_busy(connection, wish), units.STEP_ROWS)


def _with_busy(connection: sa.Connection, wish: PruneWish) -> PruneWish:
    """Note where the builds push to that run at the moment of this transaction."""
    running: list[Build] = []
    for status in RUNNING:
        running += list_builds(connection, BuildFilter(_ALL, status=status))
    busy = frozenset(RepositoryName(grant.repo) for build in running for grant in grants_of(build))
    return replace(wish, busy=busy)


def _parse_object(data: bytes) -> Mapping[str, Any]:
    """Return the JSON object that somebody pushed; empty if it is none."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _only_platform(index: Mapping[str, Any]) -> Digest | None:
    """Return the manifest in an index that is for a platform, if there is exactly one."""
    children = index.get("manifests")
    found = [
        child
        for child in (children if isinstance(children, list) else ())
        if isinstance(child, dict)
        and isinstance(child.get("platform"), dict)
        and child["platform"].get("os") != "unknown"
    ]
    return _digest_in(found[0]) if len(found) == 1 else None


def _digest_in(descriptor: Any) -> Digest | None:
    digest = descriptor.get("digest") if isinstance(descriptor, dict) else None
    return parse_digest(digest) if isinstance(digest, str) else None


def _measure_builds_sync(builds_dir: Path) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return number and bytes of the sources of all builds, and of everything else of them."""
    sources: dict[int, int] = {}
    others: dict[int, int] = {}
    for directory, _, names in os.walk(builds_dir):
        kind = sources if directory.endswith("/source") else others
        for name in names:
            _note_size_sync(Path(directory, name), kind)
    return (len(sources), sum(sources.values())), (len(others), sum(others.values()))


def _measure_sync(directory: Path) -> tuple[int, int]:
    """Return number and bytes of the files below a directory, each once whatever its names."""
    return _measure_files_sync(directory, "**/*")


def _measure_files_sync(directory: Path, pattern: str) -> tuple[int, int]:
    sizes: dict[int, int] = {}
    for path in directory.glob(pattern):
        _note_size_sync(path, sizes)
    return len(sizes), sum(sizes.values())


def _note_size_sync(path: Path, sizes: dict[int, int]) -> None:
    try:
        if path.is_file() and not path.is_symlink():
            status = path.stat()
            # Disks of machines are sparse: what counts is what they take up.
            sizes[status.st_ino] = min(status.st_size, status.st_blocks * 512)
    except FileNotFoundError:
        pass  # gone meanwhile
