"""Names of the registry: repositories, tags, digests. Text from outside is parsed here once.

The grammar is the OCI distribution specification's. Nothing that passes needs quoting in a path, a
header or a log line: no component is empty, `.` or `..`, and a digest's parts are fixed alphabets.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import NewType

RepositoryName = NewType("RepositoryName", str)
Tag = NewType("Tag", str)
Digest = NewType("Digest", str)
"""`sha256:<64 hex>` or `sha512:<128 hex>`, lower case."""
UploadId = NewType("UploadId", str)

MAX_REPOSITORY_LENGTH = 229
"""What common clients can name with a registry host of up to 25 characters before it."""

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
REPOSITORY_PATTERN = rf"{_COMPONENT}(?:/{_COMPONENT})*"
DIGEST_PATTERN = r"(?:sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})"
"""What names look like, here and in the description of the API; to be anchored."""
_REPOSITORY = re.compile(REPOSITORY_PATTERN, re.ASCII)
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}", re.ASCII)
_DIGEST = re.compile(DIGEST_PATTERN, re.ASCII)
_UPLOAD_ID = re.compile(r"[0-9a-f]{32}", re.ASCII)


class Algorithm(StrEnum):
    """The digest algorithms that the registry knows; values are `hashlib` names."""

    SHA256 = "sha256"
    SHA512 = "sha512"


@dataclass(frozen=True, slots=True)
class TagReference:
    """A repository and a tag: `app:1`."""

    repository: RepositoryName
    tag: Tag


def parse_repository(text: str) -> RepositoryName | None:
    """Return the repository name that `text` is, or None."""
    if len(text) > MAX_REPOSITORY_LENGTH or not _REPOSITORY.fullmatch(text):
        return None
    return RepositoryName(text)


def parse_tag(text: str) -> Tag | None:
    """Return the tag that `text` is, or None."""
    return Tag(text) if _TAG.fullmatch(text) else None


def parse_digest(text: str) -> Digest | None:
    """Return the digest that `text` is, or None: also for an algorithm that is not known here."""
    return Digest(text) if _DIGEST.fullmatch(text) else None


def parse_upload_id(text: str) -> UploadId | None:
    """Return the id of an upload that `text` can be, or None."""
    return UploadId(text) if _UPLOAD_ID.fullmatch(text) else None


def parse_tag_reference(text: str) -> TagReference | None:
    """Return what `repository:tag` names, or None; without a tag it is `latest`."""
    name, colon, tag_text = text.rpartition(":")
    if not colon:
        name, tag_text = text, "latest"
    repository, tag = parse_repository(name), parse_tag(tag_text)
    if repository is None or tag is None:
        return None
    return TagReference(repository, tag)


def algorithm_of(digest: Digest) -> Algorithm:
    """Return the algorithm that a digest was made with."""
    return Algorithm(digest.partition(":")[0])


def encoded_part(digest: Digest) -> str:
    """Return the hexadecimal part of a digest: its file name in an OCI layout."""
    return digest.partition(":")[2]
