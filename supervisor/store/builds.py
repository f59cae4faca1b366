"""Units of work about builds: each runs in one transaction (see `store.database`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import sqlalchemy as sa
from pydantic import TypeAdapter

from supervisor.errors import NotFound, RecordDamaged
from supervisor.model.build import (
    Build,
    BuildRequest,
    ErrorReason,
    NetworkMode,
    Phase,
    Policy,
    Provenance,
    Reason,
    Source,
    Status,
    Step,
)
from supervisor.model.ids import ID_LENGTH, BuildId, Tenant, parse_build_id
from supervisor.model.times import MAX_UNIX_SECONDS
from supervisor.store.tables import build_tags, builds

T = TypeVar("T")

_REQUEST = TypeAdapter(BuildRequest)
_PROVENANCE = TypeAdapter(Provenance)
_IDS_AT_ONCE = 5000
_STEPS = TypeAdapter(tuple[Step, ...])
_PHASES = TypeAdapter(dict[Phase, float])
_NONSENSE = (ValueError, TypeError, AttributeError)
"""What a value raises that nobody has written here: pydantic's errors are ValueErrors."""
_UNKNOWN_POLICY = Policy(0, 0, 0, NetworkMode.ISOLATED)

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
    """Return a build. Raises NotFound, and RecordDamaged if what is stored of it makes no sense."""
    row = connection.execute(sa.select(*_WHOLE).where(builds.c.id == build_id)).one_or_none()
    if row is None:
        raise NotFound(f"there is no build {build_id}")
    try:
        return _whole_from_row(row)
    except _NONSENSE as exc:
        raise RecordDamaged(_damage(build_id)) from exc


def get_tenant(connection: sa.Connection, build_id: BuildId) -> Tenant | None:
    """Return whose a build is, or None if there is no such build."""
    tenant = connection.execute(sa.select(builds.c.tenant).where(builds.c.id == build_id)).scalar()
    return None if tenant is None else Tenant(tenant)


def list_builds(connection: sa.Connection, wanted: BuildFilter) -> list[Build]:
    """Return the builds that the filter admits, newest first. Ids sort by time.

    To look at only: their requests come without `dockerfile` and `build_args`. Of a damaged one
    comes what can be read.
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
    return [_summary_from_row(row) for row in connection.execute(query)]


def pick_queued(
    connection: sa.Connection, ids: Sequence[BuildId], tenant: Tenant | None, limit: int
) -> list[Build]:
    """Return the first of `ids` that are queued and a tenant's, or anybody's, in the same order.

    To look at only, as those of `list_builds`.
    """
    found: list[Build] = []
    for start in range(0, len(ids), _IDS_AT_ONCE):
        batch = ids[start : start + _IDS_AT_ONCE]
        query = sa.select(builds.c.id).where(
            builds.c.id.in_(batch), builds.c.status == Status.QUEUED.value
        )
        if tenant is not None:
            query = query.where(builds.c.tenant == tenant)
        known = set(connection.scalars(query))
        first = [build_id for build_id in batch if build_id in known][: limit - len(found)]
        rows = connection.execute(sa.select(*_SUMMARY).where(builds.c.id.in_(first)))
        by_id = {row.id: _summary_from_row(row) for row in rows}
        found += [by_id[build_id] for build_id in first]
        if len(found) == limit:
            break
    return found


def end_damaged(connection: sa.Connection, build_id: BuildId, now: float) -> Build:
    """End a build of which not all can be read, and replace what cannot be; return it as it is now.

    What can be read stays. A final status does, too. Raises NotFound.
    """
    row = connection.execute(sa.select(*_WHOLE).where(builds.c.id == build_id)).one_or_none()
    if row is None:
        raise NotFound(f"there is no build {build_id}")
    build = _readable(row)
    if not build.status.is_final:
        build = replace(build, status=Status.FAILED, completed_at=now)
    if build.status is not Status.READY:
        build = replace(
            build, error_code=Reason.BUILDER_LOST, error_reason=ErrorReason.RECORD_DAMAGED
        )
    update_build(connection, build)
    return build


def unfinished_ids(connection: sa.Connection) -> list[BuildId]:
    """Return the ids of all builds that have no final status, in order."""
    query = sa.select(builds.c.id).where(builds.c.status.in_(_unfinished(connection)))
    ids = connection.scalars(query.order_by(builds.c.id))
    return [build_id for text in ids if (build_id := parse_build_id(text)) is not None]


def newest_id(connection: sa.Connection) -> BuildId | None:
    """Return the greatest id of a build that is stored."""
    return parse_build_id(connection.scalar(sa.select(sa.func.max(builds.c.id))) or "")


def _unfinished(connection: sa.Connection) -> list[str]:
    """Return the statuses that are stored and are no end; one that means nothing is none, either.

    An index finds what something is, not what it is not; and the next of its values.
    """
    final = {status.value for status in Status if status.is_final}
    unfinished, last = [""], ""
    smallest = sa.select(sa.func.min(builds.c.status))
    while value := connection.scalar(smallest.where(builds.c.status > last)):
        if value == last:
            break  # not even text: what was read of it is not what sorts there
        last = value
        if value not in final:
            unfinished.append(value)
    return unfinished


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


def unstored(connection: sa.Connection, names: set[str]) -> set[str]:
    """Return those of `names` that are no stored build's: whatever belongs to them is left over.

    Nearly all are stored, and the ids come as one text: a row for each costs ten times as much. An
    id that is damaged may cut that text short (at a NUL, in some versions of SQLite): then each is
    read by itself.
    """
    ids = sa.func.aggregate_strings(builds.c.id, ",")
    count, text = connection.execute(sa.select(sa.func.count(), ids).select_from(builds)).one()
    if len(text or "") == count * (ID_LENGTH + len(",")) - len(","):
        return names.difference(text.split(","))
    return names.difference(connection.scalars(sa.select(builds.c.id)))


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
    try:
        return _STEPS.validate_python(value or [])
    except _NONSENSE as exc:
        raise RecordDamaged(f"the steps of build {build_id} cannot be read any more") from exc


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
        "error_reason": build.error_reason.value if build.error_reason else None,
        "error": build.error,
        "image_digest": build.image_digest,
        "provenance": _PROVENANCE.dump_python(build.provenance) if build.provenance else None,
        "phases": {phase.value: seconds for phase, seconds in build.phases.items()},
    }


def _from_row(row: sa.Row[Any], request: BuildRequest) -> Build:
    return Build(
        id=BuildId(row.id),
        tenant=Tenant(_text(row.tenant)),
        request=request,
        source=Source(_text(row.source_sha256), int(row.source_size_bytes)),
        created_at=_time(row.created_at),
        status=Status(row.status),
        attempt=int(row.attempt),
        lost_attempts=int(row.lost_attempts),
        queued_at=_time(row.queued_at),
        started_at=None if row.started_at is None else _time(row.started_at),
        completed_at=None if row.completed_at is None else _time(row.completed_at),
        cancel_requested=row.cancel_requested,
        error_code=Reason(row.error_code) if row.error_code else None,
        # One that a newer version has stored means nothing to this one, and damages nothing.
        error_reason=_or(None, ErrorReason, row.error_reason),
        error=None if row.error is None else _text(row.error),
        image_digest=None if row.image_digest is None else _text(row.image_digest),
        provenance=_PROVENANCE.validate_python(row.provenance) if row.provenance else None,
        phases={Phase(name): float(seconds) for name, seconds in row.phases.items()},
    )


def _whole_from_row(row: sa.Row[Any]) -> Build:
    if not isinstance(row.build_args, dict):
        raise TypeError("the build arguments are no object")
    dockerfile = None if row.dockerfile is None else _text(row.dockerfile)
    request = replace(
        _REQUEST.validate_python(row.request), dockerfile=dockerfile, build_args=row.build_args
    )
    return _from_row(row, request)


def _summary_from_row(row: sa.Row[Any]) -> Build:
    try:
        return _from_row(row, _REQUEST.validate_python(row.request))
    except _NONSENSE:
        return _readable(row)


def _readable(row: sa.Row[Any]) -> Build:
    """Return what can be read of a damaged row; where nothing can, what means nothing."""
    created_at = _or(0.0, _time, row.created_at)
    completed_at = _or(None, _time, row.completed_at)
    status = _or(Status.FAILED, Status, row.status)
    if status.is_final and completed_at is None:
        completed_at = created_at
    return Build(
        id=BuildId(row.id),
        tenant=Tenant(str(row.tenant)),
        request=_or(BuildRequest(_UNKNOWN_POLICY), _REQUEST.validate_python, row.request),
        source=Source(str(row.source_sha256), _or(0, int, row.source_size_bytes)),
        created_at=created_at,
        status=status,
        attempt=_or(0, int, row.attempt),
        lost_attempts=_or(0, int, row.lost_attempts),
        queued_at=_or(created_at, _time, row.queued_at),
        started_at=_or(None, _time, row.started_at),
        completed_at=completed_at,
        error_code=_or(None, Reason, row.error_code),
        error_reason=_or(None, ErrorReason, row.error_reason),
        error=_damage(BuildId(row.id)),
        image_digest=_or(None, _text, row.image_digest),
        provenance=_or(None, _PROVENANCE.validate_python, row.provenance),
        phases=_or({}, _PHASES.validate_python, row.phases),
    )


def _or(otherwise: T, parse: Callable[[Any], T], value: Any) -> T:
    try:
        return parse(value)
    except _NONSENSE:
        return otherwise


def _text(value: Any) -> str:
    """Return a stored text. Raises ValueError if it is none: a damaged row may hold anything."""
    if not isinstance(value, str):
        raise ValueError(f"{value!r:.40} is no text")
    return value


def _time(value: Any) -> float:
    """Return a stored time. Raises ValueError if it is none that can be shown."""
    if not isinstance(value, int | float) or not 0 <= value <= MAX_UNIX_SECONDS:
        raise ValueError(f"{value!r:.40} is no time")
    return float(value)


def _damage(build_id: BuildId) -> str:
    return (
        f"what the host has stored of build {build_id} is damaged and cannot be read; submit it"
        " again"
    )
