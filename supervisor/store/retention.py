"""Units of work about what is kept no longer: old builds, and what a crash left of removed ones."""

from __future__ import annotations

import sqlalchemy as sa

from supervisor.model.build import Status
from supervisor.model.ids import BuildId
from supervisor.model.oci import RepositoryName
from supervisor.store.registry_tables import repositories
from supervisor.store.tables import builds

_FINAL = [status.value for status in Status if status.is_final]
_IMAGES = "builds/"


def find_expired(
    connection: sa.Connection, before: float, newest_kept: int, limit: int
) -> list[BuildId]:
    """Return the oldest builds that ended before `before`, never one of the newest of all."""
    query = (
        sa.select(builds.c.id)
        .where(builds.c.status.in_(_FINAL), builds.c.completed_at < before)
        .order_by(builds.c.id)
        .limit(limit)
    )
    if newest_kept:
        ids = sa.select(builds.c.id).order_by(builds.c.id.desc())
        oldest_kept = connection.execute(ids.offset(newest_kept - 1).limit(1)).scalar()
        if oldest_kept is None:
            return []
        query = query.where(builds.c.id < oldest_kept)
    return [BuildId(row.id) for row in connection.execute(query)]


def find_stray_images(connection: sa.Connection, limit: int) -> list[RepositoryName]:
    """Return repositories of builds that are not stored: nobody can read them any more."""
    build_id = sa.func.substr(repositories.c.name, len(_IMAGES) + 1)
    query = (
        sa.select(repositories.c.name)
        .where(
            repositories.c.name.startswith(_IMAGES, autoescape=True),
            build_id.not_in(sa.select(builds.c.id)),
        )
        .limit(limit)
    )
    return [RepositoryName(row.name) for row in connection.execute(query)]
