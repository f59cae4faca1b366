"""How a build's log looks: the guest's steps and lines as events, and as plain text. Pure.

The plain text follows BuildKit's own plain progress: each step has a number, each line bears it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from supervisor.egress.policy import Decision
from supervisor.guest.lines import Line, size_of
from supervisor.guest.session import UNKNOWN_STEP, StepChanged
from supervisor.model.build import Step
from supervisor.model.events import egress_event, log_event, step_event
from supervisor.model.times import rfc3339

_BREAKS = {
    ord(character): character.encode("unicode_escape").decode()
    for character in "\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
}
"""Whatever ends a line for somebody, and how it is written in the text."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """What to append to a log: see `BuildLog.append`."""

    events: list[bytes]
    text: bytes
    continues: bool = False


class Transcript:
    """Renders what is said in one attempt, and bounds what that may take on disk.

    What is counted is what is stored: a byte of a guest can become some hundred of an event.
    """

    def __init__(self, number_of: Callable[[str], int | None], *, max_bytes: int) -> None:
        self._number_of = number_of
        self._max_bytes = max_bytes
        self._bytes_left = max_bytes
        self._bytes_dropped = 0
        self._open_line: tuple[str, int] | None = None
        """The step and stream of the line that the text ends in, if it ends inside one."""

    @property
    def is_full(self) -> bool:
        """Say whether the limit is reached: whatever else is said is not stored."""
        return self._bytes_left <= 0

    def lines(self, lines: Sequence[Line], now: float) -> Rendered:
        """Return what to append for lines of output."""
        events: list[bytes] = []
        text: list[str] = []
        continues = False
        for line in lines:
            stamp = rfc3339(line.time)
            events.append(log_event(stamp, line.step, line.content, partial=line.is_partial))
            origin = (line.step, line.stream)
            if origin == self._open_line:
                continues = continues or not text
            else:
                text += "\n" if self._open_line and text else "", self._prefix(line.step)
            text += _shown(line.content), "" if line.is_partial else "\n"
            self._open_line = origin if line.is_partial else None
        said = self._limited(Rendered(events, "".join(text).encode(), continues), now)
        if self.is_full:
            self._bytes_dropped += size_of(lines)
        return said

    def step_change(self, change: StepChanged, now: float) -> Rendered:
        """Return what to append for a step whose state has changed."""
        step = change.step
        head = f"#{change.number} {_one_line(step.name)}\n" if change.is_new else ""
        said = _ending(step)
        tail = f"#{change.number} {said}\n" if said else ""
        if head or tail:
            self._open_line = None
        return self._limited(
            Rendered([step_event(rfc3339(now), step)], (head + tail).encode()), now
        )

    def egress(self, decision: Decision, now: float) -> Rendered:
        """Return what to append for a request to the network: always an event, and a line of the
        log if something was not as the build wanted it.

        There are at most so many of them in an attempt (`EgressLimits.max_requests`).
        """
        stamp = rfc3339(now)
        events = [egress_event(stamp, **dataclasses.asdict(decision))]
        if decision.allowed and not decision.reason:
            return self._limited(Rendered(events, b""), now)
        self._open_line = None
        what = "failed" if decision.allowed else "denied"
        content = f"[egress] {what} {decision.host}:{decision.port}: {decision.reason}"
        events.append(log_event(stamp, "", content))
        return self._limited(Rendered(events, f"{content}\n".encode()), now)

    def end(self, dropped_bytes: int, now: float) -> Rendered:
        """Return what to append when the log ends: what is missing, if anything is.

        `dropped_bytes`: the output that was not even rendered.
        """
        if not self.is_full:
            return Rendered([], b"")
        dropped = self._bytes_dropped + dropped_bytes
        said = f"[{dropped} bytes of output were not stored: MAX_LOG_BYTES is {self._max_bytes}]"
        return Rendered([log_event(rfc3339(now), "", said)], f"{said}\n".encode())

    def _prefix(self, step: str) -> str:
        number = UNKNOWN_STEP if step == UNKNOWN_STEP else self._number_of(step)
        return f"#{number} " if number is not None else ""

    def _limited(self, said: Rendered, now: float) -> Rendered:
        if self._bytes_left <= 0:
            return Rendered([], b"")
        self._bytes_left -= sum(map(len, said.events)) + len(said.events) + len(said.text)
        if self._bytes_left > 0:
            return said
        cut = f"[the log is cut here: it has reached {self._max_bytes} bytes]"
        return Rendered([log_event(rfc3339(now), "", cut)], f"{cut}\n".encode())


def _ending(step: Step) -> str:
    if step.error:
        return f"ERROR: {_one_line(step.error)}"
    if step.completed_at is None:
        return ""
    if step.cached:
        return "CACHED"
    took = max(0.0, step.completed_at - (step.started_at or step.completed_at))
    return f"DONE {took:.1f}s"


def _shown(content: str) -> str:
    """Return a line that is one for every reader: else what is behind a carriage return, say, would
    look like a line of another step.
    """
    return content.translate(_BREAKS)


def _one_line(text: str) -> str:
    return " ".join(text.split())
