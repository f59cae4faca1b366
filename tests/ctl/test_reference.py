"""The page about the commands is the one that the commands make."""

from __future__ import annotations

from pathlib import Path

import typer

from supervisor.ctl.program import app
from supervisor.ctl.reference import reference

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"


def test_the_page_is_up_to_date() -> None:
    again = "python -m supervisor.ctl.reference > docs/cli.md"
    assert PAGE.read_text() == reference(), f"make it again: {again}"


def test_every_command_has_an_example() -> None:
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        for each in getattr(command, "commands", {name: command}).values():
            assert each.hidden or each.epilog.startswith("Example: "), name


def test_help_speaks_of_what_is_meant_and_not_of_types() -> None:
    for word in ("<str>", "<int", "<path>", "<float", "list[", "{BUILD", "{NAME", "{IMAGE"):
        assert word not in PAGE.read_text()
    assert "Usage: hypeman-ctl wait [OPTIONS] BUILD...\n" in PAGE.read_text()
