"""What followers of a build receive: log lines, statuses, steps and egress, in one order.

An event is stored and delivered as one JSON object. Its id is the offset of the byte behind it in
the build's event file, so resuming after an id is one seek, and ids increase without any counter.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NewType

from supervisor.model.build import Build, Step
from supervisor.model.times import rfc3339

EventId = NewType("EventId", int)
START = EventId(0)
"""The id before the first event."""


@dataclass(frozen=True)
class EventBatch:
    """Consecutive events, as `(id, JSON)`. Shared between all followers that stand at one place."""

    events: tuple[tuple[EventId, bytes], ...]

    @property
    def last_id(self) -> EventId:
        """The id to resume after."""
        return self.events[-1][0]

    @cached_property
    def as_sse(self) -> bytes:
        """The batch as server-sent events; rendered once however many followers there are."""
        return b"".join(b"id: %d\ndata: %s\n\n" % event for event in self.events)


def log_event(timestamp: str, step: str, content: str, *, partial: bool = False) -> bytes:
    """Return the event for one line of output. `partial`: the line goes on in the next event."""
    event: dict[str, Any] = {"type": "log", "timestamp": timestamp, "content": content}
    if step:
        event["step"] = {"digest": step}
    if partial:
        event["partial"] = True
    return _dump(event)


def status_event(timestamp: str, build: Build) -> bytes:
    """Return the event that tells the status of `build`, with the reason when it has failed."""
    event: dict[str, Any] = {"type": "status", "timestamp": timestamp, "status": build.status}
    if build.error is not None:
        event["content"] = build.error
    if build.error_code is not None:
        event["error_code"] = build.error_code
    return _dump(event)


def step_event(timestamp: str, step: Step) -> bytes:
    """Return the event that tells the present state of a step."""
    return _dump({"type": "step", "timestamp": timestamp, "step": render_step(step)})


def egress_event(
    timestamp: str,
    *,
    allowed: bool,
    host: str,
    port: int,
    bytes_sent: int,
    bytes_received: int,
    reason: str,
) -> bytes:
    """Return the event that tells what became of one request of a build to the network."""
    egress: dict[str, Any] = {
        "allowed": allowed,
        "host": host,
        "port": port,
        "bytes_sent": bytes_sent,
        "bytes_received": bytes_received,
    }
    if reason:
        egress["reason"] = reason
    return _dump({"type": "egress", "timestamp": timestamp, "egress": egress})


def render_step(step: Step) -> dict[str, Any]:
    """Return a step as the API shows it: absent instead of null."""
    shown: dict[str, Any] = {"digest": step.digest, "name": step.name, "cached": step.cached}
    if step.started_at is not None:
        shown["started_at"] = rfc3339(step.started_at)
    if step.completed_at is not None:
        shown["completed_at"] = rfc3339(step.completed_at)
    if step.error:
        shown["error"] = step.error
    return shown


def is_final_status(event: bytes) -> bool:
    """Say whether an event ends the stream."""
    if b'"type":"status"' not in event[:20]:
        return False
    return json.loads(event)["status"] in ("ready", "failed", "cancelled")


def _dump(event: dict[str, Any]) -> bytes:
    return json.dumps(event, separators=(",", ":"), ensure_ascii=False).encode()
