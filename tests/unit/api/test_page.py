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
