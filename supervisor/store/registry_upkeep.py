"""Units of work on uploads in progress and on garbage; `store.registry` says what they keep true.

Each step of a collection is one short transaction over a bounded number of rows, so that pushes run
between the steps.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import sqlalchemy as sa

from supervisor.model.oci import Digest, RepositoryName, UploadId
from supervisor.model.registry import UploadRecord
from supervisor.store.registry import batched, delete_rows, drop_manifests
from supervisor.store.registry_tables import blobs, links, manifests, references, tags, uploads

# Uploads


def start_upload(connection: sa.Connection, record: UploadRecord, limit: int) -> bool:
    """Note an upload; False if `limit` uploads into the repository are open already."""
    query = (
        sa.select(sa.func.count())
        .select_from(uploads)
        .where(uploads.c.repository == record.repository)
    )
    if connection.scalars(query).one() >= limit:
        return False
    connection.execute(
        sa.insert(uploads).values(
            id=record.id, repository=record.repository, started_at=record.started_at
        )
    )
    return True


def find_upload(
    connection: sa.Connection, repository: RepositoryName, upload: UploadId
) -> UploadRecord | None:
    """Return an open upload into `repository`."""
    row = connection.execute(
        sa.select(uploads.c.started_at).where(
            uploads.c.id == upload, uploads.c.repository == repository
        )
    ).one_or_none()
    return None if row is None else UploadRecord(upload, repository, row.started_at)


def end_upload(connection: sa.Connection, upload: UploadId) -> None:
    """Forget an upload; unknown is fine."""
    connection.execute(sa.delete(uploads).where(uploads.c.id == upload))


# Garbage


def expire_uploads(
    connection: sa.Connection, before: float, active: Collection[UploadId], limit: int
) -> Sequence[UploadId]:
    """Forget up to `limit` uploads begun before a time and not `active`; return which."""
    query = sa.select(uploads.c.id).where(uploads.c.started_at < before)
    old = [UploadId(item) for item in connection.scalars(query) if item not in active][:limit]
    for upload in old:
        end_upload(connection, upload)
    return old


def known_uploads(connection: sa.Connection, ids: Collection[UploadId]) -> set[UploadId]:
    """Return which of `ids` are open uploads."""
    found = set[UploadId]()
    for batch in batched(ids):
        query = sa.select(uploads.c.id).where(uploads.c.id.in_(batch))
        found.update(UploadId(item) for item in connection.scalars(query))
    return found


def drop_untagged_manifests(
    connection: sa.Connection, prefix: str, before: float, limit: int
) -> Sequence[RepositoryName]:
    """Remove old manifests below `prefix` that no tag, index or referrer keeps.

    Meant for caches, where each export replaces the tag and leaves the previous manifest behind.
    Returns the repositories that changed, one entry for each manifest.
    """
    other = manifests.alias()
    query = (
        sa.select(manifests.c.repository, manifests.c.digest)
        .where(
            manifests.c.repository.startswith(prefix, autoescape=True),
            manifests.c.pushed_at < before,
            manifests.c.subject.is_(None),
            ~sa.exists().where(
                tags.c.repository == manifests.c.repository, tags.c.digest == manifests.c.digest
            ),
            ~sa.exists().where(
                references.c.repository == manifests.c.repository,
                references.c.digest == manifests.c.digest,
            ),
            ~sa.exists().where(
                other.c.repository == manifests.c.repository,
                other.c.subject == manifests.c.digest,
            ),
        )
        .limit(limit)
    )
    found = [
        (RepositoryName(row.repository), Digest(row.digest)) for row in connection.execute(query)
    ]
    drop_manifests(connection, found)
    return [repository for repository, _ in found]


def drop_unused_links(
    connection: sa.Connection, before: float, limit: int, *only: sa.ColumnElement[bool]
) -> Sequence[RepositoryName]:
    """Unlink blobs that no manifest of their repository needs and nobody used since `before`.

    Of the links for which every condition of `only` holds.
    """
    query = (
        sa.select(links.c.repository, links.c.digest)
        .where(
            links.c.used_at < before,
            *only,
            ~sa.exists().where(
                references.c.repository == links.c.repository,
                references.c.digest == links.c.digest,
            ),
        )
        .limit(limit)
    )
    found = [
        (RepositoryName(row.repository), Digest(row.digest)) for row in connection.execute(query)
    ]
    delete_rows(connection, links, found)
    return [repository for repository, _ in found]


def find_unused_blobs(connection: sa.Connection, after: str, limit: int) -> Sequence[Digest]:
    """Return up to `limit` blobs after a digest that no repository links or holds as a manifest."""
    query = (
        sa.select(blobs.c.digest)
        .where(blobs.c.digest > after, is_unused_blob())
        .order_by(blobs.c.digest)
        .limit(limit)
    )
    return [Digest(item) for item in connection.scalars(query)]


def forget_blob(connection: sa.Connection, digest: Digest) -> bool:
    """Remove the row of a blob that nothing needs; False if something needs it (again).

    True also if there is no row: then the file, if there is one, was left by a crash.
    """
    connection.execute(sa.delete(blobs).where(blobs.c.digest == digest, is_unused_blob()))
    query = sa.select(sa.literal(1)).where(blobs.c.digest == digest)
    return connection.scalar(query) is None


def known_blobs(connection: sa.Connection, digests: Collection[Digest]) -> set[Digest]:
    """Return which of `digests` have a row."""
    found = set[Digest]()
    for batch in batched(digests):
        query = sa.select(blobs.c.digest).where(blobs.c.digest.in_(batch))
        found.update(Digest(item) for item in connection.scalars(query))
    return found


def is_unused_blob() -> sa.ColumnElement[bool]:
    """Say, in SQL, that no repository links a blob or holds it as a manifest."""
    return sa.and_(
        ~sa.exists().where(links.c.digest == blobs.c.digest),
        ~sa.exists().where(manifests.c.digest == blobs.c.digest),
    )
