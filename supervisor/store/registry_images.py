"""Units of work about whole images: listing and removing them, and pruning.

Pruning has steps, each a short transaction over a bounded number of rows that returns which
repositories it changed. What they would free is found by running the same steps and taking them
back, so that the two cannot disagree.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import sqlalchemy as sa

from supervisor.model.ids import Tenant
from supervisor.model.inventory import Pruned, PruneWish, StoredImage
from supervisor.model.oci import Digest, RepositoryName, Tag
from supervisor.model.registry import Removal
from supervisor.store.registry import delete_repository, drop_manifests
from supervisor.store.registry_tables import (
    blobs,
    links,
    manifests,
    references,
    repositories,
    tags,
    uploads,
)
from supervisor.store.registry_upkeep import drop_unused_links, is_unused_blob
from supervisor.store.tables import builds

PruneStep = Callable[[sa.Connection, PruneWish, int], Sequence[RepositoryName]]
"""Changes at most so many rows, and returns in which repositories."""

BUILDS, CACHES, BASE, MIRROR = "builds/", "cache/", "base/", "mirror/"
STEP_ROWS = 200
"""So many are changed at once, so that pushes come in between."""
_ALL_ROWS = -1
"""As SQL has it: no limit."""
_COLUMNS = (
    manifests.c.repository,
    manifests.c.digest,
    manifests.c.media_type,
    manifests.c.pushed_at,
)


# Images


def list_images(
    connection: sa.Connection,
    tenant: Tenant | None,
    *,
    repository: RepositoryName | None = None,
    after: tuple[str, str] = ("", ""),
    limit: int,
) -> Sequence[StoredImage]:
    """Return images by repository and digest, from behind `after` on.

    With a tenant only its own: those below its name, and those of its builds. Caches are no images,
    nor is what is attached to one (a signature has a subject).
    """
    query = (
        _select_images()
        .where(sa.tuple_(manifests.c.repository, manifests.c.digest) > sa.tuple_(*after))
        .order_by(manifests.c.repository, manifests.c.digest)
        .limit(limit)
    )
    if repository is not None:
        query = query.where(manifests.c.repository == repository)
    if tenant is not None:
        query = query.where(_is_of(tenant))
    return [_image(connection, row) for row in connection.execute(query)]


def find_image(
    connection: sa.Connection,
    tenant: Tenant | None,
    repository: RepositoryName,
    reference: Tag | Digest,
) -> StoredImage | None:
    """Return the image that a tag or a digest names, if it is one of the tenant's."""
    query = sa.select(*_COLUMNS).where(manifests.c.repository == repository, ~_is_cache())
    if ":" in reference:
        query = query.where(manifests.c.digest == reference)
    else:
        named = sa.select(tags.c.digest).where(
            tags.c.repository == repository, tags.c.name == reference
        )
        query = query.where(manifests.c.digest == named.scalar_subquery())
    if tenant is not None:
        query = query.where(_is_of(tenant))
    row = connection.execute(query).one_or_none()
    return None if row is None else _image(connection, row)


def remove_image(
    connection: sa.Connection, repository: RepositoryName, reference: Tag | Digest
) -> Removal:
    """Remove a tag, and the image with its last one; by digest, the image with all its tags.

    Not what an index of the repository is made of. The bytes go when nothing else needs them.
    """
    digest = reference
    if ":" not in reference:
        found = connection.scalar(
            sa.select(tags.c.digest).where(
                tags.c.repository == repository, tags.c.name == reference
            )
        )
        if found is None:
            return Removal.NOT_FOUND
        digest = Digest(found)
        connection.execute(
            sa.delete(tags).where(tags.c.repository == repository, tags.c.name == reference)
        )
        still_tagged = sa.select(sa.literal(1)).where(
            tags.c.repository == repository, tags.c.digest == digest
        )
        if connection.scalar(still_tagged.limit(1)) or _is_part(connection, repository, digest):
            return Removal.DONE
    elif _is_part(connection, repository, digest):
        return Removal.IN_USE
    drop_manifests(connection, [(repository, Digest(digest))])
    return Removal.DONE


# Pruning


def prune_steps(wish: PruneWish) -> Sequence[tuple[str, PruneStep]]:
    """Return the steps of a prune, in order, each with the field of `Pruned` that counts for it.

    Each is to be run until it changes nothing more.
    """
    images: tuple[tuple[str, PruneStep], ...] = (
        ("manifests", _drop_untagged), ("links", _drop_links),
    )  # fmt: skip
    if wish.images_only:
        return images
    return (("repositories", _drop_repositories), *images, ("repositories", _drop_empty))


def find_reclaimable(connection: sa.Connection, wish: PruneWish) -> Pruned:
    """Return what a prune would remove of the registry, by doing it and taking it back.

    Nothing comes in between, so each step is done at one go: in pieces, each would have to look
    again at all that the ones before have left.
    """
    counts: Counter[str] = Counter()
    garbage = _unused_content(connection) if wish.images_only else (0, 0)
    savepoint = connection.begin_nested()
    try:
        for kind, step in prune_steps(wish):
            while changed := step(connection, wish, _ALL_ROWS):
                counts[kind] += len(changed)
        unused = _unused_content(connection)
    finally:
        savepoint.rollback()
    return Pruned(
        repositories=counts["repositories"],
        manifests=counts["manifests"],
        blobs=unused[0] - garbage[0],
        freed_bytes=unused[1] - garbage[1],
    )


def usage_of(connection: sa.Connection, prefixes: Sequence[str] | None) -> tuple[int, int]:
    """Return how many images lie below `prefixes`, and the bytes they lead to, each blob once.

    With None: below none of the prefixes with a meaning of their own, so those of tenants and
    builds.
    """
    if prefixes is None:
        here = sa.and_(
            *(
                ~manifests.c.repository.startswith(prefix, autoescape=True)
                for prefix in (CACHES, BASE, MIRROR)
            )
        )
    else:
        here = sa.or_(
            *(manifests.c.repository.startswith(prefix, autoescape=True) for prefix in prefixes)
        )
    count = connection.scalar(
        sa.select(sa.func.count()).select_from(manifests).where(here, ~_is_in_index())
    )
    needed = sa.union(
        sa.select(manifests.c.digest).where(here),
        sa.select(references.c.digest)
        .join(
            manifests,
            sa.and_(
                manifests.c.repository == references.c.repository,
                manifests.c.digest == references.c.manifest,
            ),
        )
        .where(here),
    ).subquery()
    size = connection.scalar(
        sa.select(sa.func.sum(blobs.c.size_bytes)).where(
            blobs.c.digest.in_(sa.select(needed.c.digest))
        )
    )
    return count or 0, size or 0


def total_usage(connection: sa.Connection) -> tuple[int, int]:
    """Return the number and the bytes of all blobs."""
    row = connection.execute(
        sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(blobs.c.size_bytes), 0))
    ).one()
    return row[0], row[1]


# Helpers


def _select_images() -> sa.Select[Any]:
    return sa.select(*_COLUMNS).where(~_is_in_index(), ~_is_cache(), manifests.c.subject.is_(None))


def _is_cache() -> sa.ColumnElement[bool]:
    return manifests.c.repository.startswith(CACHES, autoescape=True)


def _is_in_index() -> sa.ColumnElement[bool]:
    return sa.exists().where(
        references.c.repository == manifests.c.repository,
        references.c.digest == manifests.c.digest,
    )


def _is_of(tenant: Tenant) -> sa.ColumnElement[bool]:
    repository = manifests.c.repository
    return sa.or_(
        repository.startswith(f"{tenant}/", autoescape=True),
        sa.and_(
            repository.startswith(BUILDS, autoescape=True),
            sa.exists().where(builds.c.id == _build_id(repository), builds.c.tenant == tenant),
        ),
    )


def _build_id(repository: sa.ColumnElement[str]) -> sa.ColumnElement[str]:
    return sa.func.substr(repository, len(BUILDS) + 1)


def _is_part(connection: sa.Connection, repository: str, digest: str) -> bool:
    query = sa.select(sa.literal(1)).where(
        references.c.repository == repository, references.c.digest == digest
    )
    return connection.scalar(query.limit(1)) is not None


def _image(connection: sa.Connection, row: Any) -> StoredImage:
    names = connection.scalars(
        sa.select(tags.c.name)
        .where(tags.c.repository == row.repository, tags.c.digest == row.digest)
        .order_by(tags.c.name)
    )
    below = sa.select(sa.literal(row.digest).label("digest")).cte("below", recursive=True)
    below = below.union(
        sa.select(references.c.digest).where(
            references.c.repository == row.repository, references.c.manifest == below.c.digest
        )
    )
    size = connection.scalar(
        sa.select(sa.func.sum(blobs.c.size_bytes)).join(below, below.c.digest == blobs.c.digest)
    )
    return StoredImage(
        repository=RepositoryName(row.repository),
        digest=Digest(row.digest),
        media_type=row.media_type,
        tags=tuple(Tag(name) for name in names),
        size_bytes=size or 0,
        pushed_at=row.pushed_at,
    )


def _unused_content(connection: sa.Connection) -> tuple[int, int]:
    """Return number and bytes of the blobs that nothing needs."""
    count_and_sum = sa.func.count(), sa.func.coalesce(sa.func.sum(blobs.c.size_bytes), 0)
    row = connection.execute(sa.select(*count_and_sum).where(is_unused_blob())).one()
    return row[0], row[1]


def _is_touchable(repository: Any, wish: PruneWish) -> Iterator[sa.ColumnElement[bool]]:
    """Nothing is taken from where a push may be under way, or from other tenants than wished.

    Mirrors look after themselves.
    """
    yield ~repository.startswith(MIRROR, autoescape=True)
    if wish.tenant is not None:
        yield repository.startswith(f"{wish.tenant}/", autoescape=True)
    yield repository.not_in(list(wish.busy))
    yield ~sa.exists().where(uploads.c.repository == repository)


def _drop_repositories(
    connection: sa.Connection, wish: PruneWish, limit: int
) -> Sequence[RepositoryName]:
    """Remove images of builds that nobody knows any more and, if wished, caches out of use."""
    name = repositories.c.name
    is_orphan = sa.and_(
        name.startswith(BUILDS, autoescape=True),
        ~sa.exists().where(builds.c.id == _build_id(name)),
    )
    doomed = [is_orphan]
    if wish.caches:
        doomed.append(name.startswith(CACHES, autoescape=True))
    query = (
        sa.select(name)
        .where(
            sa.or_(*doomed),
            *_is_touchable(name, wish),
            repositories.c.created_at < wish.before,
            ~sa.exists().where(links.c.repository == name, links.c.used_at >= wish.before),
            ~sa.exists().where(
                manifests.c.repository == name, manifests.c.pushed_at >= wish.before
            ),
        )
        .limit(limit)
    )
    found = [RepositoryName(item) for item in connection.scalars(query)]
    for repository in found:
        delete_repository(connection, repository)
    return found


def _drop_untagged(
    connection: sa.Connection, wish: PruneWish, limit: int
) -> Sequence[RepositoryName]:
    """Remove manifests that no tag, index or subject keeps; the operator's bases stay."""
    repository = manifests.c.repository
    other = manifests.alias()
    query = (
        sa.select(repository, manifests.c.digest)
        .where(
            ~repository.startswith(BASE, autoescape=True),
            *_is_touchable(repository, wish),
            manifests.c.pushed_at < wish.before,
            ~sa.exists().where(
                tags.c.repository == repository, tags.c.digest == manifests.c.digest
            ),
            ~_is_in_index(),
            # A referrer lives as long as what it refers to.
            ~sa.exists().where(
                other.c.repository == repository, other.c.digest == manifests.c.subject
            ),
        )
        .limit(limit)
    )
    found = [
        (RepositoryName(row.repository), Digest(row.digest)) for row in connection.execute(query)
    ]
    drop_manifests(connection, found)
    return [item for item, _ in found]


def _drop_links(connection: sa.Connection, wish: PruneWish, limit: int) -> Sequence[RepositoryName]:
    """Unlink blobs that no manifest of their repository needs."""
    only = _is_touchable(links.c.repository, wish)
    return drop_unused_links(connection, wish.before, limit, *only)


def _drop_empty(connection: sa.Connection, wish: PruneWish, limit: int) -> Sequence[RepositoryName]:
    """Forget repositories in which nothing is left."""
    name = repositories.c.name
    query = (
        sa.select(name)
        .where(
            repositories.c.created_at < wish.before,
            *_is_touchable(name, wish),
            ~sa.exists().where(links.c.repository == name),
            ~sa.exists().where(manifests.c.repository == name),
        )
        .limit(limit)
    )
    found = [RepositoryName(item) for item in connection.scalars(query)]
    for repository in found:
        delete_repository(connection, repository)
    return found
