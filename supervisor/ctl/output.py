"""What goes where: data to standard output, everything else to standard error."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TextIO

from rich.cells import cell_len

from supervisor.ctl.errors import ApiError, CtlError, OutputFailed
from supervisor.ctl.template import Template
from supervisor.ctl.terminal import clean_line

_DEFAULT_COLUMNS = 80
_STYLES = {
    "ready": "32",
    "failed": "31",
    "cancelled": "33",
    "building": "36",
    "pushing": "36",
    "bold": "1",
}


@dataclass(frozen=True, slots=True)
class Output:
    """The two streams, and whether each is a terminal."""

    data: TextIO = field(default_factory=lambda: sys.stdout)
    messages: TextIO = field(default_factory=lambda: sys.stderr)

    @property
    def has_terminal(self) -> bool:
        """Say whether messages are read by a person as they appear."""
        return self.messages.isatty() and os.environ.get("TERM") != "dumb"

    @property
    def data_is_terminal(self) -> bool:
        """Say whether data goes to a person rather than to a program."""
        return self.data.isatty()

    @property
    def columns(self) -> int:
        """How wide the terminal is that messages go to."""
        try:
            return os.get_terminal_size(self.messages.fileno()).columns
        except OSError:
            return _DEFAULT_COLUMNS

    def write(self, text: str) -> None:
        """Write data as it is; it may wait for `flush`. Raises OutputFailed."""
        with _writing():
            self.data.write(text)

    def flush(self) -> None:
        """Have what was written arrive. Raises OutputFailed."""
        with _writing():
            self.data.flush()

    def line(self, text: str) -> None:
        """Write a line of data. Raises OutputFailed."""
        self.write(f"{text}\n")
        self.flush()

    def json(self, value: Any) -> None:
        """Write a value as JSON: indented for people, on one line for programs."""
        self.line(
            json.dumps(value, ensure_ascii=False, indent=2 if self.data_is_terminal else None)
        )

    def formatted(self, template: Template, value: Mapping[str, Any]) -> None:
        """Write a line with the `{fields}` of `value` filled in."""
        self.line(template.fill(value))

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Write aligned columns, never cut short."""
        for line in align(columns, rows, self.styled):
            self.write(f"{line}\n")
        self.flush()

    def styled(self, text: str, style: str | None = None) -> str:
        """Return text as data in the colour of what it says, if somebody is there to see it."""
        code = _STYLES.get(style or text)
        if code is None or not self.data_is_terminal or not colours_wanted():
            return text
        return f"\x1b[{code}m{text}\x1b[0m"

    def note(self, text: str) -> None:
        """Tell the user something that is not data."""
        self.messages.write(f"{text}\n")
        self.messages.flush()

    def error(self, error: CtlError, *, debug: bool = False) -> None:
        """Tell what went wrong and what to do, in as few lines as possible.

        With `debug`, also under which id the daemon's log may have more of it.
        """
        self.note(f"hypeman-ctl: {clean_line(error.message, colours=False)}")
        if isinstance(error, ApiError):
            for detail in error.details:
                if detail not in error.message:
                    self.note(f"  {clean_line(detail, colours=False)}")
            if error.retry_after_seconds is not None:
                self.note(f"  try again in {error.retry_after_seconds} s")
            if debug and error.request_id:
                name = clean_line(error.request_id, colours=False)
                self.note(f"  code {error.code}, HTTP {error.status}, request {name}")
        if error.hint:
            self.note(f"  {error.hint}")


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise  # whoever reads has seen enough, which is no failure
    except OSError as exc:
        raise OutputFailed(f"standard output cannot be written: {exc.strerror}") from exc


def align(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    styled: Callable[[str], str] = lambda cell: cell,
) -> list[str]:
    """Return the lines of a table; `styled` may add what takes up no room."""
    shown = [[clean_line(cell, colours=False) for cell in row] for row in rows]
    widths = [
        max([cell_len(column), *(cell_len(row[at]) for row in shown)])
        for at, column in enumerate(columns)
    ]
    lines = []
    for row in [list(columns), *shown]:
        cells = [
            styled(cell) + " " * (width - cell_len(cell))
            for cell, width in zip(row, widths, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def colours_wanted() -> bool:
    """Say whether colours may be used where there is a terminal (no-color.org)."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
