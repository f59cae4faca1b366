"""Root file systems as tars: what is kept, what is added, and that bytes depend on nothing else."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from images.tree import Tree

EPOCH = 1_000_000_000


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base.tar"
    with tarfile.open(path, "w") as archive:
        for name, mode in [("./usr/bin/su", 0o4755), ("./usr/bin/newuidmap", 0o4755)]:
            info = tarfile.TarInfo(name)
            info.mode, info.size, info.mtime, info.uname = mode, 2, 42, "somebody"
            archive.addfile(info, io.BytesIO(b"hi"))
        info = tarfile.TarInfo("./usr/share/doc/readme")
        archive.addfile(info)
    return path


def members(path: Path) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(path) as archive:
        return {info.name.removeprefix("./"): info for info in archive}


def test_excluded_paths_are_gone_and_set_uid_bits_too(base: Path, tmp_path: Path) -> None:
    tree = Tree(base, EPOCH, exclude=["/usr/share/doc/*"], setuid=["usr/bin/newuidmap"])
    tree.write(tmp_path / "out.tar")
    found = members(tmp_path / "out.tar")
    assert {name: info.mode for name, info in found.items()} == {
        "usr/bin/su": 0o755,
        "usr/bin/newuidmap": 0o4755,
    }


def test_additions_replace_and_get_their_parents(base: Path, tmp_path: Path) -> None:
    tree = Tree(base, EPOCH)
    tree.add_file("opt/tool/bin/x", b"new", mode=0o755)
    tree.edit("usr/bin/su", lambda old: old + b"!")
    tree.write(tmp_path / "out.tar")
    found = members(tmp_path / "out.tar")
    assert found["opt"].isdir()
    assert found["opt/tool/bin"].isdir()
    assert found["usr/bin/su"].size == 3
    assert found["usr/bin/su"].mode == 0o4755


def test_times_and_names_of_users_are_not_carried_over(base: Path, tmp_path: Path) -> None:
    Tree(base, EPOCH).write(tmp_path / "out.tar")
    assert {(info.mtime, info.uname) for info in members(tmp_path / "out.tar").values()} == {
        (EPOCH, "")
    }


def test_the_order_of_additions_does_not_matter(base: Path, tmp_path: Path) -> None:
    outputs = []
    for names in (["a", "b"], ["b", "a"]):
        tree = Tree(base, EPOCH)
        for name in names:
            tree.add_file(name, name.encode())
        tree.write(tmp_path / "out.tar")
        outputs.append((tmp_path / "out.tar").read_bytes())
    assert outputs[0] == outputs[1]
