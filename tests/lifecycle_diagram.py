"""Draws docs/lifecycle.md from `lifecycle.step`, so that the page cannot say anything else.

python -m tests.lifecycle_diagram
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from supervisor.model.build import Build, Reason, Status
from supervisor.model.lifecycle import (
    MAX_LOST_ATTEMPTS,
    CancelRequested,
    Ended,
    Event,
    Interrupted,
    PushBegun,
    Started,
    Succeeded,
    step,
)
from tests.samples import CREATED_AT, DIGEST, PROVENANCE, a_build

PAGE = Path(__file__).parent.parent / "docs" / "lifecycle.md"

EVENTS: tuple[tuple[str, Event], ...] = (
    ("Started", Started()),
    ("PushBegun", PushBegun()),
    ("Succeeded", Succeeded(DIGEST, PROVENANCE, {})),
    ("Ended", Ended(Reason.BUILD_FAILED, "", {})),
    ("Ended (cancelled)", Ended(Reason.CANCELLED, "", {})),
    ("CancelRequested", CancelRequested()),
    ("Interrupted", Interrupted()),
    ("Interrupted (planned)", Interrupted(is_planned=True)),
)

HEAD = f"""# Life of a build

Drawn from `supervisor/model/lifecycle.py` by `python -m tests.lifecycle_diagram`; a test compares.
An event that is not drawn for a status breaks a promise of the program; a build that has ended
ignores every event. `cancel requested` is the mark that a running build bears from the request
until its machine is gone. The attempt that is lost as number {MAX_LOST_ATTEMPTS} is the last; a
planned stop loses none.
"""


def _variants() -> Iterator[tuple[str, Build]]:
    """Yield the kinds of builds that the rules tell apart."""
    yield "", a_build(status=Status.QUEUED)
    for status in (Status.BUILDING, Status.PUSHING):
        running = a_build(status=status, attempt=1)
        yield "", running
        yield "cancel requested", replace(running, cancel_requested=True)
        yield "last attempt", replace(running, lost_attempts=MAX_LOST_ATTEMPTS - 1)


def _edges() -> dict[tuple[Status, Status], list[str]]:
    edges: dict[tuple[Status, Status], list[str]] = {}
    usual: dict[tuple[Status, str], Status] = {}
    for (kind, build), (name, event) in itertools.product(_variants(), EVENTS):
        try:
            after = step(build, event, CREATED_AT).status
        except AssertionError:
            continue
        if not kind:
            usual[build.status, name] = after
        elif usual[build.status, name] is after:
            continue
        label = f"{name} [{kind}]" if kind else name
        edges.setdefault((build.status, after), []).append(label)
    return edges


def render() -> str:
    """Return the page."""
    lines = [HEAD, "```mermaid", "stateDiagram-v2", "    [*] --> queued"]
    lines += [
        f"    {before} --> {after}: {', '.join(labels)}"
        for (before, after), labels in _edges().items()
    ]
    lines += [f"    {status} --> [*]" for status in Status if status.is_final]
    lines += ["```", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(render())
