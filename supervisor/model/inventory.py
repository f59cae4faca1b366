"""What an operator sees of the daemon's belongings: images, disk usage, what pruning frees.

Frozen records. Times are Unix seconds, sizes bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum

from supervisor.model.ids import Tenant
from supervisor.model.oci import Digest, RepositoryName, Tag


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An image of the registry: a manifest that no index of its repository is made of."""

    repository: RepositoryName
    digest: Digest
    media_type: str
    tags: tuple[Tag, ...]
    size_bytes: int
    """Of everything that it leads to, each once; other images may share it."""
    pushed_at: float


@dataclass(frozen=True, slots=True)
class ImageDocuments:
    """An image with its manifest and, of a single platform, its configuration: as pushed."""

    image: StoredImage
    manifest: bytes
    config: bytes | None


@dataclass(frozen=True, slots=True)
class PruneWish:
    """What may go, beside what can never be used again."""

    before: float
    """Only what was not pushed, asked for or ended since."""
    images_only: bool = False
    """Whether only images without a tag may go, and what they alone need."""
    tenant: Tenant | None = None
    """With `images_only`: only those of this tenant."""
    caches: bool = False
    """Whole build caches as well."""
    sources: bool = False
    """The archives of finished builds as well: those cannot be retried then."""
    busy: Collection[RepositoryName] = ()
    """Repositories that running builds push to: nothing there is touched."""


@dataclass(frozen=True, slots=True)
class Pruned:
    """What a prune has removed, or would remove."""

    repositories: int = 0
    """Of builds whose record is gone, of caches, and empty ones."""
    manifests: int = 0
    """Without a tag, and part of nothing."""
    blobs: int = 0
    sources: int = 0
    freed_bytes: int = 0
    """The sizes of the files."""


class UsageKind(StrEnum):
    """What takes up room below the data directory."""

    IMAGES = "images"
    CACHES = "caches"
    BASES = "bases"
    """Base images and mirrors."""
    REGISTRY = "registry"
    """All content of the registry: what the kinds above share is counted once here."""
    SOURCES = "sources"
    LOGS = "logs"
    DATABASE = "database"
    BUILDER_IMAGES = "builder-images"


@dataclass(frozen=True, slots=True)
class Usage:
    """One line of the disk usage."""

    kind: UsageKind
    count: int
    size_bytes: int
    reclaimable_bytes: int = 0
    """What `prune` would free of it now."""


UsageReport = Sequence[Usage]
