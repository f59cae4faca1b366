"""Durable files."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from supervisor.runtime.files import fsync_directory_sync, remove_tree_sync, write_atomically_sync


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "metadata.json"
    write_atomically_sync(path, b"old")
    write_atomically_sync(path, b"new")
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["metadata.json"]


def test_a_reader_keeps_the_old_file_or_sees_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "metadata.json"
    write_atomically_sync(path, b"old")
    with path.open("rb") as reader:
        write_atomically_sync(path, b"new")
        assert reader.read() == b"old"


def test_the_mode_is_what_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "key"
    write_atomically_sync(path, b"k", mode=0o600)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("failing", ["fsync", "rename"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    path = tmp_path / "metadata.json"
    write_atomically_sync(path, b"old")

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    if failing == "fsync":
        monkeypatch.setattr(os, "fsync", refuse)
    else:
        monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match="No space"):
        write_atomically_sync(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["metadata.json"]


def test_the_content_is_durable_before_the_name_and_the_name_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def watched_fsync(fd: int) -> None:
        done.append("directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file")
        fsync(fd)

    def watched_replace(self: Path, target: Path) -> Path:
        done.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(Path, "replace", watched_replace)
    write_atomically_sync(tmp_path / "a", b"x")
    assert done == ["file", "rename", "directory"]


def test_no_descriptor_is_left(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a count of descriptors
    write_atomically_sync(tmp_path / "a", b"x")
    fsync_directory_sync(tmp_path)
    with pytest.raises(FileNotFoundError):
        write_atomically_sync(tmp_path / "absent" / "a", b"x")
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208 - a count of descriptors


def test_a_tree_is_removed_and_may_be_gone_already(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "file").write_text("x")
    remove_tree_sync(tree)
    remove_tree_sync(tree)
    assert not tree.exists()


def test_a_link_in_a_tree_is_removed_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "keep").mkdir()
    (tmp_path / "keep" / "file").write_text("x")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "link").symlink_to(tmp_path / "keep")
    remove_tree_sync(tmp_path / "tree")
    assert (tmp_path / "keep" / "file").exists()


def test_the_only_writer_uses_up_what_its_crash_has_left(tmp_path: Path) -> None:
    (tmp_path / ".metadata.json.tmp").write_bytes(b"half a st")
    write_atomically_sync(tmp_path / "metadata.json", b"whole", is_sole_writer=True)
    assert (tmp_path / "metadata.json").read_bytes() == b"whole"
    assert [entry.name for entry in tmp_path.iterdir()] == ["metadata.json"]
