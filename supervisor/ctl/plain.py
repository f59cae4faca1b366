"""Progress as plain lines, in the manner of BuildKit's plain mode. For pipes, logs and `--progress
plain`.

    #4 [2/3] RUN make
    #4 0.512 cc -o hello hello.c
    #4 DONE 1.3s
"""

from __future__ import annotations

from collections.abc import Callable

from supervisor.ctl.board import Board, Step
from supervisor.ctl.model import Event, LogLine, StatusChange, StepChange
from supervisor.ctl.terminal import clean_line, format_seconds, parse_time


class PlainView:
    """Writes each event as it comes."""

    def __init__(self, write_line: Callable[[str], None], clock: Callable[[], float]) -> None:
        self._write = write_line
        self._clock = clock
        self._board = Board()
        self._named: set[int] = set()
        self._ended: set[int] = set()

    def show(self, event: Event) -> None:
        """Write what the event changes."""
        now = self._clock()
        match event.data:
            case StepChange() as change:
                step = self._board.on_step(change, now)
                if step is not None:
                    self._show_step(step, now)
            case StatusChange() as change:
                self._board.on_status(change)
                self._write(f"status: {change.status}")
            case LogLine() as line:
                self._show_line(line, now)

    def note(self, text: str) -> None:
        """Write a sentence of our own."""
        self._write(text)

    def refresh(self) -> None:
        """Nothing here moves by itself."""

    def pause(self) -> None:
        """Nothing here is in the way of a question."""

    def close(self) -> None:
        """Everything is written already."""

    def _show_step(self, step: Step, now: float) -> None:
        self._name(step)
        if not step.is_done or step.number in self._ended:
            return
        if rest := step.take_rest():
            self._write(f"#{step.number} {clean_line(rest)}")
        self._ended.add(step.number)
        took = format_seconds(step.seconds(now))
        if step.info.error:
            self._write(f"#{step.number} ERROR: {clean_line(step.info.error, colours=False)}")
        else:
            self._write(f"#{step.number} {'CACHED' if step.info.cached else f'DONE {took}'}")

    def _show_line(self, line: LogLine, now: float) -> None:
        step = self._board.step_of(line, now)
        text = step.add(line)
        if text is None:
            return
        if step.number == 0:
            self._write(clean_line(text))
            return
        self._name(step)
        start, at = parse_time(step.info.started_at), parse_time(line.timestamp)
        when = f"{max(0.0, at - start):.3f} " if start is not None and at is not None else ""
        self._write(f"#{step.number} {when}{clean_line(text)}")

    def _name(self, step: Step) -> None:
        if step.number not in self._named:
            self._named.add(step.number)
            self._write(f"#{step.number} {clean_line(step.info.name, colours=False)}")
