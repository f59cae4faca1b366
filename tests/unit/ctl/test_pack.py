"""The archive: its content, its determinism, and how it ends."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from pathlib import Path

import pytest
import trio

from supervisor.ctl.context import open_context, survey_context
from supervisor.ctl.errors import UsageError
from supervisor.ctl.pack import Archive, Packed, write_archive_sync
from supervisor.source.check import check_source_sync
from supervisor.source.tar import ArchiveLimits
from tests.kit import cancel_at_every_checkpoint
from tests.processes import count_descriptors


def pack(root: Path) -> bytes:
    sink = io.BytesIO()
    write_archive_sync(open_context(root, dockerfile="Dockerfile"), sink, Packed())
    return sink.getvalue()


async def receive_all(archive: Archive) -> bytes:
    data = b""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(archive.run)
        while piece := await archive.receive():
            data += piece
    return data


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A directory with one of everything that a context may hold."""
    root = tmp_path / "root"
    (root / "dir").mkdir(parents=True)
    (root / "dir").chmod(0o750)
    (root / "Dockerfile").write_text("FROM scratch\n")
    (root / "dir" / "tool").write_bytes(b"#!/bin/sh\n")
    (root / "dir" / "tool").chmod(0o4755)
    (root / "link").symlink_to("dir/tool")
    os.link(root / "dir" / "tool", root / "dir" / "twin")
    (root / ("n" * 200)).write_text("long")
    (root / "grüße ☺").write_text("unicode")
    Path(os.fsdecode(os.fsencode(root) + b"/\xfcber")).write_text("latin-1")
    for path in (root, *root.rglob("*")):
        os.utime(path, (1_700_000_000, 1_700_000_000.9), follow_symlinks=False)
    os.utime(root / "Dockerfile", (-5, -5))
    return root


def test_everything_arrives_as_it_was(tree: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(pack(tree)), encoding="utf-8") as tar:
        members = {member.name: member for member in tar}
        content = {
            name: file.read()
            for name, member in members.items()
            if (file := tar.extractfile(member))
        }
    assert list(members) == [
        "Dockerfile", "dir", "dir/tool", "dir/twin", "grüße ☺", "link", "n" * 200, "\udcfcber",
    ]  # fmt: skip
    assert members["dir"].isdir()
    assert stat.S_IMODE(members["dir"].mode) == 0o750
    assert members["dir/tool"].mode == 0o4755
    assert (members["link"].issym(), members["link"].linkname) == (True, "dir/tool")
    assert (members["dir/twin"].islnk(), members["dir/twin"].linkname) == (True, "dir/tool")
    assert members["dir/tool"].mtime == 1_700_000_000
    assert members["Dockerfile"].mtime == -5
    assert {(m.uid, m.gid, m.uname, m.gname) for m in members.values()} == {(0, 0, "", "")}
    assert content["\udcfcber"] == b"latin-1"
    assert content["n" * 200] == b"long"


def test_the_same_files_make_the_same_bytes_wherever_they_lie(tree: Path, tmp_path: Path) -> None:
    once = pack(tree)
    os.utime(tree)  # the root itself is not part of it
    moved = tree.rename(tmp_path / "elsewhere")
    assert pack(moved) == once


def test_the_daemon_accepts_it(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "source.tar.gz").write_bytes(pack(tree))
    limits = ArchiveLimits(max_entries=100, max_unpacked_bytes=1 << 20)
    facts = check_source_sync(tmp_path / "source.tar.gz", limits, "Dockerfile")
    assert (facts.entries, facts.has_dockerfile) == (8, True)


def test_a_file_that_shrinks_meanwhile_is_one_clear_error(tree: Path) -> None:
    (tree / "Dockerfile").write_bytes(os.urandom(1 << 20))
    context = open_context(tree, dockerfile=None)

    class Truncating(io.BytesIO):
        def write(self, data: object, /) -> int:
            os.truncate(tree / "Dockerfile", 5)
            return super().write(data)  # type: ignore[arg-type]

    with pytest.raises(UsageError, match=r"^Dockerfile became shorter while it was being sent$"):
        write_archive_sync(context, Truncating(), Packed())


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(13, "Permission denied"), "cannot read dir/tool: Permission denied"),
        (FileNotFoundError(2, "No such file"), "dir/tool vanished while it was being sent"),
    ],
)
def test_a_file_that_cannot_be_opened_is_named(
    tree: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, message: str
) -> None:
    real_open = os.open

    def refuse(path: str, *args: object, **options: object) -> int:
        if str(path).endswith("tool"):
            raise error
        return real_open(path, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(UsageError) as caught:
        write_archive_sync(open_context(tree, dockerfile=None), io.BytesIO(), Packed())
    assert caught.value.message == message


async def test_it_streams_what_would_be_written(tree: Path) -> None:
    (tree / "large").write_bytes(os.urandom(3 << 20))
    archive = Archive(open_context(tree, dockerfile="Dockerfile"))
    data = await receive_all(archive)
    archive.close()
    assert data == pack(tree)
    assert archive.packed.sent_bytes == len(data)
    assert archive.packed.files == 6


async def test_a_failing_file_reaches_the_reader_as_a_bare_error(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "readlink", lambda _: (_ for _ in ()).throw(OSError(5, "bad disk")))
    archive = Archive(open_context(tree, dockerfile=None))
    failure = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(archive.run)
        try:
            while await archive.receive():
                pass
        except UsageError as exc:
            failure = exc
    archive.close()
    assert failure is not None
    assert failure.message == "cannot read link: bad disk"


async def test_a_reader_that_goes_away_ends_the_packing(tree: Path) -> None:
    (tree / "large").write_bytes(os.urandom(3 << 20))
    archive = Archive(open_context(tree, dockerfile=None))
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(archive.run)
            assert await archive.receive()
            archive.close()


async def test_a_reader_that_is_gone_before_the_packing_begins_ends_it(tree: Path) -> None:
    archive = Archive(open_context(tree, dockerfile=None))
    before = count_descriptors()
    archive.close()
    await archive.run()
    assert count_descriptors() == before - 2


async def test_cancelled_anywhere_it_leaves_no_descriptor(tree: Path) -> None:
    (tree / "large").write_bytes(os.urandom(1 << 20))
    context = open_context(tree, dockerfile=None)
    await trio.to_thread.run_sync(lambda: None)
    before = count_descriptors()

    async def operation() -> None:
        archive = Archive(context)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(archive.run)
            try:
                while await archive.receive():
                    pass
            finally:
                archive.close()

    async def check(n: int) -> None:
        await trio.lowlevel.checkpoint()
        assert count_descriptors() == before, n

    assert await cancel_at_every_checkpoint(operation, check) > 5


def test_fifty_thousand_files_are_packed(tmp_path: Path) -> None:
    for directory in range(50):
        (tmp_path / f"d{directory}").mkdir()
        for number in range(1000):
            os.mknod(tmp_path / f"d{directory}" / f"ünï{number}", 0o644)
    context = open_context(tmp_path, dockerfile=None)
    packed, sink = Packed(), io.BytesIO()
    write_archive_sync(context, sink, packed)
    assert survey_context(context).files == packed.files == 50_000
