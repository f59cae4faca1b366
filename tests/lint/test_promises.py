"""docs/promises.md and docs/operations.md say nothing that is not so."""

from __future__ import annotations

import re
from pathlib import Path

from supervisor.model.build import Reason

ROOT = Path(__file__).parents[2]
PROMISES = (ROOT / "docs" / "promises.md").read_text()
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
UNTESTED = "not yet tested"


def rows(text: str) -> list[list[str]]:
    """Return the rows of all tables, without their heads."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    heads = {at - 1 for at, line in enumerate(lines) if line.startswith("|---")}
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for at, line in enumerate(lines)
        if at not in heads and not line.startswith("|---")
    ]


def test_every_promise_names_a_test_that_exists() -> None:
    promises = rows(PROMISES)
    assert len(promises) > 20
    for promise, test in promises:
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", test)
        assert named or test == UNTESTED, f"{promise}: no test is named"
        for path, name in named:
            source = (ROOT / path).read_text()
            assert re.search(rf"^ *(async )?def {name}\(", source, re.MULTILINE), f"{path}::{name}"


def test_every_error_code_of_a_build_is_explained() -> None:
    explained = {row[0].strip("`") for row in rows(OPERATIONS)}
    assert {reason.value for reason in Reason} <= explained


def test_every_metric_is_explained_and_exists() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "supervisor").rglob("*.py"))
    assert set(re.findall(r"\bhypeman_[a-z_]+\b", OPERATIONS)) == set(
        re.findall(r'"(hypeman_[a-z_]+)"', sources)
    )
