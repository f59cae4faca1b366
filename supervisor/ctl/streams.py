"""The three standard streams, so that the rest can rely on them."""

from __future__ import annotations

import io
import os
import sys
from typing import Any

_STANDARD_STREAMS = ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY))
"""How what is closed is opened: a write of data to what may only be read is an error."""


def silence_stdout() -> None:
    """Send what is still to be written nowhere: Python would complain once more at its exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def prepare_streams() -> None:
    """Open what is closed, and have the streams take any text."""
    for number, flags in _STANDARD_STREAMS:
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, flags)  # takes the lowest number, which is this one
    if sys.stdin is None:
        sys.stdin = os.fdopen(0, closefd=False)
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", closefd=False)
    # What builds print and what files are called need not be valid Unicode.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    messages = io.BufferedWriter(_Forgiving(2, "w", closefd=False))
    sys.stderr = io.TextIOWrapper(messages, errors="backslashreplace", line_buffering=True)


class _Forgiving(io.FileIO):
    """Standard error. That nobody can read what is told there is no reason to fail."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data) or 0
        except OSError:
            return len(data)
