"""What the rest of the daemon holds of the registry: questions, changes, whole-image operations.

Questions do not pass through the actor's mailbox: the cache answers, or the database, which is a
consistent view at any moment. Changes are messages. A caller that is cancelled while it waits does
not undo its change.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import sqlalchemy as sa

from supervisor.actors.registry_cache import FactCache
from supervisor.errors import HostError
from supervisor.model.oci import (
    Digest,
    RepositoryName,
    Tag,
    UploadId,
    parse_digest,
    parse_repository,
    parse_tag,
)
from supervisor.model.registry import (
    BlobInfo,
    FileStamp,
    ManifestInfo,
    MirroredTag,
    NewManifest,
    Page,
    PutRefused,
    Referrer,
    Removal,
    UploadRecord,
)
from supervisor.registry.blobs import BlobStore
from supervisor.registry.layout import LayoutImporter
from supervisor.registry.uploads import Uploads, new_upload_id
from supervisor.runtime.clock import Clock
from supervisor.runtime.mailbox import Mailbox, Reply
from supervisor.runtime.threads import Threads
from supervisor.store import registry as units
from supervisor.store import registry_images as images
from supervisor.store import registry_mirror as mirrored
from supervisor.store import registry_upkeep as upkeep
from supervisor.store.database import Database

P = ParamSpec("P")
T = TypeVar("T")
Unit = Callable[[sa.Connection], T]

HOUR = 3600.0
DAY = 24 * HOUR
MOST_UPLOADS_PER_REPOSITORY = 1000
_MOST_MOUNT_CANDIDATES = 64
_USE_SECONDS = 300.0
"""How exactly it is known when a blob was last asked for: prunes take what is an hour old."""
_CACHES = "cache/"
_MIRRORS = "mirror/"


@dataclass(frozen=True, slots=True)
class CollectionPolicy:
    """When what is not needed goes. Seconds."""

    interval_seconds: float = HOUR
    upload_seconds: float = 24 * HOUR
    """An upload that nobody went on with for this long is abandoned."""
    unused_seconds: float = 24 * HOUR
    """A blob that no manifest needs stays this long after it was pushed, mounted or asked for."""
    mirror_seconds: float = 30 * DAY
    """A mirrored tag stays this long after its upstream confirmed it; so does, after it was
    fetched, a mirrored manifest that no tag leads to."""
    batch: int = 200
    """Most rows in one step."""


@dataclass(frozen=True, slots=True)
class Collected:
    """What one collection removed."""

    uploads: int = 0
    manifests: int = 0
    links: int = 0
    blobs: int = 0
    freed_bytes: int = field(default=0, compare=False)
    """The sizes of the files that are gone: those of blobs, not of uploads."""


@dataclass(frozen=True, slots=True)
class Change:
    """Run a unit that changes the facts of a repository, or (None) of no repository."""

    unit: Unit[Any]
    repository: RepositoryName | None
    reply: Reply[Any]


@dataclass(frozen=True, slots=True)
class Prune:
    """Run a unit that returns which repositories it changed."""

    unit: Unit[Sequence[RepositoryName]]
    reply: Reply[Sequence[RepositoryName]]


@dataclass(frozen=True, slots=True)
class RemoveBlob:
    """Remove a blob, row and file, if nothing needs it; how many bytes that frees, None if kept."""

    digest: Digest
    reply: Reply[int | None]


Message = Change | Prune | RemoveBlob


class RegistryHandle:
    """The registry, for everybody but its actor. Implements `registry.facts.Facts`."""

    def __init__(
        self,
        mailbox: Mailbox[Message],
        cache: FactCache,
        database: Database,
        store: BlobStore,
        uploads: Uploads,
        threads: Threads,
        clock: Clock,
        policy: CollectionPolicy,
    ) -> None:
        self._mailbox = mailbox
        self._cache = cache
        self._database = database
        self._store = store
        self._uploads = uploads
        self._clock = clock
        self._policy = policy
        self._importer = LayoutImporter(self, store, uploads, threads)

    # Whole images, for builds and for start-up

    async def holds_image(self, repository: str, digest: str) -> bool:
        """Say whether the repository holds a manifest and all that it references, at any depth.

        Names and digests may come from anybody: what cannot be one is not there.
        """
        name, parsed = parse_repository(repository), parse_digest(digest)
        if name is None or parsed is None:
            return False
        return await self._database.run(units.holds_image, name, parsed)

    async def tag(self, repository: str, reference: str, digest: str, *, source: str) -> None:
        """Make the image `digest` of the repository `source` readable as `repository:reference`.

        Raises HostError if the image is not there whole, or a name cannot be one.
        """
        target, tag = parse_repository(repository), parse_tag(reference)
        origin, parsed = parse_repository(source), parse_digest(digest)
        now = self._clock()
        if target is None or tag is None or origin is None or parsed is None:
            raise HostError(f"an image cannot be named {repository}:{reference}"[:300])
        if not await self._change(target, units.copy_image, origin, parsed, target, tag, now):
            raise HostError(f"{source} does not hold the whole image {digest}")

    async def delete_repository(self, repository: RepositoryName) -> bool:
        """Remove a repository and all its names; the bytes go by collection."""
        return await self._change(repository, units.delete_repository, repository)

    async def import_layout(self, layout: Path) -> list[str]:
        """Import the named images of an OCI layout directory; see `LayoutImporter.run`."""
        return await self._importer.run(layout)

    # Blobs

    async def find_blob(self, repository: RepositoryName, digest: Digest) -> BlobInfo | None:
        """Return a blob that the repository links."""
        return await self._look(repository, ("blob", digest), units.find_blob, repository, digest)

    async def note_use(self, repository: RepositoryName, blob: BlobInfo) -> None:
        """Note that a client asked whether a blob is there, and may count on it from now."""
        now = self._clock()
        # Not to the second, so that asking is rarely writing.
        if now - blob.used_at >= min(self._policy.unused_seconds / 8, _USE_SECONDS):
            await self._change(repository, units.touch_blob, repository, blob.digest, now)

    async def find_stamp(self, repository: RepositoryName, digest: Digest) -> FileStamp | None:
        """Return the stamp of a blob's file when it was last verified, as the database has it."""
        found = await self._database.run(units.find_stamp, digest)
        known: BlobInfo | None = self._cache.get(repository, ("blob", digest))
        if known is not None and known.stamp != found:
            # Noted for another repository: or each pull from this one would come to the database.
            self._cache.drop(repository)
        return found

    async def note_stamp(
        self, repository: RepositoryName, digest: Digest, stamp: FileStamp
    ) -> None:
        """Note that the file of a blob, which `repository` links, has been verified."""
        await self._change(repository, units.note_stamp, digest, stamp)

    async def find_linking_repositories(self, digest: Digest) -> Sequence[RepositoryName]:
        """Return some repositories that link a blob."""
        return await self._database.run(
            units.find_linking_repositories, digest, _MOST_MOUNT_CANDIDATES
        )

    async def link_blob(self, repository: RepositoryName, blob: BlobInfo, upload: UploadId) -> None:
        """Link a blob that the store holds, and end the upload that it came by."""
        now = self._clock()
        await self._change(repository, units.link_blob, repository, blob, now, upload)

    async def mount_blob(
        self, source: RepositoryName, target: RepositoryName, digest: Digest
    ) -> BlobInfo | None:
        """Link in `target` what `source` links; None if it does not."""
        now = self._clock()
        return await self._change(target, units.mount_blob, source, target, digest, now)

    async def unlink_blob(self, repository: RepositoryName, digest: Digest) -> Removal:
        """Remove a blob from a repository, unless a manifest there needs it."""
        return await self._change(repository, units.unlink_blob, repository, digest)

    async def drop_if_unused(self, digest: Digest) -> bool:
        """Remove a blob's file if nothing needs it, or is about to; True if it is gone."""
        return await self._free(digest) is not None

    # Manifests and tags

    async def find_manifest(
        self, repository: RepositoryName, digest: Digest
    ) -> ManifestInfo | None:
        """Return a manifest of the repository."""
        key = ("manifest", digest)
        return await self._look(repository, key, units.find_manifest, repository, digest)

    async def find_tagged(self, repository: RepositoryName, tag: Tag) -> ManifestInfo | None:
        """Return the manifest that a tag points at."""
        return await self._look(repository, ("tag", tag), units.find_tagged, repository, tag)

    async def check_references(
        self, repository: RepositoryName, manifest: NewManifest
    ) -> PutRefused | None:
        """Say which content that a manifest needs the repository does not hold as described."""
        return await self._database.run(units.check_references, repository, manifest.references)

    async def put_manifest(
        self, repository: RepositoryName, manifest: NewManifest, tags: Collection[Tag]
    ) -> PutRefused | None:
        """Store a manifest whose bytes the store holds, and tag it; or say why not."""
        now = self._clock()
        return await self._change(repository, units.put_manifest, repository, manifest, tags, now)

    async def delete_manifest(self, repository: RepositoryName, digest: Digest) -> Removal:
        """Remove a manifest and its tags, unless an index needs it."""
        return await self._change(repository, units.delete_manifest, repository, digest)

    async def delete_tag(self, repository: RepositoryName, tag: Tag) -> Removal:
        """Remove a tag."""
        return await self._change(repository, units.delete_tag, repository, tag)

    async def remove_image(self, repository: RepositoryName, reference: Tag | Digest) -> Removal:
        """Remove a tag, and the image with its last one; or an image with all its tags."""
        return await self._change(repository, images.remove_image, repository, reference)

    # What the mirror holds

    async def find_mirrored_tag(self, repository: RepositoryName, tag: Tag) -> MirroredTag | None:
        """Return the manifest that a tag points at, and when its upstream confirmed that."""
        key = ("mirrored", tag)
        return await self._look(repository, key, mirrored.find_mirrored_tag, repository, tag)

    async def put_mirrored_manifest(
        self, repository: RepositoryName, manifest: NewManifest, tags: Collection[Tag]
    ) -> None:
        """Store a manifest that an upstream sent, and point `tags` at it but for pushed ones."""
        now = self._clock()
        await self._change(
            repository, mirrored.put_mirrored_manifest, repository, manifest, tags, now
        )

    async def confirm_tag(self, repository: RepositoryName, tag: Tag, digest: Digest) -> None:
        """Note that the upstream still has a tag at a digest."""
        now = self._clock()
        await self._change(repository, mirrored.confirm_tag, repository, tag, digest, now)

    async def drop_mirrored_tag(self, repository: RepositoryName, tag: Tag, digest: Digest) -> None:
        """Remove a tag that the upstream has no longer, if it is still at that digest."""
        await self._change(repository, mirrored.drop_mirrored_tag, repository, tag, digest)

    # Lists

    async def list_tags(
        self, repository: RepositoryName, limit: int, last: str
    ) -> Page[Tag] | None:
        """Return tags after `last`, in order; None if there is no such repository."""
        return await self._database.run(units.list_tags, repository, limit, last)

    async def list_repositories(self, limit: int, last: str) -> Page[RepositoryName]:
        """Return names after `last`, in order."""
        return await self._database.run(units.list_repositories, limit, last)

    async def list_referrers(
        self,
        repository: RepositoryName,
        subject: Digest,
        artifact_type: str | None,
        limit: int,
        last: str,
    ) -> Page[Referrer]:
        """Return manifests with that subject after the digest `last`, in order."""
        return await self._database.run(
            units.list_referrers, repository, subject, artifact_type, limit, last
        )

    # Uploads

    async def start_upload(self, repository: RepositoryName) -> UploadRecord | None:
        """Begin an upload; None if too many are open there."""
        record = UploadRecord(new_upload_id(), repository, self._clock())
        is_begun = await self._change(
            None, upkeep.start_upload, record, MOST_UPLOADS_PER_REPOSITORY
        )
        return record if is_begun else None

    async def find_upload(
        self, repository: RepositoryName, upload: UploadId
    ) -> UploadRecord | None:
        """Return an open upload."""
        return await self._database.run(upkeep.find_upload, repository, upload)

    async def end_upload(self, upload: UploadId) -> None:
        """Forget an upload."""
        await self._change(None, upkeep.end_upload, upload)

    # Collection

    async def collect(self) -> Collected:
        """Remove what nothing needs, in short steps, so that pushes run in between.

        Cancelling it is safe at any point: what is left is found the next time.
        """
        uploads = await self._collect_uploads()
        before = self._clock() - self._policy.unused_seconds
        limit = self._policy.batch
        manifests = await self._prune(
            lambda connection: upkeep.drop_untagged_manifests(connection, _CACHES, before, limit)
        )
        manifests += await self._collect_mirrored()
        links = await self._prune(
            lambda connection: upkeep.drop_unused_links(connection, before, limit)
        )
        blobs, freed_bytes = await self.free_blobs()
        return Collected(uploads, manifests, links, blobs, freed_bytes)

    async def prune(self, unit: Unit[Sequence[RepositoryName]]) -> Sequence[RepositoryName]:
        """Have the actor run a unit that returns which repositories it changed."""
        return await self._mailbox.ask(lambda reply: Prune(unit, reply))

    async def free_blobs(self) -> tuple[int, int]:
        """Remove every blob that nothing needs; return how many, and the bytes of their files."""
        unused = await self._free_unused_blobs()
        strays = await self._free_stray_blobs()
        return unused[0] + strays[0], unused[1] + strays[1]

    async def _collect_mirrored(self) -> int:
        """Remove what upstreams sent long ago; what is asked for again is fetched again."""
        before, limit = self._clock() - self._policy.mirror_seconds, self._policy.batch
        await self._prune(
            lambda connection: mirrored.expire_mirrored_tags(connection, before, limit)
        )
        return await self._prune(
            lambda connection: upkeep.drop_untagged_manifests(connection, _MIRRORS, before, limit)
        )

    async def _collect_uploads(self) -> int:
        before = self._clock() - self._policy.upload_seconds
        last_used = await self._uploads.last_used()
        active = {upload for upload, used_at in last_used.items() if used_at >= before}
        limit = self._policy.batch
        gone = set[UploadId]()
        while True:
            expired = await self._change(None, upkeep.expire_uploads, before, active, limit)
            gone.update(expired)
            if len(expired) < limit:
                break
        # What neither the table nor this process knows was left by a crash.
        strays = {item for item in last_used if not self._uploads.is_in_memory(item)}
        gone |= strays - await self._database.run(upkeep.known_uploads, strays)
        for upload in gone:
            self._uploads.discard(upload)
        return len(gone)

    async def _prune(self, unit: Unit[Sequence[RepositoryName]]) -> int:
        total = 0
        while True:
            changed = await self.prune(unit)
            total += len(changed)
            if len(changed) < self._policy.batch:
                return total

    async def _free_unused_blobs(self) -> tuple[int, int]:
        count, freed_bytes, last = 0, 0, ""
        while True:
            unused = await self._database.run(upkeep.find_unused_blobs, last, self._policy.batch)
            for digest in unused:
                if (size := await self._free(digest)) is not None:
                    count, freed_bytes = count + 1, freed_bytes + size
            if len(unused) < self._policy.batch:
                return count, freed_bytes
            last = unused[-1]

    async def _free_stray_blobs(self) -> tuple[int, int]:
        """Remove files that a crash left between their rename and their row, or the reverse."""
        count, freed_bytes = 0, 0
        stored = await self._store.stored()
        for start in range(0, len(stored), self._policy.batch):
            batch = stored[start : start + self._policy.batch]
            for digest in set(batch) - await self._database.run(upkeep.known_blobs, batch):
                if (size := await self._free(digest)) is not None:
                    count, freed_bytes = count + 1, freed_bytes + size
        return count, freed_bytes

    async def _free(self, digest: Digest) -> int | None:
        return await self._mailbox.ask(lambda reply: RemoveBlob(digest, reply))

    # Helpers

    async def _look(
        self,
        repository: RepositoryName,
        key: Hashable,
        unit: Callable[Concatenate[sa.Connection, P], T | None],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T | None:
        """Answer from the cache, or from the database. What is not there is not remembered."""
        known: T | None = self._cache.get(repository, key)
        if known is not None:
            return known
        with self._cache.reading(repository) as reading:
            found = await self._database.run(unit, *args, **kwargs)
            if found is not None:
                reading.keep(key, found)
        return found

    async def _change(
        self,
        repository: RepositoryName | None,
        unit: Callable[Concatenate[sa.Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Have the actor run a unit; `repository` is what it makes old in the cache."""

        def bound(connection: sa.Connection) -> T:
            return unit(connection, *args, **kwargs)

        return await self._mailbox.ask(lambda reply: Change(bound, repository, reply))
