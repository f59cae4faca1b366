"""Units of work about builds: each runs in one transaction (see `store.database`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import sqlalchemy as sa
from pydantic import TypeAdapter

from supervisor.errors import NotFound
from supervisor.model.build import (
    Build,
    BuildRequest,
    Phase,
    Provenance,
    Reason,
    Source,
    Status,
    Step,
)
from supervisor.model.ids import BuildId, Tenant
from supervisor.store.tables import build_tags, builds

_REQUEST = TypeAdapter(BuildRequest)
_PROVENANCE = TypeAdapter(Provenance)
_IDS_AT_ONCE = 5000
_STEPS = TypeAdapter(tuple[Step, ...])

_WHOLE = [column for column in builds.c if column is not builds.c.steps]
_SUMMARY = [column for column in _WHOLE if column.name not in ("dockerfile", "build_args")]


@dataclass(frozen=True, slots=True)
class BuildFilter:
    """Which builds to list: newest first, `limit` at most, only those before the id `before`."""

    limit: int
    tenant: Tenant | None = None
    """None: every tenant's."""
    status: Status | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    before: BuildId | None = None


def insert_build(connection: sa.Connection, build: Build) -> None:
    """Store a new build."""
    connection.execute(builds.insert().values(steps=[], **_to_row(build)))
    if build.request.tags:
        rows = [
            {"build_id": build.id, "key": key, "value": value}
            for key, value in build.request.tags.items()
        ]
        connection.execute(build_tags.insert(), rows)


def update_build(connection: sa.Connection, build: Build) -> None:
    """Replace what is stored of `build`, its steps excepted. A stored wish to cancel stays."""
    row = _to_row(build)
    if not build.cancel_requested:
        del row["cancel_requested"]
    done = connection.execute(builds.update().where(builds.c.id == row.pop("id")).values(row))
    assert done.rowcount == 1, f"build {build.id} is not stored"


def mark_cancel_requested(connection: sa.Connection, build_id: BuildId) -> None:
    """Store that the end of a running build was asked for, beside whatever its actor writes."""
    connection.execute(builds.update().where(builds.c.id == build_id).values(cancel_requested=True))


def get_build(connection: sa.Connection, build_id: BuildId) -> Build:
    """Return a build. Raises NotFound."""
    row = connection.execute(sa.select(*_WHOLE).where(builds.c.id == build_id)).one_or_none()
    if row is None:
        raise NotFound(f"there is no build {build_id}")
    request = replace(
        _REQUEST.validate_python(row.request), dockerfile=row.dockerfile, build_args=row.build_args
    )
    return _from_row(row, request)


def get_tenant(connection: sa.Connection, build_id: BuildId) -> Tenant | None:
    """Return whose a build is, or None if there is no such build."""
    tenant = connection.execute(sa.select(builds.c.tenant).where(builds.c.id == build_id)).scalar()
    return None if tenant is None else Tenant(tenant)


def list_builds(connection: sa.Connection, wanted: BuildFilter) -> list[Build]:
    """Return the builds that the filter admits, newest first. Ids sort by time.

    To look at only: their requests come without `dockerfile` and `build_args`.
    """
    query = sa.select(*_SUMMARY).order_by(builds.c.id.desc()).limit(wanted.limit)
    if wanted.tenant is not None:
        query = query.where(builds.c.tenant == wanted.tenant)
    if wanted.status is not None:
        query = query.where(builds.c.status == wanted.status.value)
    if wanted.before is not None:
        query = query.where(builds.c.id < wanted.before)
    for key, value in wanted.tags.items():
        tagged = sa.select(build_tags.c.build_id).where(
            build_tags.c.key == key, build_tags.c.value == value
        )
        query = query.where(builds.c.id.in_(tagged))
    return [
        _from_row(row, _REQUEST.validate_python(row.request)) for row in connection.execute(query)
    ]


def unfinished_ids(connection: sa.Connection) -> list[BuildId]:
    """Return the ids of all builds that have no final status, in order."""
    # Named one by one: an index finds what something is, not what it is not.
    unfinished = [status.value for status in Status if not status.is_final]
    query = sa.select(builds.c.id).where(builds.c.status.in_(unfinished)).order_by(builds.c.id)
    return [BuildId(row.id) for row in connection.execute(query)]


def finished_before(connection: sa.Connection, moment: float) -> list[BuildId]:
    """Return the ids of all builds that ended before a time."""
    query = sa.select(builds.c.id).where(builds.c.completed_at < moment)
    return [BuildId(row.id) for row in connection.execute(query)]


def count_by_status(connection: sa.Connection) -> dict[Status, int]:
    """Return how many builds there are of each status."""
    query = sa.select(builds.c.status, sa.func.count()).group_by(builds.c.status)
    found = {row[0]: row[1] for row in connection.execute(query)}
    return {status: found.get(status.value, 0) for status in Status}


def last_ended_ids(connection: sa.Connection, limit: int) -> list[BuildId]:
    """Return the ids of the builds that ended last, the latest first."""
    query = (
        sa.select(builds.c.id)
        .where(builds.c.completed_at.is_not(None))
        .order_by(builds.c.completed_at.desc())
        .limit(limit)
    )
    return [BuildId(row.id) for row in connection.execute(query)]


def stored_ids(connection: sa.Connection, ids: Iterable[BuildId]) -> set[BuildId]:
    """Return those of `ids` that are stored: the rest of the directories are leftovers.

    Nearly all that is asked for is there, so ranges of the table are read rather than single rows.
    """
    found: set[BuildId] = set()
    asked = sorted(ids)
    for start in range(0, len(asked), _IDS_AT_ONCE):
        batch = asked[start : start + _IDS_AT_ONCE]
        query = sa.select(builds.c.id).where(builds.c.id.between(batch[0], batch[-1]))
        found.update(set(batch).intersection(connection.scalars(query)))
    return found


def delete_build(connection: sa.Connection, build_id: BuildId) -> None:
    """Forget a build."""
    connection.execute(builds.delete().where(builds.c.id == build_id))


def set_steps(connection: sa.Connection, build_id: BuildId, steps: Sequence[Step]) -> None:
    """Store the steps of the latest attempt."""
    value = [dataclasses.asdict(step) for step in steps]
    connection.execute(builds.update().where(builds.c.id == build_id).values(steps=value))


def get_steps(connection: sa.Connection, build_id: BuildId) -> tuple[Step, ...]:
    """Return the steps of the latest attempt that has ended."""
    value = connection.execute(sa.select(builds.c.steps).where(builds.c.id == build_id)).scalar()
    return _STEPS.validate_python(value or [])


def _to_row(build: Build) -> dict[str, Any]:
    return {
        "id": build.id,
        "tenant": build.tenant,
        "status": build.status.value,
        "attempt": build.attempt,
        "lost_attempts": build.lost_attempts,
        "request": _REQUEST.dump_python(
            build.request, mode="json", exclude={"dockerfile", "build_args"}
        ),
        "dockerfile": build.request.dockerfile,
        "build_args": dict(build.request.build_args),
        "source_sha256": build.source.sha256,
        "source_size_bytes": build.source.size_bytes,
        "created_at": build.created_at,
        "queued_at": build.queued_at,
        "started_at": build.started_at,
        "completed_at": build.completed_at,
        "cancel_requested": build.cancel_requested,
        "error_code": build.error_code.value if build.error_code else None,
        "error": build.error,
        "image_digest": build.image_digest,
        "provenance": _PROVENANCE.dump_python(build.provenance) if build.provenance else None,
        "phases": {phase.value: seconds for phase, seconds in build.phases.items()},
    }


def _from_row(row: sa.Row[Any], request: BuildRequest) -> Build:
    return Build(
        id=BuildId(row.id),
        tenant=Tenant(row.tenant),
        request=request,
        source=Source(row.source_sha256, row.source_size_bytes),
        created_at=row.created_at,
        status=Status(row.status),
        attempt=row.attempt,
        lost_attempts=row.lost_attempts,
        queued_at=row.queued_at,
        started_at=row.started_at,
        completed_at=row.completed_at,
        cancel_requested=row.cancel_requested,
        error_code=Reason(row.error_code) if row.error_code else None,
        error=row.error,
        image_digest=row.image_digest,
        provenance=_PROVENANCE.validate_python(row.provenance) if row.provenance else None,
        phases={Phase(name): seconds for name, seconds in row.phases.items()},
    )
