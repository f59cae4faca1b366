"""The page about the settings is the one that the settings make."""

from __future__ import annotations

from pathlib import Path

from supervisor.config import Settings
from supervisor.daemon.reference import reference

PAGE = Path(__file__).parents[3] / "docs" / "configuration.md"


def test_the_page_is_up_to_date() -> None:
    again = "python -m supervisor.daemon.reference > docs/configuration.md"
    assert PAGE.read_text() == reference(), f"make it again: {again}"


def test_every_setting_says_what_it_is_for() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []
