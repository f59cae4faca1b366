"""Progress on a terminal: the steps with their times, redrawn in place, in BuildKit's manner.

[+] building 12.3s (5/7)
 => CACHED [1/3] FROM docker.io/library/busybox               0.0s
 => [2/3] RUN make                                             3.4s
 => => # cc -o hello hello.c
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TextIO

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.live import Live
from rich.text import Text

from supervisor.ctl.board import Board, Step
from supervisor.ctl.model import Event
from supervisor.ctl.output import colours_wanted
from supervisor.ctl.terminal import clean_line, format_seconds

_FRAMES_PER_SECOND = 10
_MIN_HEIGHT = 8
_TIME_WIDTH = 8


class LiveView:
    """Draws the board on a terminal, at most ten times a second however often it is told to."""

    def __init__(self, stream: TextIO, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._board = Board()
        self._console = Console(file=stream, no_color=not colours_wanted(), highlight=False)
        self._live: Live | None = None
        self._began = clock()
        self._drawn_at = -1.0

    def show(self, event: Event) -> None:
        """Take an event, and draw what it changes."""
        self._board.take(event, self._clock())
        self.refresh()

    def note(self, text: str) -> None:
        """Write a sentence of our own above what is drawn."""
        self._console.print(Text(text))

    def refresh(self) -> None:
        """Draw again, with the times as they are now."""
        now = self._clock()
        if now - self._drawn_at < 1 / _FRAMES_PER_SECOND:
            return
        self._drawn_at = now
        if self._live is None:
            self._live = Live(
                console=self._console, auto_refresh=False, transient=False, redirect_stdout=False,
                redirect_stderr=False, vertical_overflow="crop",
            )  # fmt: skip
            self._live.start()
        self._live.update(self._draw(now), refresh=True)

    def pause(self) -> None:
        """Leave the terminal as it is for a question; the next `refresh` draws anew below."""
        self._stop(self._clock())

    def close(self) -> None:
        """Draw the end: every step, none of their output."""
        self._stop(self._clock(), is_final=True)

    def _stop(self, now: float, *, is_final: bool = False) -> None:
        if self._live is None:
            return
        live, self._live = self._live, None
        live.vertical_overflow = "visible"
        live.update(self._draw(now, is_final=is_final), refresh=True)
        live.stop()

    def _draw(self, now: float, *, is_final: bool = False) -> Text:
        width = max(20, self._console.width - 1)
        height = max(_MIN_HEIGHT, self._console.height - 1)
        board = self._board
        count = f"({board.done}/{board.total})" if board.total else ""
        head = Text(
            f"[+] {board.status or 'waiting'} {format_seconds(now - self._began)} {count}",
            style="bold",
        )
        blocks = [
            self._draw_step(step, now, width, with_tail=not is_final)
            for step in board.steps.values()
        ]
        lines = [line for block in blocks for line in block]
        if not is_final and len(lines) > height - 1:
            lines = lines[-(height - 1) :]
        return Text("\n").join([head, *lines])

    def _draw_step(self, step: Step, now: float, width: int, *, with_tail: bool) -> list[Text]:
        took = format_seconds(step.seconds(now)).rjust(_TIME_WIDTH)
        mark = "ERROR " if step.info.error else "CACHED " if step.info.cached else ""
        name = f" => {mark}{clean_line(step.info.name, colours=False)}"
        style = "red" if step.info.error else "blue" if step.is_done else ""
        room = width - _TIME_WIDTH
        if cell_len(name) > room:
            name = set_cell_size(name, room - 1) + "…"
        lines = [Text(set_cell_size(name, room) + took, style=style)]
        if with_tail and step.is_running:
            for text in step.tail:
                shown = f" => => # {clean_line(text, colours=False).expandtabs()}"
                if cell_len(shown) > width:
                    shown = set_cell_size(shown, width - 1) + "…"
                lines.append(Text(shown, style="dim"))
        return lines
