"""What a benchmark says: rows of a table, and the same as JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path


class Size(Enum):
    """How much work a benchmark does."""

    FULL = "full"
    TINY = "tiny"
    """Enough to run every line once: for the smoke test. The numbers mean nothing."""

    def pick(self, full: int, tiny: int) -> int:
        """Return the number for this size."""
        return full if self is Size.FULL else tiny


@dataclass(frozen=True)
class Row:
    """One measured value: a median, and what it is held against."""

    what: str
    value: float
    unit: str
    peer: float | None = None
    """The floor or the peer, measured in the same run in the same unit."""
    aim: str = ""
    is_met: bool | None = None

    @property
    def ratio(self) -> float | None:
        """The value as a multiple of the peer's."""
        return self.value / self.peer if self.peer else None


@dataclass(frozen=True)
class Result:
    """What one benchmark has found, and in which circumstances."""

    name: str
    rows: Sequence[Row]
    seconds: float
    """How long it took."""
    load_before: float
    """What else ran on the machine just before: the load of the last minute."""
    load_after: float


def at_least(
    what: str, values: Sequence[float], unit: str, aim: float, peers: Sequence[float] = ()
) -> Row:
    """Return a row that should be at least `aim`, or `aim` times the peer's median."""
    value = statistics.median(values)
    if not peers:
        return Row(what, value, unit, None, f">= {aim:g} {unit}", value >= aim)
    peer = statistics.median(peers)
    return Row(what, value, unit, peer, f">= {aim:g} x", value >= aim * peer)


def at_most(
    what: str, values: Sequence[float], unit: str, aim: float, peers: Sequence[float] = ()
) -> Row:
    """Return a row that should be at most `aim`, or `aim` times the peer's median."""
    value = statistics.median(values)
    if not peers:
        return Row(what, value, unit, None, f"<= {aim:g} {unit}", value <= aim)
    peer = statistics.median(peers)
    return Row(what, value, unit, peer, f"<= {aim:g} x", value <= aim * peer)


def quantile(values: Sequence[float], fraction: float) -> float:
    """Return the value below which that fraction lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * fraction))]


def table(rows: Sequence[Row]) -> str:
    """Return the rows as text."""
    lines = [("", "measured", "peer or floor", "ratio", "aim", "")]
    for row in rows:
        lines.append(
            (
                row.what,
                f"{_number(row.value)} {row.unit}",
                f"{_number(row.peer)} {row.unit}" if row.peer is not None else "",
                f"{row.ratio:.2f}" if row.ratio is not None else "",
                row.aim,
                {True: "met", False: "MISSED", None: ""}[row.is_met],
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(6)]
    shown = [
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    return "\n".join(shown)


def write_json(path: Path, result: Result) -> None:
    """Store the rows, what machine they are from, and how busy it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "benchmark": result.name,
        "machine": {
            "processors": os.cpu_count(),
            "architecture": platform.machine(),
            "python": platform.python_version(),
            "kernel": platform.release(),
        },
        "seconds": round(result.seconds, 1),
        "load_before": result.load_before,
        "load_after": result.load_after,
        "rows": [{**asdict(row), "ratio": row.ratio} for row in result.rows],
    }
    path.write_text(json.dumps(content, indent=2) + "\n")


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
