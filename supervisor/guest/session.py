"""What one attempt has heard from its guest, as a pure state machine.

`Session.receive` takes a message and returns what the host should do about it. It decides what a
guest may say when: order, lengths and counts are bounded here, and what breaks a bound is either
cut (a name) or the end of the guest (GuestLost). Nothing that a build prints can become anything
but log lines; how much of them is stored is bounded where they are rendered.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from agent import wire
from supervisor.errors import GuestLost
from supervisor.guest.lines import Line, LineAssembler, size_of
from supervisor.model.build import Step
from supervisor.model.times import MAX_UNIX_SECONDS

MAX_STEPS = 10_000
MAX_DIGEST_CHARACTERS = 128
MAX_NAME_CHARACTERS = 4096
MAX_ERROR_CHARACTERS = 16_384
MAX_STEPS_CHARACTERS = 4 << 20
"""Of the names and errors of all steps together: they are kept in memory, and stored as one value.
"""
MAX_OUTPUT_LINES = 500
"""Lines handed over at once. One message can hold a quarter of a million empty ones."""
MAX_LOCKFILES = 1_000
MAX_LOCKFILE_CHARACTERS = 128 << 10
"""Of the paths of all lock files together."""
UNKNOWN_STEP = "?"
"""Stands for a step that was not reported (one behind `MAX_STEPS`, say): its lines must not look
like those of nobody, which are the host's and the agent's.
"""
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Output:
    """Lines to append to the log, at most `MAX_OUTPUT_LINES`."""

    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class StepChanged:
    """A step is new, or its state has changed."""

    step: Step
    number: int
    """1-based, in the order of first sight, as BuildKit's plain progress counts."""
    is_new: bool


@dataclass(frozen=True, slots=True)
class PhaseEntered:
    """The agent says that it entered a phase."""

    phase: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The agent says what came of the build; to be verified."""

    result: wire.BuildResult


@dataclass(frozen=True, slots=True)
class Refused:
    """The message is of no use here; tell the guest so."""

    why: str


Action = Output | StepChanged | PhaseEntered | Finished | Refused

_PHASES = frozenset({"source", "starting", "building", "pushing", "done"})


class Session:
    """The state of one conversation."""

    def __init__(self) -> None:
        self._lines = LineAssembler()
        self._last_seq = -1
        self._steps: dict[str, Step] = {}
        self._numbers: dict[str, int] = {}
        self._characters = 0
        self._phase = ""
        self._time = 0.0
        self._is_muted = False
        self.dropped_bytes = 0
        """How much output came after `mute`."""

    @property
    def steps(self) -> tuple[Step, ...]:
        """Every step so far, in the order of first sight."""
        return tuple(self._steps.values())

    def number_of(self, digest: str) -> int | None:
        """Return the number of a step, if it is known."""
        return self._numbers.get(digest)

    def mute(self) -> None:
        """Drop all further output: there is nowhere to put it."""
        self._is_muted = True

    def receive(self, message: wire.Message | wire.Unknown) -> Iterator[Action]:
        """Yield what to do about `message`. Raises GuestLost if the guest may not say this now."""
        match message:
            case wire.Log():
                self._check_order(message.seq)
                yield from self._on_log(message)
            case wire.Step():
                self._check_order(message.seq)
                yield from self._on_step(message)
            case wire.Status(phase=phase):
                # A status also answers `get_status`, so only a phase that is new says anything.
                if phase in _PHASES and phase != self._phase:
                    self._phase = phase
                    yield PhaseEntered(phase)
            case wire.BuildResult():
                self._check_order(message.seq)
                yield from _outputs(self._lines.finish_all(self._time))
                yield Finished(_bounded(message))
            case wire.Heartbeat() | wire.Error():
                return
            case wire.Unknown(type=name):
                yield Refused(f"unknown message type {name!r}")
            case _:
                yield Refused(f"a {message.TYPE} is not for this end")

    def finish(self) -> tuple[Line, ...]:
        """Return the unfinished lines of a guest that will say no more."""
        return tuple(self._lines.finish_all(self._time))

    def _on_log(self, message: wire.Log) -> Iterator[Action]:
        if len(message.data) > wire.MAX_LOG_DATA_BYTES:
            raise GuestLost(f"the guest sent {len(message.data)} bytes of log in one message")
        is_known = not message.step or message.step in self._steps
        step = message.step if is_known else UNKNOWN_STEP
        self._time = _sane_time(message.time)
        if self._drops(len(message.data)):
            return
        for output in _outputs(self._lines.feed(step, message.stream, self._time, message.data)):
            # What was done about the one before may have been `mute`.
            if not self._drops(size_of(output.lines)):
                yield output

    def _drops(self, count: int) -> bool:
        """Say whether output of that many bytes is dropped, and count it then."""
        if self._is_muted:
            self.dropped_bytes += count
        return self._is_muted

    def _on_step(self, message: wire.Step) -> Iterator[Action]:
        known = self._steps.get(message.digest)
        if known is None and len(self._steps) >= MAX_STEPS:
            raise GuestLost(f"the guest reports more than {MAX_STEPS} steps")
        if len(message.digest) > MAX_DIGEST_CHARACTERS:
            raise GuestLost("the guest reports a step with an over-long digest")
        step = Step(
            digest=message.digest,
            name=message.name[:MAX_NAME_CHARACTERS],
            started_at=_sane_time_or_none(message.started_at),
            completed_at=_sane_time_or_none(message.completed_at),
            cached=message.cached,
            error=message.error[:MAX_ERROR_CHARACTERS] or None,
        )
        if step == known:
            return
        self._characters += _characters(step) - (_characters(known) if known else 0)
        if self._characters > MAX_STEPS_CHARACTERS:
            raise GuestLost(f"the guest's steps hold more than {MAX_STEPS_CHARACTERS} characters")
        self._steps[step.digest] = step
        number = self._numbers.setdefault(step.digest, len(self._numbers) + 1)
        if step.completed_at is not None:
            yield from _outputs(self._lines.finish(step.digest, step.completed_at))
        yield StepChanged(step, number, is_new=known is None)

    def _check_order(self, seq: int) -> None:
        if seq <= self._last_seq:
            raise GuestLost(f"the guest sent message {seq} after {self._last_seq}")
        self._last_seq = seq


def _outputs(lines: Iterable[Line]) -> Iterator[Output]:
    rest = iter(lines)
    while batch := tuple(itertools.islice(rest, MAX_OUTPUT_LINES)):
        yield Output(batch)


def _characters(step: Step) -> int:
    return len(step.name) + len(step.error or "")


def _bounded(result: wire.BuildResult) -> wire.BuildResult:
    """Return a result as it may be stored: everything in it has a bounded length."""
    return replace(
        result,
        error=result.error[:MAX_ERROR_CHARACTERS],
        lockfile_hashes=_bounded_hashes(result.lockfile_hashes),
    )


def _bounded_hashes(hashes: Mapping[str, str]) -> dict[str, str]:
    kept: dict[str, str] = {}
    characters = 0
    for path, digest in itertools.islice(hashes.items(), MAX_LOCKFILES):
        characters += len(path)
        if characters > MAX_LOCKFILE_CHARACTERS:
            break
        if _SHA256.fullmatch(digest):
            kept[path] = digest
    return kept


def _sane_time(time: float) -> float:
    """Return a guest's time, kept within what can be written as a date."""
    return min(max(time, 0.0), MAX_UNIX_SECONDS)


def _sane_time_or_none(time: float | None) -> float | None:
    return None if time is None else _sane_time(time)
