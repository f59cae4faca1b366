"""docs/api.md shows every route at work."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from supervisor.api.routes import ROUTES, Route

PAGE = (Path(__file__).parents[3] / "docs" / "api.md").read_text()
COMMANDS = "\n".join(re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)).replace("\\\n", " ")


def method_of(command: str) -> str:
    """Return the method that curl uses."""
    if found := re.search(r"-X (\w+)", command):
        return found[1]
    return "POST" if re.search(r" (-F|--json) ", command) else "GET"


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
def test_a_route_is_shown_with_curl(route: Route) -> None:
    if route.is_websocket:
        assert f"`{route.method} {route.path}" in PAGE
        return
    path = re.escape(route.path).replace(r"\{id\}", r"\$id").replace(r"\{name\}", r"[^\s?\"]+")
    calls = [line for line in COMMANDS.splitlines() if re.search(rf"\$url{path}([?\"\s]|$)", line)]
    assert route.method in {method_of(line) for line in calls}, f"no curl for {route.path}"


def test_every_call_is_of_a_route_that_there_is() -> None:
    calls = re.findall(r"^.*\bapi .*\$url(/[^\s?\"]*).*$", COMMANDS, re.MULTILINE)
    assert len(calls) > len(ROUTES)
    patterns = [
        re.escape(route.path).replace(r"\{id\}", r"\$id").replace(r"\{name\}", ".+")
        for route in ROUTES
    ]
    unknown = [path for path in calls if not any(re.fullmatch(each, path) for each in patterns)]
    assert unknown == []


def test_brackets_are_not_read_as_a_pattern_of_urls() -> None:
    commands = [line for line in COMMANDS.splitlines() if re.search(r"\$url\S*\[", line)]
    assert commands
    assert all(" -g " in command for command in commands)
