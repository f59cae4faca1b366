"""What the registry must be told about its mutable facts: who holds what, under which tag.

The HTTP layer sees only this Protocol. Behind it is the registry's actor with the database.
`registry.mirror` fills `mirror/…` from upstream registries.

Everything that returned is durable.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from supervisor.model.oci import Digest, RepositoryName, Tag, UploadId
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


class Facts(Protocol):
    """The registry's facts; `store.registry` says what they keep true."""

    async def find_blob(self, repository: RepositoryName, digest: Digest) -> BlobInfo | None:
        """Return a blob that the repository links."""
        ...

    async def note_use(self, repository: RepositoryName, blob: BlobInfo) -> None:
        """Note that a client asked whether a blob is there, and may count on it from now."""
        ...

    async def find_stamp(self, repository: RepositoryName, digest: Digest) -> FileStamp | None:
        """Return the stamp of a blob's file when it was last verified; never an old one."""
        ...

    async def note_stamp(
        self, repository: RepositoryName, digest: Digest, stamp: FileStamp
    ) -> None:
        """Note that the file of a blob, which the repository links, has been verified."""
        ...

    async def find_linking_repositories(self, digest: Digest) -> Sequence[RepositoryName]:
        """Return some repositories that link a blob."""
        ...

    async def link_blob(self, repository: RepositoryName, blob: BlobInfo, upload: UploadId) -> None:
        """Link a blob that the store holds, and end the upload that it came by."""
        ...

    async def mount_blob(
        self, source: RepositoryName, target: RepositoryName, digest: Digest
    ) -> BlobInfo | None:
        """Link in `target` what `source` links; None if it does not."""
        ...

    async def unlink_blob(self, repository: RepositoryName, digest: Digest) -> Removal:
        """Remove a blob from a repository."""
        ...

    async def drop_if_unused(self, digest: Digest) -> bool:
        """Remove a blob's file if nothing needs it; True if it is gone."""
        ...

    async def find_manifest(
        self, repository: RepositoryName, digest: Digest
    ) -> ManifestInfo | None:
        """Return a manifest of the repository."""
        ...

    async def find_tagged(self, repository: RepositoryName, tag: Tag) -> ManifestInfo | None:
        """Return the manifest that a tag points at."""
        ...

    async def check_references(
        self, repository: RepositoryName, manifest: NewManifest
    ) -> PutRefused | None:
        """Say which content that a manifest needs the repository does not hold as described."""
        ...

    async def put_manifest(
        self, repository: RepositoryName, manifest: NewManifest, tags: Collection[Tag]
    ) -> PutRefused | None:
        """Store a manifest whose bytes the store holds, and tag it; or say why not."""
        ...

    async def delete_manifest(self, repository: RepositoryName, digest: Digest) -> Removal:
        """Remove a manifest and its tags."""
        ...

    async def delete_tag(self, repository: RepositoryName, tag: Tag) -> Removal:
        """Remove a tag."""
        ...

    async def list_tags(
        self, repository: RepositoryName, limit: int, last: str
    ) -> Page[Tag] | None:
        """Return tags after `last`, in order; None if there is no such repository."""
        ...

    async def list_repositories(self, limit: int, last: str) -> Page[RepositoryName]:
        """Return names after `last`, in order."""
        ...

    async def list_referrers(
        self,
        repository: RepositoryName,
        subject: Digest,
        artifact_type: str | None,
        limit: int,
        last: str,
    ) -> Page[Referrer]:
        """Return manifests with that subject after the digest `last`, in order."""
        ...

    async def start_upload(self, repository: RepositoryName) -> UploadRecord | None:
        """Begin an upload; None if too many are open there."""
        ...

    async def find_upload(
        self, repository: RepositoryName, upload: UploadId
    ) -> UploadRecord | None:
        """Return an open upload."""
        ...

    async def end_upload(self, upload: UploadId) -> None:
        """Forget an upload."""
        ...


class MirrorFacts(Facts, Protocol):
    """What the mirror needs besides; `store.registry_mirror` says more."""

    async def find_mirrored_tag(self, repository: RepositoryName, tag: Tag) -> MirroredTag | None:
        """Return the manifest that a tag points at, and when its upstream confirmed that."""
        ...

    async def put_mirrored_manifest(
        self, repository: RepositoryName, manifest: NewManifest, tags: Collection[Tag]
    ) -> None:
        """Store a manifest that an upstream sent, and point `tags` at it but for pushed ones."""
        ...

    async def confirm_tag(self, repository: RepositoryName, tag: Tag, digest: Digest) -> None:
        """Note that the upstream still has a tag at a digest."""
        ...

    async def drop_mirrored_tag(self, repository: RepositoryName, tag: Tag, digest: Digest) -> None:
        """Remove a tag that the upstream has no longer, if it is still at that digest."""
        ...
