"""The corpus: what peers have sent that is worth keeping, as hexadecimal text with its outcome.

A file's first line says what becomes of it: `# taken: N` messages, `# refused: WHY`, or
`# unfinished`, which is well-formed as far as it goes. What a fuzzer finds is added here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

DIRECTORY = Path(__file__).parent / "corpus"


@dataclass(frozen=True)
class Case:
    """Bytes as they came from the connection, and what they come to."""

    name: str
    data: bytes
    messages: int | None = None
    """How many messages they are, if nothing is wrong with them."""
    why: str | None = None
    """A part of the reason for which they are refused."""


def cases() -> list[Case]:
    """Return all of the corpus, in order of names."""
    return [_read(path) for path in sorted(DIRECTORY.glob("*.hex"))]


def _read(path: Path) -> Case:
    first, *rest = path.read_text(encoding="ascii").splitlines()
    data = bytes.fromhex("".join(line for line in rest if not line.startswith("#")))
    outcome, _, detail = first.removeprefix("# ").partition(": ")
    match outcome:
        case "taken":
            return Case(path.stem, data, messages=int(detail))
        case "unfinished":
            return Case(path.stem, data)
    assert outcome == "refused", first
    return Case(path.stem, data, why=detail)
