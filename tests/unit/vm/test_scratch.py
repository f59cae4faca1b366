from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from supervisor.errors import HostError, ResourceExhausted
from supervisor.vm import scratch
from supervisor.vm.scratch import make_scratch_sync

SIZE = 8 << 30


@pytest.fixture
def template(tmp_path: Path) -> Path:
    """Eight GiB of nothing, with something at three places."""
    path = tmp_path / "template"
    with path.open("wb") as file:
        file.truncate(SIZE)
        for offset, data in ((0, b"first"), (3 << 30, b"middle"), (SIZE - 4, b"last")):
            file.seek(offset)
            file.write(data)
    return path


def assert_copy(fd: int) -> None:
    assert os.fstat(fd).st_size == SIZE
    assert os.pread(fd, 5, 0) == b"first"
    assert os.pread(fd, 6, 3 << 30) == b"middle"
    assert os.pread(fd, 4, SIZE - 4) == b"last"
    assert os.pread(fd, 100, 1 << 30) == bytes(100)
    assert os.fstat(fd).st_blocks * 512 < 1 << 20, "it must be sparse"
    assert os.pwrite(fd, b"written", 1 << 20) == 7


def test_a_copy_is_whole_sparse_and_has_no_name(tmp_path: Path, template: Path) -> None:
    fd = make_scratch_sync(template, tmp_path)
    try:
        assert_copy(fd)
        assert list(tmp_path.iterdir()) == [template]
        assert os.fstat(fd).st_nlink == 0
    finally:
        os.close(fd)
    assert template.stat().st_size == SIZE


def test_a_file_system_without_nameless_files_does_too(
    tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_open = os.open

    def refuse(path: str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "no nameless files here")
        return real_open(path, flags, mode)

    monkeypatch.setattr(os, "open", refuse)
    fd = make_scratch_sync(template, tmp_path)
    try:
        assert_copy(fd)
        assert list(tmp_path.iterdir()) == [template]
    finally:
        os.close(fd)


def test_blocks_are_shared_where_the_file_system_can(
    tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def clone(target: int, request: int, source: int) -> int:
        asked.append(request)
        os.ftruncate(target, os.fstat(source).st_size)
        return 0

    monkeypatch.setattr(fcntl, "ioctl", clone)
    fd = make_scratch_sync(template, tmp_path)
    os.close(fd)
    assert asked == [0x40049409]


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENOSPC, ResourceExhausted), (errno.EIO, HostError)]
)
def test_a_failing_copy_is_told_and_leaves_no_descriptor(
    tmp_path: Path,
    template: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    kind: type[HostError],
) -> None:
    def fail(source: int, target: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(scratch, "_copy_extents", fail)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(kind, match=f"cannot be made.*: {os.strerror(number)}") as caught:
        make_scratch_sync(template, tmp_path)
    assert type(caught.value) is kind
    is_for_the_tenant = kind is ResourceExhausted
    assert (str(tmp_path) in str(caught.value)) is not is_for_the_tenant
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert list(tmp_path.iterdir()) == [template]


def test_a_missing_template_is_told(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="No such file"):
        make_scratch_sync(tmp_path / "none", tmp_path)
