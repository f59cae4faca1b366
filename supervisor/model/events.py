"""What followers of a build receive: log lines, statuses, steps and egress, in one order.

An event is stored and delivered as one JSON object. Its id is the offset of the byte behind it in
the build's event file, so resuming after an id is one seek, and ids increase without any counter.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NewType

from supervisor.model.build import Build, Step
from supervisor.model.times import rfc3339

EventId = NewType("EventId", int)
DAMAGED = "[an event is damaged on the host's disk and cannot be shown]"
_SEPARATORS = {number: f"\\u{number:04x}" for number in (0x85, 0x2028, 0x2029)}
"""What ends a line for some readers of streams, though neither for JSON nor for us."""
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
    if build.error_reason is not None:
        event["error_reason"] = build.error_reason
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


def with_damage_marked(events: Sequence[bytes]) -> Sequence[bytes]:
    """Return stored events, with a marker in the place of each that is none: the disk may rot.

    The marker is a line of output like others, at the time of the event before it, and says
    `"damaged": true`. Returns `events` itself if there is no damage.
    """
    if _are_events(b"[" + b",".join(events) + b"]", len(events)):
        return events
    marked, timestamp = [], rfc3339(0)
    for event in events:
        if _are_events(b"[" + event + b"]", 1):
            timestamp = json.loads(event)["timestamp"]
            marked.append(event)
        else:
            marker = {"type": "log", "timestamp": timestamp, "content": DAMAGED, "damaged": True}
            marked.append(_dump(marker))
    return marked


def is_final_status(event: bytes) -> bool:
    """Say whether an event ends the stream. One that is damaged does not."""
    if b'"type":"status"' not in event[:20] or not _are_events(b"[" + event + b"]", 1):
        return False
    return json.loads(event).get("status") in ("ready", "failed", "cancelled")


def _are_events(array: bytes, count: int) -> bool:
    """Say whether a JSON array holds that many events, and nothing else."""
    try:
        found = json.loads(array)
    except (ValueError, RecursionError):
        return False
    return len(found) == count and all(
        isinstance(each, dict)
        and isinstance(each.get("type"), str)
        and isinstance(each.get("timestamp"), str)
        for each in found
    )


def _dump(event: dict[str, Any]) -> bytes:
    text = json.dumps(event, separators=(",", ":"), ensure_ascii=False)
    if not text.isascii():
        text = text.translate(_SEPARATORS)
    return text.encode()
