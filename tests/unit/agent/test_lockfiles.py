"""Lock files are found where they are files, and nothing else is touched."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from agent import lockfiles
from agent.lockfiles import hash_lockfiles_sync


def write(path: Path, data: bytes = b"x") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def test_all_kinds_are_found_at_the_root_and_below(tmp_path: Path) -> None:
    expected = {name: write(tmp_path / name, name.encode()) for name in lockfiles.NAMES}
    expected["a/b/go.sum"] = write(tmp_path / "a/b/go.sum", b"nested")
    write(tmp_path / "go.mod")
    assert hash_lockfiles_sync(str(tmp_path)) == expected


def test_what_others_have_installed_is_passed_over(tmp_path: Path) -> None:
    write(tmp_path / "node_modules/x/package-lock.json")
    write(tmp_path / ".git/go.sum")
    assert hash_lockfiles_sync(str(tmp_path)) == {}


def test_links_and_pipes_are_passed_over(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    write(secret / "go.sum")
    source = tmp_path / "src"
    source.mkdir()
    (source / "go.sum").symlink_to(secret / "go.sum")
    (source / "linked").symlink_to(secret)
    (source / "loop").symlink_to(source)
    os.mkfifo(source / "yarn.lock")
    assert hash_lockfiles_sync(str(source)) == {}


def test_a_directory_with_the_name_of_a_lock_file_is_searched(tmp_path: Path) -> None:
    digest = write(tmp_path / "go.sum" / "go.sum")
    assert hash_lockfiles_sync(str(tmp_path)) == {"go.sum/go.sum": digest}


def test_names_that_are_not_utf_8_are_passed_over(tmp_path: Path) -> None:
    write(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff")) / "go.sum")
    assert hash_lockfiles_sync(str(tmp_path)) == {}


def test_the_nearest_are_kept_when_there_are_too_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lockfiles, "MAX_FILES", 2)
    for path in ("z/go.sum", "a/b/go.sum", "a/go.sum"):
        write(tmp_path / path)
    assert set(hash_lockfiles_sync(str(tmp_path))) == {"a/go.sum", "z/go.sum"}


def test_paths_together_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lockfiles, "MAX_PATH_BYTES", 20)
    for n in range(9):
        write(tmp_path / str(n) / "go.sum")
    assert len(hash_lockfiles_sync(str(tmp_path))) == 2


def test_a_huge_tree_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lockfiles, "MAX_ENTRIES", 3)
    for n in range(5):
        write(tmp_path / f"{n}/deep/go.sum")
    assert hash_lockfiles_sync(str(tmp_path)) == {}


def test_a_huge_file_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lockfiles, "MAX_FILE_BYTES", 3)
    write(tmp_path / "go.sum", b"four")
    assert hash_lockfiles_sync(str(tmp_path)) == {}


def test_it_can_be_stopped(tmp_path: Path) -> None:
    write(tmp_path / "go.sum")
    calls: list[int] = []

    def stop() -> None:
        calls.append(1)
        if len(calls) == 2:
            raise KeyError

    with pytest.raises(KeyError):
        hash_lockfiles_sync(str(tmp_path), stop)


def test_a_tree_that_is_not_there_has_none(tmp_path: Path) -> None:
    assert hash_lockfiles_sync(str(tmp_path / "nowhere")) == {}


def test_the_largest_answer_fits_a_frame(tmp_path: Path, monkeypatch: Any) -> None:
    from agent import wire

    many = {f"{n}/".ljust(120, "d") + "go.sum": "0" * 64 for n in range(lockfiles.MAX_FILES)}
    assert sum(map(len, many)) < lockfiles.MAX_PATH_BYTES
    result = wire.BuildResult(seq=1, ok=False, error="e" * 16_000, lockfile_hashes=many)
    wire.encode(result)
