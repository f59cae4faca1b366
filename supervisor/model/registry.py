"""What the registry knows about its content. Frozen records; the bytes are elsewhere.

Times are Unix seconds, sizes bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Generic, NewType, TypeVar

from supervisor.model.oci import Digest, RepositoryName, UploadId

T = TypeVar("T")

FileStamp = NewType("FileStamp", str)
"""What a file was like when its bytes were known to be right: another one means another look."""


@dataclass(frozen=True, slots=True)
class BlobInfo:
    """A blob as a repository links it."""

    digest: Digest
    size_bytes: int
    used_at: float = 0.0
    """When a client last asked for it or pushed it: collection leaves recently used blobs alone."""
    stamp: FileStamp | None = None
    """That of its file when it was last verified. None: nobody knows."""


@dataclass(frozen=True, slots=True)
class ManifestInfo:
    """A manifest as a repository holds it."""

    digest: Digest
    media_type: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class MirroredTag:
    """A tag below `mirror/`, and the manifest that it points at."""

    manifest: ManifestInfo
    checked_at: float | None
    """When the upstream last confirmed it. None: the operator pushed it, and it stands."""


@dataclass(frozen=True, slots=True)
class NewManifest:
    """A manifest that a client pushes, read and checked; the blob store has its bytes already."""

    digest: Digest
    media_type: str
    size_bytes: int
    artifact_type: str | None
    subject: Digest | None
    annotations: Mapping[str, str] = field(default_factory=dict)
    references: Sequence[Reference] = ()


@dataclass(frozen=True, slots=True)
class Reference:
    """Content that a manifest cannot be used without: a config, a layer, a manifest of an index."""

    digest: Digest
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Referrer:
    """A manifest whose `subject` is another one."""

    digest: Digest
    media_type: str
    size_bytes: int
    artifact_type: str | None
    annotations: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class UploadRecord:
    """An upload in progress. Its bytes so far are a file that is named after its id."""

    id: UploadId
    repository: RepositoryName
    started_at: float


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """A part of a list; `more` says whether there is a next one."""

    items: Sequence[T]
    more: bool


@dataclass(frozen=True, slots=True)
class PutRefused:
    """Why a manifest was not taken: content that it needs is not in the repository as described."""

    unknown: tuple[Digest, ...] = ()
    wrong_size: tuple[Digest, ...] = ()


class Removal(Enum):
    """What came of a request to remove something."""

    DONE = auto()
    NOT_FOUND = auto()
    IN_USE = auto()
    """Something in the repository needs it: a tag never points at missing content."""
