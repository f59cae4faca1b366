"""Where damaged files go: the latest few are kept, and no other file is touched."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from supervisor.registry import aside
from supervisor.registry.aside import set_aside_sync
from supervisor.registry.stamps import stamp_of
from tests.registry.damage import hearing


def move(directory: Path, name: str, content: bytes = b"damaged") -> None:
    """Set a file aside, later than all before: the clock of a file system is coarse."""
    path = directory / "blob"
    path.write_bytes(content)
    last = max((item.stat().st_ctime_ns for item in kept(directory)), default=0)
    while path.stat().st_ctime_ns <= last:
        path.touch()
    assert set_aside_sync(path, stamp_of(path.stat()), directory / "corrupt" / name)
    assert not path.exists()


def kept(directory: Path) -> list[Path]:
    return sorted((directory / "corrupt").glob("*"))


def names(directory: Path) -> list[str]:
    return [path.name for path in kept(directory)]


def test_the_latest_few_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aside, "MOST_FILES", 3)
    for number in range(5):
        move(tmp_path, str(number))
    assert names(tmp_path) == ["2", "3", "4"]


def test_they_take_so_many_bytes_and_the_latest_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aside, "MOST_BYTES", 10)
    for number, size in enumerate((4, 5, 5)):
        move(tmp_path, str(number), bytes(size))
    assert names(tmp_path) == ["1", "2"]
    move(tmp_path, "3", bytes(100))
    assert names(tmp_path) == ["3"]


def test_a_file_is_moved_also_if_the_oldest_cannot_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(aside, "_remove_oldest_sync", refuse)
    with hearing("WARNING") as heard:
        move(tmp_path, "1")
    assert names(tmp_path) == ["1"]
    assert [item["message"] for item in heard] == ["registry.corrupt_not_removed"]


def test_another_file_and_none_stay_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "blob"
    path.write_bytes(b"damaged")
    stamp = stamp_of(path.stat())
    (tmp_path / "other").write_bytes(b"mended")
    (tmp_path / "other").replace(path)
    assert not set_aside_sync(path, stamp, tmp_path / "corrupt" / "x")
    assert path.read_bytes() == b"mended"
    path.unlink()
    assert not set_aside_sync(path, stamp, tmp_path / "corrupt" / "x")
