"""The threat model tells of tests that exist: every threat has one, and every name is right."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "threat-model.md").read_text()
NAMED = sorted(set(re.findall(r"`(tests/[^`]*)`", PAGE)))
THREATS = [
    line for line in PAGE.splitlines() if line.startswith("| ") and "| control |" not in line
]


def missing(name: str) -> str:
    """Return what of `path` or `path::test` there is not; nothing if it is all there."""
    path, _, test = name.partition("::")
    if not (ROOT / path).exists():
        return f"there is no {path}"
    if test and not re.search(
        rf"^ *(async )?def {test}\(", (ROOT / path).read_text(), re.MULTILINE
    ):
        return f"{path} has no {test}"
    return ""


@pytest.mark.parametrize("name", NAMED)
def test_a_test_that_is_named_exists(name: str) -> None:
    assert missing(name) == ""


@pytest.mark.parametrize("threat", THREATS, ids=lambda line: line.split("|")[1].strip()[:60])
def test_every_threat_is_attacked_by_a_test(threat: str) -> None:
    threat_, control, tests = (cell.strip() for cell in threat.strip("|").split("|"))
    assert threat_
    assert control
    assert re.search(r"`tests/[^`]*::test_", tests), "name the tests themselves"


def test_a_name_that_is_wrong_is_found() -> None:
    assert missing("tests/unit/test_threat_model.py::test_every_threat_is_attacked_by_a_test") == ""
    assert missing("tests/unit/test_threat_model.py::test_nobody_wrote") != ""
    assert missing("tests/unit/no_such_file.py") != ""
    assert len(THREATS) > 20
