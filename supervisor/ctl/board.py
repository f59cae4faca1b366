"""The steps of a build as they stand, made from its events. No I/O; both progress views draw it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from supervisor.ctl.model import Event, LogLine, StatusChange, StepChange, StepInfo
from supervisor.ctl.terminal import parse_time

TAIL_LINES = 6
"""How much of a running step's output a terminal shows."""
_MAX_LINE = 64 << 10
"""A line without an end is cut into pieces of this size, in characters."""


@dataclass(slots=True)
class Step:
    """One step and what it has printed last."""

    number: int
    info: StepInfo
    seen_at: float
    """Local time (any clock that only goes forward) when its start became known."""
    age_when_seen: float = 0.0
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL_LINES))
    _partial: str = ""

    @property
    def is_running(self) -> bool:
        """Say whether the step has begun and not ended."""
        return self.info.started_at is not None and self.info.completed_at is None

    @property
    def is_done(self) -> bool:
        """Say whether the step has ended, well or not."""
        return self.info.completed_at is not None

    def seconds(self, now: float) -> float:
        """Return how long the step has run: by the daemon's clock once it has ended."""
        start, end = parse_time(self.info.started_at), parse_time(self.info.completed_at)
        if start is None:
            return 0.0
        if self.is_done:
            return max(0.0, (end or start) - start)
        return max(0.0, self.age_when_seen + now - self.seen_at)

    def add(self, line: LogLine) -> str | None:
        """Take a line of output; return it once it is whole."""
        text = self._partial + line.content
        if line.is_partial and len(text) < _MAX_LINE:
            self._partial = text
            return None
        self._partial = ""
        self.tail.append(text)
        return text

    def take_rest(self) -> str | None:
        """Return the line that had not ended when the step did."""
        rest, self._partial = self._partial, ""
        return rest or None


class Board:
    """The steps in the order in which they began, and the status of the build.

    BuildKit announces its steps backwards and before they begin, so that order would tell nothing.
    """

    def __init__(self) -> None:
        self.status = ""
        self.end: StatusChange | None = None
        self.steps: dict[str, Step] = {}
        self._announced: set[str] = set()
        self.loose = Step(0, StepInfo(""), 0.0)
        """Lines that belong to no step: the agent's own."""

    @property
    def done(self) -> int:
        """How many steps have ended."""
        return sum(step.is_done for step in self.steps.values())

    @property
    def total(self) -> int:
        """How many steps are known of."""
        return len(self._announced | self.steps.keys())

    def on_step(self, change: StepChange, now: float) -> Step | None:
        """Take the new state of a step and return it; None if it has not begun."""
        info = change.step
        step = self.steps.get(info.digest)
        if step is None:
            if info.started_at is None and info.completed_at is None:
                self._announced.add(info.digest)
                return None
            step = self._begin(info, now)
            start, reported = parse_time(info.started_at), parse_time(change.timestamp)
            if start is not None and reported is not None:
                step.age_when_seen = max(0.0, reported - start)
        step.info = info
        return step

    def on_status(self, change: StatusChange) -> None:
        """Take the new status of the build."""
        self.status = change.status
        if change.is_final:
            self.end = change

    def step_of(self, line: LogLine, now: float) -> Step:
        """Return the step that a line belongs to."""
        if not line.step:
            return self.loose
        return self.steps.get(line.step) or self._begin(StepInfo(line.step, "(unnamed step)"), now)

    def take(self, event: Event, now: float) -> None:
        """Take any event."""
        match event.data:
            case StepChange() as change:
                self.on_step(change, now)
            case StatusChange() as change:
                self.on_status(change)
            case LogLine() as line:
                self.step_of(line, now).add(line)

    def _begin(self, info: StepInfo, now: float) -> Step:
        step = Step(len(self.steps) + 1, info, now)
        self.steps[info.digest] = step
        return step
