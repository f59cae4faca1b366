"""The page about the life of a build is what the code does."""

from __future__ import annotations

from tests.lifecycle_diagram import PAGE, render


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == render(), "run: python -m tests.lifecycle_diagram"
