"""What the host has: where it is looked for, and what counts as fitting."""

from __future__ import annotations

from pathlib import Path

import pytest

from images import host
from images.host import Requirement


def program(directory: Path, name: str, version: str) -> None:
    path = directory / name
    path.write_text(f"#!/bin/sh\necho {name} version {version}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("go version go1.26.8 linux/amd64", (1, 26, 8)),
        ("1.96.0+dfsg1-1~deb12u2", (1, 96, 0)),
        ("", ()),
    ],
)
def test_versions_are_the_first_dotted_number(text: str, version: tuple[int, ...]) -> None:
    assert host.parse_version(text) == version


def test_a_program_that_is_too_old_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    for directory, version in ((old, "1.9"), (new, "1.10")):
        directory.mkdir()
        program(directory, "tool", version)
    monkeypatch.setenv("PATH", f"{old}:{new}")
    need = Requirement(
        name="tool", why="", packages=[], command=["tool"], version=["tool", "-V"], at_least="1.10"
    )
    assert host.find(need) == host.Finding(True, f"{new / 'tool'} 1.10")


def test_what_is_missing_is_named_with_the_version_it_must_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    need = Requirement(name="tool", why="", packages=[], command=["no-such-tool"], at_least="3")
    assert host.find(need) == host.Finding(False, "no no-such-tool 3 or newer")


def test_every_requirement_says_why_and_has_a_source() -> None:
    for need in host.requirements():
        assert need.why
        assert need.packages
        assert need.command or need.file
