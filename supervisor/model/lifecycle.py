"""The life of a build as one pure function.

`step` takes a build and an event and returns the build after it. An event that the present status
does not allow is a broken promise of the caller (AssertionError), with one exception that is part
of the table: whatever arrives after the end changes nothing.

The order of the statuses is the contract's:

    queued → building → pushing → ready
       ↑________|_________|          an interrupted attempt goes back to the queue
    any of the first three → failed, cancelled
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import assert_never

from supervisor.model.build import Build, ErrorReason, Phase, Provenance, Reason, Status

MAX_LOST_ATTEMPTS = 3
"""A build under which the daemon has gone down this often is given up as `builder_lost`. An attempt
that a planned stop interrupts is not one of them.
"""


@dataclass(frozen=True, slots=True)
class Started:
    """The queue gave the build a slot; an attempt begins."""


@dataclass(frozen=True, slots=True)
class PushBegun:
    """BuildKit has finished the steps and exports to the registry."""


@dataclass(frozen=True, slots=True)
class Succeeded:
    """The registry of this host holds the image, every blob of it."""

    image_digest: str
    provenance: Provenance
    phases: Mapping[Phase, float]


@dataclass(frozen=True, slots=True)
class Ended:
    """The attempt ended without an image, for a reason that another attempt would not change."""

    reason: Reason
    message: str
    phases: Mapping[Phase, float]
    detail: ErrorReason | None = None


@dataclass(frozen=True, slots=True)
class CancelRequested:
    """Somebody who may do so asked for the end of the build."""


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The host lost the attempt (a crash or a stop of the daemon); the build is not at fault."""

    is_planned: bool = False
    """A graceful stop of the daemon: it says nothing against the build, however often."""


Event = Started | PushBegun | Succeeded | Ended | CancelRequested | Interrupted


def step(build: Build, event: Event, now: float) -> Build:
    """Return `build` after `event` at `now` (Unix seconds). Final builds are returned unchanged."""
    match build.status:
        case Status.READY | Status.FAILED | Status.CANCELLED:
            return build
        case Status.QUEUED:
            return _when_queued(build, event, now)
        case Status.BUILDING | Status.PUSHING:
            return _when_running(build, event, now)
        case _ as unreachable:
            assert_never(unreachable)


def _when_queued(build: Build, event: Event, now: float) -> Build:
    match event:
        case Started():
            return replace(
                build,
                status=Status.BUILDING,
                attempt=build.attempt + 1,
                started_at=now if build.started_at is None else build.started_at,
                phases={**build.phases, Phase.QUEUE: _waited(build, now)},
            )
        case CancelRequested():
            phases = {Phase.QUEUE: _waited(build, now)}
            return _ended(build, Reason.CANCELLED, "cancelled while queued", phases, now)
        case Ended(reason, message, phases, detail):
            return _ended(build, reason, message, phases, now, detail)
        case Interrupted():
            return build
        case PushBegun() | Succeeded():
            raise AssertionError(f"build {build.id} is queued and got {event}")
        case _ as unreachable:
            assert_never(unreachable)


def _when_running(build: Build, event: Event, now: float) -> Build:
    match event:
        case PushBegun():
            return replace(build, status=Status.PUSHING)
        case Succeeded(image_digest, provenance, phases):
            assert build.status is Status.PUSHING, f"build {build.id} was never pushing"
            return replace(
                build,
                status=Status.READY,
                image_digest=image_digest,
                provenance=provenance,
                completed_at=now,
                phases={**build.phases, **phases},
            )
        case Ended(reason, message, phases, detail):
            return _ended(build, reason, message, phases, now, detail)
        case CancelRequested():
            return replace(build, cancel_requested=True)
        case Interrupted() if build.cancel_requested:
            return _ended(build, Reason.CANCELLED, "cancelled", {}, now)
        case Interrupted(is_planned):
            lost = build.lost_attempts + (not is_planned)
            build = replace(build, lost_attempts=lost)
            if lost >= MAX_LOST_ATTEMPTS:
                message = f"the host lost {lost} attempts of this build; it is not tried again"
                detail = ErrorReason.ATTEMPTS_LOST
                return _ended(build, Reason.BUILDER_LOST, message, {}, now, detail)
            return replace(build, status=Status.QUEUED, queued_at=now)
        case Started():
            raise AssertionError(f"build {build.id} was started twice")
        case _ as unreachable:
            assert_never(unreachable)


def _waited(build: Build, now: float) -> float:
    """Return how long `build` has been queued by now, over all attempts."""
    return build.phases.get(Phase.QUEUE, 0.0) + max(0.0, now - build.queued_at)


def _ended(
    build: Build,
    reason: Reason,
    message: str,
    phases: Mapping[Phase, float],
    now: float,
    detail: ErrorReason | None = None,
) -> Build:
    status = Status.CANCELLED if reason is Reason.CANCELLED else Status.FAILED
    return replace(
        build,
        status=status,
        error_code=reason,
        error_reason=detail,
        error=message,
        completed_at=now,
        phases={**build.phases, **phases},
    )
