"""What the API answers, as types. The JSON itself stays at hand in `raw`, for `--json`.

Reading is tolerant, since either end may be newer: unknown fields are kept in `raw` and otherwise
ignored, absent ones have a default. Only what a command cannot do without is required.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from supervisor.ctl.errors import ProtocolError
from supervisor.model.build import FINAL, Status

Json = Mapping[str, Any]

FINAL_STATUSES = frozenset(str(status) for status in FINAL)


@dataclass(frozen=True, slots=True)
class BuildInfo:
    """A build, as the daemon shows it."""

    id: str
    status: str
    tags: Mapping[str, str]
    queue_position: int | None
    image_digest: str | None
    image_ref: str | None
    error: str | None
    error_code: str | None
    created_at: str | None
    started_at: str | None
    completed_at: str | None
    duration_ms: int | None
    tenant: str | None
    phases: Mapping[str, float]
    """Milliseconds, by the name of the phase."""
    raw: Json = field(repr=False)

    @property
    def is_final(self) -> bool:
        """Say whether nothing about the build will change any more."""
        return self.status in FINAL_STATUSES

    @property
    def is_ready(self) -> bool:
        """Say whether the image is there."""
        return self.status == Status.READY


@dataclass(frozen=True, slots=True)
class StepInfo:
    """One step of BuildKit, as last reported."""

    digest: str
    name: str = ""
    started_at: str | None = None
    completed_at: str | None = None
    cached: bool = False
    error: str | None = None


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line that a step has printed. `is_partial`: the line goes on in the next event."""

    content: str
    timestamp: str
    step: str
    """Digest of the step; empty if it is nobody's."""
    is_partial: bool = False


@dataclass(frozen=True, slots=True)
class StatusChange:
    """The build has a new status. `error` and `error_code` tell why it failed."""

    status: str
    timestamp: str
    error: str | None = None
    error_code: str | None = None

    @property
    def is_final(self) -> bool:
        """Say whether this is the last event of the stream."""
        return self.status in FINAL_STATUSES


@dataclass(frozen=True, slots=True)
class StepChange:
    """A step has begun, ended, or was found in the cache."""

    step: StepInfo
    timestamp: str


@dataclass(frozen=True, slots=True)
class Other:
    """What only `raw` tells of: a request to the network, or what a newer daemon may have."""

    timestamp: str


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a build with its place in the stream."""

    id: str
    data: LogLine | StatusChange | StepChange | Other
    raw: Json = field(repr=False)


def parse_build(value: Any) -> BuildInfo:
    """Return the build that `value` describes. Raises ProtocolError if it is none."""
    build = parse_object(value, "a build")
    return BuildInfo(
        id=_required(build, "id"),
        status=_required(build, "status"),
        tags=build.get("tags") or {},
        queue_position=build.get("queue_position"),
        image_digest=build.get("image_digest"),
        image_ref=build.get("image_ref"),
        error=build.get("error"),
        error_code=build.get("error_code"),
        created_at=build.get("created_at"),
        started_at=build.get("started_at"),
        completed_at=build.get("completed_at"),
        duration_ms=build.get("duration_ms"),
        tenant=build.get("tenant"),
        phases=build.get("phases") or {},
        raw=build,
    )


def parse_step(value: Any) -> StepInfo:
    """Return the step that `value` describes. Raises ProtocolError if it is none."""
    step = parse_object(value, "a step")
    return StepInfo(
        digest=_required(step, "digest"),
        name=step.get("name") or "",
        started_at=step.get("started_at"),
        completed_at=step.get("completed_at"),
        cached=bool(step.get("cached")),
        error=step.get("error"),
    )


def parse_event(event_id: str, value: Any) -> Event | None:
    """Return the event, or None for a heartbeat."""
    raw = parse_object(value, "an event")
    timestamp = str(raw.get("timestamp") or "")
    data: LogLine | StatusChange | StepChange | Other
    match raw.get("type"):
        case "log":
            content = str(raw.get("content") or "")
            step = raw.get("step")
            digest = step.get("digest") if isinstance(step, Mapping) else step
            data = LogLine(content, timestamp, str(digest or ""), bool(raw.get("partial")))
        case "status":
            error, code = raw.get("content"), raw.get("error_code")
            data = StatusChange(_required(raw, "status"), timestamp, error, code)
        case "step":
            data = StepChange(parse_step(raw.get("step")), timestamp)
        case "heartbeat":
            return None
        case _:
            data = Other(timestamp)
    return Event(event_id, data, raw)


def parse_list(value: Any, what: str) -> Sequence[Any]:
    """Return `value` if it is a list. Raises ProtocolError otherwise."""
    if not isinstance(value, list):
        raise ProtocolError(f"the daemon answered something that is not a list of {what}")
    return value


def parse_object(value: Any, what: str) -> Json:
    """Return `value` if it is an object. Raises ProtocolError otherwise."""
    if not isinstance(value, Mapping):
        raise ProtocolError(f"the daemon answered something that is not {what}")
    return value


def _required(value: Json, name: str) -> str:
    text = value.get(name)
    if not isinstance(text, str):
        raise ProtocolError(f"the daemon's answer lacks {name!r}")
    return text
