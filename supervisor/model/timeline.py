"""When an ended build was in which phase, as far as its record tells. Pure.

A record has the duration of each phase, measured on the monotonic clock, and a few moments of the
wall clock: when the build was made, first started, last put back, and ended. Here they are laid out
one after the other, for whoever draws them.
"""

from __future__ import annotations

from dataclasses import dataclass

from supervisor.model.build import Build, Phase

EARLIER_ATTEMPTS = "earlier attempts"
"""From the first start to the last time that the build was put back into the queue."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """A part of a build's life. Times are Unix seconds."""

    name: str
    start: float
    end: float


def timeline(build: Build) -> tuple[Stretch, ...]:
    """Return the stretches of the life of an ended build, in order.

    Of the attempts before the last one no phases are stored: they are one stretch.
    """
    assert build.completed_at is not None, f"build {build.id} has not ended"
    waited = build.phases.get(Phase.QUEUE, 0.0)
    if build.started_at is None:
        return (Stretch(Phase.QUEUE, build.created_at, build.created_at + waited),)
    stretches = [Stretch(Phase.QUEUE, build.created_at, build.started_at)]
    spent = [(phase, build.phases[phase]) for phase in Phase if phase in build.phases]
    spent = [(phase, seconds) for phase, seconds in spent if phase is not Phase.QUEUE]
    at = build.started_at
    if build.queued_at > build.started_at:
        again = waited - (build.started_at - build.created_at)
        if spent:
            again = build.completed_at - build.queued_at - sum(seconds for _, seconds in spent)
        at = build.queued_at + max(0.0, again)
        stretches += [
            Stretch(EARLIER_ATTEMPTS, build.started_at, build.queued_at),
            Stretch(Phase.QUEUE, build.queued_at, at),
        ]
    for phase, seconds in spent:
        stretches.append(Stretch(phase, at, at + seconds))
        at += seconds
    return tuple(stretches)
