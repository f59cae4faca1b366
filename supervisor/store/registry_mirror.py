"""Units of work on what the mirror holds; `store.registry` says what they keep true.

A mirrored manifest is the one kind that arrives before what it references: content follows when
somebody asks for it. The references are noted all the same, so collection knows what belongs to it.
A tag that was pushed (`checked_at` is NULL) is the operator's, and nothing here changes it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import sqlalchemy as sa

from supervisor.model.oci import Digest, RepositoryName, Tag
from supervisor.model.registry import ManifestInfo, MirroredTag, NewManifest
from supervisor.store.registry import select_manifest, set_tag, store_manifest
from supervisor.store.registry_tables import manifests, tags


def find_mirrored_tag(
    connection: sa.Connection, repository: RepositoryName, tag: Tag
) -> MirroredTag | None:
    """Return the manifest that a tag points at, and when its upstream confirmed that."""
    row = connection.execute(
        select_manifest()
        .add_columns(tags.c.checked_at)
        .join(
            tags,
            sa.and_(
                tags.c.repository == manifests.c.repository, tags.c.digest == manifests.c.digest
            ),
        )
        .where(tags.c.repository == repository, tags.c.name == tag)
    ).one_or_none()
    if row is None:
        return None
    manifest = ManifestInfo(Digest(row.digest), row.media_type, row.size_bytes)
    return MirroredTag(manifest, row.checked_at)


def put_mirrored_manifest(
    connection: sa.Connection,
    repository: RepositoryName,
    manifest: NewManifest,
    names: Collection[Tag],
    now: float,
) -> None:
    """Store a manifest that an upstream sent, and point `names` at it but for pushed ones.

    The manifest's own bytes are durable in the blob store before this is called.
    """
    store_manifest(connection, repository, manifest, now)
    for name in names:
        known = find_mirrored_tag(connection, repository, name)
        if known is None or known.checked_at is not None:
            set_tag(connection, repository, name, manifest.digest, now, checked_at=now)


def confirm_tag(
    connection: sa.Connection, repository: RepositoryName, tag: Tag, digest: Digest, now: float
) -> None:
    """Note that the upstream still has `tag` at `digest`."""
    connection.execute(
        sa.update(tags).where(*_is_mirrored(repository, tag, digest)).values(checked_at=now)
    )


def drop_mirrored_tag(
    connection: sa.Connection, repository: RepositoryName, tag: Tag, digest: Digest
) -> None:
    """Remove a tag that the upstream has no longer, if it is still at `digest`."""
    connection.execute(sa.delete(tags).where(*_is_mirrored(repository, tag, digest)))


def expire_mirrored_tags(
    connection: sa.Connection, before: float, limit: int
) -> Sequence[RepositoryName]:
    """Remove up to `limit` tags that no upstream confirmed since `before`; return where."""
    query = sa.select(tags.c.repository, tags.c.name).where(tags.c.checked_at < before).limit(limit)
    found = list(connection.execute(query))
    for row in found:
        connection.execute(
            sa.delete(tags).where(tags.c.repository == row.repository, tags.c.name == row.name)
        )
    return [RepositoryName(row.repository) for row in found]


def _is_mirrored(
    repository: RepositoryName, tag: Tag, digest: Digest
) -> Sequence[sa.ColumnElement[bool]]:
    return (
        tags.c.repository == repository,
        tags.c.name == tag,
        tags.c.digest == digest,
        tags.c.checked_at.is_not(None),
    )
