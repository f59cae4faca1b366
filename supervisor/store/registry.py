"""Units of work on the registry's facts. Each runs in one transaction (see `store.database`).

What they keep true, whatever the order of calls:

* a manifest row exists only while all that it references is linked or held in the same repository
  (but see `store.registry_mirror`, whose manifests arrive before their content);
* a tag points at a manifest row of its repository (a foreign key);
* a blob row goes only when no link and no manifest needs it.

So a tag never points at missing content, and garbage collection cannot race with a push: both are
transactions, and the later one sees what the earlier one did.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

import sqlalchemy as sa

from supervisor.model.oci import Digest, RepositoryName, Tag, UploadId
from supervisor.model.registry import (
    BlobInfo,
    FileStamp,
    ManifestInfo,
    NewManifest,
    Page,
    PutRefused,
    Reference,
    Referrer,
    Removal,
)
from supervisor.store.registry_tables import (
    blobs,
    links,
    manifests,
    references,
    repositories,
    tags,
    uploads,
)

T = TypeVar("T")

_BATCH = 500
"""Values in one IN (…): below the least limit of the databases that we use."""


# Blobs and links


def find_blob(
    connection: sa.Connection, repository: RepositoryName, digest: Digest
) -> BlobInfo | None:
    """Return the blob if `repository` links it."""
    row = connection.execute(
        sa.select(blobs.c.size_bytes, links.c.used_at, blobs.c.stamp)
        .join_from(links, blobs, links.c.digest == blobs.c.digest)
        .where(links.c.repository == repository, links.c.digest == digest)
    ).one_or_none()
    return None if row is None else BlobInfo(digest, row.size_bytes, row.used_at, row.stamp)


def find_stamp(connection: sa.Connection, digest: Digest) -> FileStamp | None:
    """Return the stamp of a blob's file when it was last verified."""
    stamp: str | None = connection.scalar(sa.select(blobs.c.stamp).where(blobs.c.digest == digest))
    return None if stamp is None else FileStamp(stamp)


def note_stamp(connection: sa.Connection, digest: Digest, stamp: FileStamp) -> None:
    """Note that a blob's file has been verified; a blob that is gone is fine."""
    connection.execute(sa.update(blobs).where(blobs.c.digest == digest).values(stamp=stamp))


def find_linking_repositories(
    connection: sa.Connection, digest: Digest, limit: int
) -> Sequence[RepositoryName]:
    """Return up to `limit` repositories that link a blob, the most recently used first."""
    query = (
        sa.select(links.c.repository)
        .where(links.c.digest == digest)
        .order_by(links.c.used_at.desc())
        .limit(limit)
    )
    return [RepositoryName(name) for name in connection.scalars(query)]


def link_blob(
    connection: sa.Connection,
    repository: RepositoryName,
    blob: BlobInfo,
    now: float,
    upload: UploadId | None = None,
) -> None:
    """Link a blob whose file is durable, and end the upload that it came by."""
    _ensure_repository(connection, repository, now)
    _ensure_blob(connection, blob.digest, blob.size_bytes)
    if blob.stamp is not None:
        # The size with it: a row that had another one would have the file taken for damaged.
        connection.execute(
            sa.update(blobs)
            .where(blobs.c.digest == blob.digest)
            .values(stamp=blob.stamp, size_bytes=blob.size_bytes)
        )
    _ensure_link(connection, repository, blob.digest, now)
    if upload is not None:
        connection.execute(sa.delete(uploads).where(uploads.c.id == upload))


def mount_blob(
    connection: sa.Connection,
    source: RepositoryName,
    target: RepositoryName,
    digest: Digest,
    now: float,
) -> BlobInfo | None:
    """Link in `target` a blob that `source` links; None if it does not."""
    blob = find_blob(connection, source, digest)
    if blob is not None:
        link_blob(connection, target, blob, now)
    return blob


def touch_blob(
    connection: sa.Connection, repository: RepositoryName, digest: Digest, now: float
) -> None:
    """Note that a client asked for a blob: its next manifest may count on finding it here."""
    connection.execute(
        sa.update(links)
        .where(links.c.repository == repository, links.c.digest == digest)
        .values(used_at=now)
    )


def unlink_blob(connection: sa.Connection, repository: RepositoryName, digest: Digest) -> Removal:
    """Remove a blob from a repository, unless a manifest there needs it."""
    if find_blob(connection, repository, digest) is None:
        return Removal.NOT_FOUND
    if _is_referenced(connection, repository, digest):
        return Removal.IN_USE
    connection.execute(
        sa.delete(links).where(links.c.repository == repository, links.c.digest == digest)
    )
    return Removal.DONE


# Manifests and tags


def find_manifest(
    connection: sa.Connection, repository: RepositoryName, digest: Digest
) -> ManifestInfo | None:
    """Return the manifest if `repository` holds it."""
    row = connection.execute(
        select_manifest().where(manifests.c.repository == repository, manifests.c.digest == digest)
    ).one_or_none()
    return None if row is None else ManifestInfo(digest, row.media_type, row.size_bytes)


def find_tagged(
    connection: sa.Connection, repository: RepositoryName, tag: Tag
) -> ManifestInfo | None:
    """Return the manifest that a tag points at."""
    row = connection.execute(
        select_manifest()
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
    return ManifestInfo(Digest(row.digest), row.media_type, row.size_bytes)


def put_manifest(
    connection: sa.Connection,
    repository: RepositoryName,
    manifest: NewManifest,
    names: Collection[Tag],
    now: float,
) -> PutRefused | None:
    """Store a manifest and point `names` at it, or say what it needs that is not there.

    The manifest's own bytes are durable in the blob store before this is called.
    """
    refused = check_references(connection, repository, manifest.references)
    if refused is not None:
        return refused
    store_manifest(connection, repository, manifest, now)
    for name in names:
        set_tag(connection, repository, name, manifest.digest, now)
    return None


def store_manifest(
    connection: sa.Connection, repository: RepositoryName, manifest: NewManifest, now: float
) -> None:
    """Store a manifest whether or not what it references is there: see `put_manifest`."""
    _ensure_repository(connection, repository, now)
    _ensure_blob(connection, manifest.digest, manifest.size_bytes)
    key = {"repository": repository, "digest": manifest.digest}
    values = {
        "media_type": manifest.media_type,
        "artifact_type": manifest.artifact_type,
        "subject": manifest.subject,
        "annotations": dict(manifest.annotations),
        "pushed_at": now,
    }
    if _upsert(connection, manifests, key, values):
        rows = [
            {"repository": repository, "manifest": manifest.digest, "digest": digest}
            for digest in dict.fromkeys(item.digest for item in manifest.references)
        ]
        if rows:
            connection.execute(sa.insert(references), rows)


def delete_tag(connection: sa.Connection, repository: RepositoryName, tag: Tag) -> Removal:
    """Remove a tag; the manifest stays."""
    result = connection.execute(
        sa.delete(tags).where(tags.c.repository == repository, tags.c.name == tag)
    )
    return Removal.DONE if result.rowcount else Removal.NOT_FOUND


def delete_manifest(
    connection: sa.Connection, repository: RepositoryName, digest: Digest
) -> Removal:
    """Remove a manifest and every tag that points at it, unless an index there needs it."""
    if find_manifest(connection, repository, digest) is None:
        return Removal.NOT_FOUND
    if _is_referenced(connection, repository, digest):
        return Removal.IN_USE
    drop_manifests(connection, [(repository, digest)])
    return Removal.DONE


# Discovery


def has_repository(connection: sa.Connection, repository: RepositoryName) -> bool:
    """Say whether anything was ever pushed there."""
    query = sa.select(sa.literal(1)).where(repositories.c.name == repository)
    return connection.scalar(query) is not None


def list_repositories(connection: sa.Connection, limit: int, last: str) -> Page[RepositoryName]:
    """Return up to `limit` names after `last`, in order."""
    query = (
        sa.select(repositories.c.name)
        .where(repositories.c.name > last)
        .order_by(repositories.c.name)
        .limit(limit + 1)
    )
    return _page([RepositoryName(name) for name in connection.scalars(query)], limit)


def list_tags(
    connection: sa.Connection, repository: RepositoryName, limit: int, last: str
) -> Page[Tag] | None:
    """Return up to `limit` tags after `last`, in order; None if there is no such repository."""
    if not has_repository(connection, repository):
        return None
    query = (
        sa.select(tags.c.name)
        .where(tags.c.repository == repository, tags.c.name > last)
        .order_by(tags.c.name)
        .limit(limit + 1)
    )
    return _page([Tag(name) for name in connection.scalars(query)], limit)


def list_referrers(
    connection: sa.Connection,
    repository: RepositoryName,
    subject: Digest,
    artifact_type: str | None,
    limit: int,
    last: str,
) -> Page[Referrer]:
    """Return up to `limit` manifests whose subject is `subject`, after the digest `last`."""
    query = (
        select_manifest()
        .add_columns(manifests.c.artifact_type, manifests.c.annotations)
        .where(
            manifests.c.repository == repository,
            manifests.c.subject == subject,
            manifests.c.digest > last,
        )
        .order_by(manifests.c.digest)
        .limit(limit + 1)
    )
    if artifact_type is not None:
        query = query.where(manifests.c.artifact_type == artifact_type)
    found = [
        Referrer(
            Digest(row.digest), row.media_type, row.size_bytes, row.artifact_type, row.annotations
        )
        for row in connection.execute(query)
    ]
    return _page(found, limit)


# Whole images and repositories


def holds_image(connection: sa.Connection, repository: RepositoryName, digest: Digest) -> bool:
    """Say whether `repository` holds a manifest and all that it references, at every level."""
    if find_manifest(connection, repository, digest) is None:
        return False
    wanted = set[Digest]()
    for manifest in _manifests_below(connection, repository, digest):
        wanted.update(_references_of(connection, repository, manifest))
    return not _missing(connection, repository, wanted)


def copy_image(
    connection: sa.Connection,
    source: RepositoryName,
    digest: Digest,
    target: RepositoryName,
    tag: Tag,
    now: float,
) -> bool:
    """Make an image of `source` readable as `target:tag`; False if it is not there whole."""
    if not holds_image(connection, source, digest):
        return False
    _ensure_repository(connection, target, now)
    for manifest in _manifests_below(connection, source, digest):
        needed = _references_of(connection, source, manifest)
        for blob in _linked(connection, source, needed):
            _ensure_link(connection, target, blob, now)
        row = connection.execute(
            sa.select(manifests).where(
                manifests.c.repository == source, manifests.c.digest == manifest
            )
        ).one()
        values = {**row._mapping, "pushed_at": now}
        key = {"repository": target, "digest": manifest}
        values = {name: value for name, value in values.items() if name not in key}
        if _upsert(connection, manifests, key, values) and needed:
            connection.execute(
                sa.insert(references),
                [{"repository": target, "manifest": manifest, "digest": item} for item in needed],
            )
    set_tag(connection, target, tag, digest, now)
    return True


def delete_repository(connection: sa.Connection, repository: RepositoryName) -> bool:
    """Remove a repository with its tags, manifests, links and uploads; blobs go by collection."""
    connection.execute(sa.delete(uploads).where(uploads.c.repository == repository))
    result = connection.execute(sa.delete(repositories).where(repositories.c.name == repository))
    return result.rowcount > 0


# Helpers


def select_manifest() -> sa.Select[Any]:
    """Return the query for manifests with their sizes."""
    return sa.select(manifests.c.digest, manifests.c.media_type, blobs.c.size_bytes).join_from(
        manifests, blobs, manifests.c.digest == blobs.c.digest
    )


def _is_referenced(connection: sa.Connection, repository: RepositoryName, digest: Digest) -> bool:
    query = sa.select(sa.literal(1)).where(
        references.c.repository == repository, references.c.digest == digest
    )
    return connection.scalar(query.limit(1)) is not None


def check_references(
    connection: sa.Connection, repository: RepositoryName, wanted: Sequence[Reference]
) -> PutRefused | None:
    """Say which of `wanted` the repository does not hold, or not with that size."""
    sizes = _sizes(connection, repository, [item.digest for item in wanted])
    unknown = tuple(item.digest for item in wanted if item.digest not in sizes)
    wrong_size = tuple(
        item.digest
        for item in wanted
        if item.digest in sizes and sizes[item.digest] != item.size_bytes
    )
    return PutRefused(unknown, wrong_size) if unknown or wrong_size else None


def _sizes(
    connection: sa.Connection, repository: RepositoryName, digests: Collection[Digest]
) -> dict[Digest, int]:
    """Return the sizes of those of `digests` that the repository links, or holds as manifests."""
    sizes: dict[Digest, int] = {}
    for batch in batched(digests):
        for table in (links, manifests):
            query = (
                sa.select(blobs.c.digest, blobs.c.size_bytes)
                .join_from(table, blobs, table.c.digest == blobs.c.digest)
                .where(table.c.repository == repository, table.c.digest.in_(batch))
            )
            sizes.update({Digest(row.digest): row.size_bytes for row in connection.execute(query)})
    return sizes


def _missing(
    connection: sa.Connection, repository: RepositoryName, digests: Collection[Digest]
) -> set[Digest]:
    return set(digests) - _sizes(connection, repository, digests).keys()


def _linked(
    connection: sa.Connection, repository: RepositoryName, digests: Collection[Digest]
) -> Iterator[Digest]:
    for batch in batched(digests):
        query = sa.select(links.c.digest).where(
            links.c.repository == repository, links.c.digest.in_(batch)
        )
        yield from [Digest(item) for item in connection.scalars(query)]


def _references_of(
    connection: sa.Connection, repository: RepositoryName, manifest: Digest
) -> list[Digest]:
    query = sa.select(references.c.digest).where(
        references.c.repository == repository, references.c.manifest == manifest
    )
    return [Digest(item) for item in connection.scalars(query)]


def _manifests_below(
    connection: sa.Connection, repository: RepositoryName, root: Digest
) -> list[Digest]:
    """Return `root` and every manifest that it leads to in the repository, each once."""
    seen = {root: None}
    queue = [root]
    while queue:
        for digest in _references_of(connection, repository, queue.pop()):
            if digest not in seen and find_manifest(connection, repository, digest) is not None:
                seen[digest] = None
                queue.append(digest)
    return list(seen)


def drop_manifests(
    connection: sa.Connection, keys: Iterable[tuple[RepositoryName, Digest]]
) -> None:
    """Remove manifests; tags and references go with them, by their foreign keys."""
    delete_rows(connection, manifests, keys)


def delete_rows(
    connection: sa.Connection, table: sa.Table, keys: Iterable[tuple[RepositoryName, Digest]]
) -> None:
    """Remove rows of links or manifests, all by one statement."""
    statement = sa.delete(table).where(
        table.c.repository == sa.bindparam("of"), table.c.digest == sa.bindparam("content")
    )
    if rows := [{"of": repository, "content": digest} for repository, digest in keys]:
        connection.execute(statement, rows)


def _ensure_repository(connection: sa.Connection, name: RepositoryName, now: float) -> None:
    if not has_repository(connection, name):
        connection.execute(sa.insert(repositories).values(name=name, created_at=now))


def _ensure_blob(connection: sa.Connection, digest: Digest, size_bytes: int) -> None:
    query = sa.select(sa.literal(1)).where(blobs.c.digest == digest)
    if connection.scalar(query) is None:
        connection.execute(sa.insert(blobs).values(digest=digest, size_bytes=size_bytes))


def _ensure_link(
    connection: sa.Connection, repository: RepositoryName, digest: Digest, now: float
) -> None:
    _upsert(connection, links, {"repository": repository, "digest": digest}, {"used_at": now})


def set_tag(
    connection: sa.Connection,
    repository: RepositoryName,
    tag: Tag,
    digest: Digest,
    now: float,
    *,
    checked_at: float | None = None,
) -> None:
    """Point a tag at a manifest of its repository; `checked_at` is for mirrored tags."""
    key = {"repository": repository, "name": tag}
    values = {"digest": digest, "updated_at": now, "checked_at": checked_at}
    _upsert(connection, tags, key, values)


def _upsert(
    connection: sa.Connection, table: sa.Table, key: dict[str, Any], values: dict[str, Any]
) -> bool:
    """Update the row with `key`, or insert it; True if it is new."""
    condition = [table.c[name] == value for name, value in key.items()]
    if connection.execute(sa.update(table).where(*condition).values(**values)).rowcount:
        return False
    connection.execute(sa.insert(table).values(**key, **values))
    return True


def _page(items: Sequence[T], limit: int) -> Page[T]:
    return Page(items[:limit], more=len(items) > limit)


def batched(items: Iterable[T]) -> Iterator[list[T]]:
    """Yield `items` in lists that one IN (…) can take."""
    iterator = iter(items)
    while batch := list(islice(iterator, _BATCH)):
        yield batch
