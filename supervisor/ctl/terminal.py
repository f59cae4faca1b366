"""Text from a build on its way to a terminal.

What a build prints is somebody else's: it may move the cursor, set the window's title or write to
the clipboard. Colours are let through; whatever else a terminal would obey is left out or shown.
"""

from __future__ import annotations

import re
from datetime import datetime

from supervisor.runtime.clock import wall_clock

_ESCAPES = re.compile(
    r"(?P<colour>\x1b\[[0-9;]{0,64}m)"
    r"|\x1b\[[0-?]*[ -/]*[@-~]"  # other control sequences
    r"|\x1b[\]PX^_].*?(?:\x1b\\|\x07|$)"  # strings to the terminal: titles, clipboards
    r"|\x1b.?",
    re.DOTALL,
)
_COLOUR = re.compile(r"\x1b\[[0-9;]{0,64}m")
_CONTROL = {number: f"\\x{number:02x}" for number in (*range(32), 127, *range(128, 160))}
_CONTROL[ord("\t")] = "\t"
_RESET = "\x1b[0m"


def clean_line(line: str, *, colours: bool = True) -> str:
    """Return a line of output that cannot do anything to a terminal but be read there.

    Of text that overwrites itself (progress bars use carriage returns), the last version is kept.
    """
    line = line.rstrip("\r\n")
    line = line.rpartition("\r")[2]
    kept = _ESCAPES.sub(lambda match: match["colour"] or "" if colours else "", line)
    has_colour = "\x1b" in kept
    parts = _COLOUR.split(kept)
    sequences = _COLOUR.findall(kept)
    cleaned = [part.translate(_CONTROL) for part in parts]
    out = cleaned[0] + "".join(
        sequence + part for sequence, part in zip(sequences, cleaned[1:], strict=True)
    )
    return out + _RESET if has_colour else out


def format_bytes(count: float) -> str:
    """Return a size for people: `1.5 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def format_seconds(seconds: float) -> str:
    """Return a duration for people: `3.2s`, `2m05s`, `1h02m`."""
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s"


def format_age(text: str | None) -> str:
    """Return how long ago an RFC 3339 time is: `12s ago`, `3d04h ago`; empty if there is none."""
    at = parse_time(text)
    if at is None:
        return ""
    seconds = round(max(0.0, wall_clock() - at))
    if seconds < 60:
        return f"{seconds}s ago"
    days, hours = divmod(seconds // 3600, 24)
    return f"{days}d{hours:02}h ago" if days else f"{format_seconds(seconds)} ago"


def parse_time(text: str | None) -> float | None:
    """Return an RFC 3339 time in Unix seconds, None if there is none."""
    if not text:
        return None
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None
