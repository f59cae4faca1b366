"""How an operator names an upstream."""

from __future__ import annotations

import pytest

from supervisor.model.upstream import Upstream, parse_upstream


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("docker.io", Upstream("docker.io", "https://registry-1.docker.io")),
        ("ghcr.io", Upstream("ghcr.io", "https://ghcr.io")),
        ("r.example:5000", Upstream("r.example:5000", "https://r.example:5000")),
        ("r.example=http://127.0.0.1:5000/", Upstream("r.example", "http://127.0.0.1:5000")),
        ("docker.io=https://Proxy.example", Upstream("docker.io", "https://proxy.example")),
        (
            "docker.io=https://proxy.example/hub/x",
            Upstream("docker.io", "https://proxy.example", "hub/x/"),
        ),
    ],
)
def test_a_name_stands_for_itself_or_for_a_url(text: str, expected: Upstream) -> None:
    assert parse_upstream(text) == expected


def test_a_port_is_part_of_the_repositories_names() -> None:
    assert parse_upstream("r.example:5000").component == "r.example_5000"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "=https://x",
        "Docker.io",
        "a b",
        "docker.io/library",
        "https://docker.io",
        "../x",
        "a..b",
        "r.example=",
        "r.example=x",
        "r.example=ftp://x",
        "r.example=https://",
        "r.example=https://me:secret@x",
        "r.example=https://x/?a=b",
        "r.example=https://x/#a",
        "r.example=https://x/UP",
        "r.example=https://x:99999",
        "r.example=https://x:y",
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_upstream(text)
