"""Which files of a directory are sent."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from supervisor.ctl.context import Survey, find_dockerfile, open_context, survey_context
from supervisor.ctl.errors import UsageError


def make(root: Path, *paths: str) -> Path:
    """Make files below `root`, directories for those that end with a slash."""
    for path in paths:
        target = root / path
        if path.endswith("/"):
            target.mkdir(parents=True, exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(path)
    return root


def sent(root: Path, dockerfile: str | None = "Dockerfile") -> list[str]:
    return [entry.path for entry in open_context(root, dockerfile=dockerfile).walk(Survey())]


def test_the_order_is_that_of_the_bytes_and_directories_come_first(tmp_path: Path) -> None:
    make(tmp_path, "b", "a/z", "a/A", "é", "Z", "empty/")
    assert sent(tmp_path) == ["Z", "a", "a/A", "a/z", "b", "empty", "é"]


def test_ignored_directories_are_sent_only_as_far_as_something_in_them_is(tmp_path: Path) -> None:
    make(tmp_path, "docs/a.md", "docs/sub/b.md", "docs/sub/c.md", "docs/other/d.md", "x")
    (tmp_path / ".dockerignore").write_text("docs\n!docs/sub/b.md\n")
    assert sent(tmp_path) == [".dockerignore", "docs", "docs/sub", "docs/sub/b.md", "x"]


def test_dockerfile_and_ignore_files_are_sent_whatever_the_patterns_say(tmp_path: Path) -> None:
    make(tmp_path, "deep/er/Dockerfile", "deep/er/x", "deep/y", "z")
    (tmp_path / ".dockerignore").write_text("**\n")
    assert sent(tmp_path, "deep/er/Dockerfile") == [
        ".dockerignore", "deep", "deep/er", "deep/er/Dockerfile",
    ]  # fmt: skip


def test_an_ignore_file_named_after_the_dockerfile_is_preferred(tmp_path: Path) -> None:
    make(tmp_path, "app.Dockerfile", "a", "b")
    (tmp_path / ".dockerignore").write_text("a\n")
    (tmp_path / "app.Dockerfile.dockerignore").write_text("b\n")
    assert sent(tmp_path, "app.Dockerfile") == [
        ".dockerignore", "a", "app.Dockerfile", "app.Dockerfile.dockerignore",
    ]  # fmt: skip
    assert sent(tmp_path, None) == [
        ".dockerignore", "app.Dockerfile", "app.Dockerfile.dockerignore", "b",
    ]  # fmt: skip


def test_what_a_linked_dockerfile_leads_to_is_sent_too(tmp_path: Path) -> None:
    make(tmp_path, "real/file", "real/other", "x")
    (tmp_path / "Dockerfile").symlink_to("hop")
    (tmp_path / "hop").symlink_to("/real/file")  # absolute: from the context's root, to BuildKit
    (tmp_path / ".dockerignore").write_text("*\n")
    assert sent(tmp_path) == [".dockerignore", "Dockerfile", "hop", "real", "real/file"]


def test_a_linked_ignore_file_is_followed_inside_the_context_only(tmp_path: Path) -> None:
    outside = make(tmp_path, "outside/ignore") / "outside/ignore"
    outside.write_text("*\n")
    root = make(tmp_path / "root", "x")
    (root / ".dockerignore").symlink_to(outside)
    assert sent(root) == [".dockerignore", "x"]


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").symlink_to("other")
    (tmp_path / "other").symlink_to("Dockerfile")
    assert sent(tmp_path) == ["Dockerfile", "other"]
    assert find_dockerfile(tmp_path) is None


def test_a_pattern_that_only_buildkit_can_read_sends_everything(tmp_path: Path) -> None:
    make(tmp_path, "Dockerfile", "a")
    (tmp_path / ".dockerignore").write_text("*\n[z-a]*\n")
    assert sent(tmp_path) == [".dockerignore", "Dockerfile", "a"]


def test_the_lower_case_dockerfile_is_found_and_always_sent(tmp_path: Path) -> None:
    make(tmp_path, "dockerfile")
    (tmp_path / ".dockerignore").write_text("*\n")
    assert find_dockerfile(tmp_path) == "dockerfile"
    assert sent(tmp_path) == [".dockerignore", "dockerfile"]


def test_directories_are_not_followed_through_links(tmp_path: Path) -> None:
    make(tmp_path, "real/x")
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "broken").symlink_to("nowhere")
    assert sent(tmp_path) == ["broken", "link", "real", "real/x"]


def test_special_files_are_left_out_and_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "socket"))
    make(tmp_path, "x")
    survey = survey_context(open_context(tmp_path, dockerfile=None))
    assert (survey.special, survey.files, survey.total_bytes) == (["pipe", "socket"], 1, 1)


def test_unreadable_files_are_named_together_before_anything_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "a", "b", "ignored", "we\nird")
    (tmp_path / ".dockerignore").write_text("ignored\n")
    closed = {"b", "ignored", "we\nird"}  # as root, permissions keep nobody out
    monkeypatch.setattr(os, "access", lambda path, _: Path(path).name not in closed)
    with pytest.raises(UsageError) as caught:
        survey_context(open_context(tmp_path, dockerfile=None))
    assert caught.value.message == "cannot read b, we\\nird"
    assert ".dockerignore" in caught.value.hint


def test_a_directory_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        open_context(tmp_path / "absent", dockerfile=None)
    with pytest.raises(UsageError, match="is not a directory"):
        open_context(make(tmp_path, "file") / "file", dockerfile=None)


def test_a_deep_tree_needs_no_recursion(tmp_path: Path) -> None:
    at = tmp_path
    for _ in range(300):
        at = at / "d"
    at.mkdir(parents=True)
    assert len(sent(tmp_path)) == 300
