"""The page about the commands is the one that the commands make."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from supervisor.ctl.program import app
from supervisor.ctl.reference import reference

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"


def test_the_page_is_up_to_date() -> None:
    again = "python -m supervisor.ctl.reference > docs/cli.md"
    assert PAGE.read_text() == reference(), f"make it again: {again}"


def commands_below(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of each command that help shows."""
    below = getattr(command, "commands", None)
    if below is None:
        yield path
        return
    for name, each in below.items():
        if not each.hidden:
            yield from commands_below(each, (*path, name))


COMMANDS = tuple(commands_below(typer.main.get_command(app)))
WITHOUT_JSON = {("completion",)}
"""What it writes is a script for a shell."""


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_knows_json_and_templates_and_has_an_example(path: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, [*path, "--help"])
    assert result.exit_code == 0
    options = {line.split()[0] for line in result.stdout.splitlines() if line.startswith("  --")}
    assert {"--json", "--format"} & options == (
        set() if path in WITHOUT_JSON else {"--json", "--format"}
    )
    example = " ".join(result.stdout.rpartition("Example: ")[2].split())
    assert f"hypeman-ctl {' '.join(path)}" in example


def test_help_speaks_of_what_is_meant_and_not_of_types() -> None:
    for word in ("<str>", "<int", "<path>", "<float", "list[", "{BUILD", "{NAME", "{IMAGE"):
        assert word not in PAGE.read_text()
    assert "Usage: hypeman-ctl wait [OPTIONS] BUILD...\n" in PAGE.read_text()
