"""Names of caches: what may be shared is, and nothing else."""

from __future__ import annotations

import pytest

from supervisor.model.cache import cache_key, parse_scope

HASHES = {"package-lock.json": "sha256:" + "a" * 64, "yarn.lock": "sha256:" + "b" * 64}


def test_the_same_lock_files_give_the_same_key() -> None:
    key = cache_key("localhost:8083", "team-a", "node20", HASHES)
    assert key == cache_key("localhost:8083", "team-a", "node20", dict(reversed(HASHES.items())))
    assert key.startswith("localhost:8083/cache/team-a/node20/")
    assert len(key.rpartition("/")[2]) == 16


@pytest.mark.parametrize(
    ("scope", "runtime", "hashes"),
    [
        ("team-b", "node20", HASHES),
        ("team-a", "node22", HASHES),
        ("team-a", "node20", {**HASHES, "yarn.lock": "sha256:" + "c" * 64}),
        ("team-a", "node20", {"yarn.lock": HASHES["yarn.lock"]}),
        ("team-a", "node20", {**HASHES, "go.sum": "sha256:" + "c" * 64}),
        ("team-a", "node20", {}),
    ],
)
def test_anything_else_gives_another(scope: str, runtime: str, hashes: dict[str, str]) -> None:
    key = cache_key("localhost:8083", "team-a", "node20", HASHES)
    assert cache_key("localhost:8083", scope, runtime, hashes) != key


@pytest.mark.parametrize(
    ("scope", "runtime"),
    [("global", "node20"), ("a", "node20"), ("../x", "node20"), ("team-a", "a/b"), ("team-a", "")],
)
def test_what_cannot_be_a_component_is_refused(scope: str, runtime: str) -> None:
    with pytest.raises(ValueError, match="cache"):
        cache_key("localhost:8083", scope, runtime, HASHES)


def test_a_scope_does_not_end_in_a_newline() -> None:
    assert parse_scope("team-a") == "team-a"
    assert parse_scope("team-a\n") is None
