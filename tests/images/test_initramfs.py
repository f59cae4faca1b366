"""Which modules are loaded, and in what order."""

from __future__ import annotations

import lzma
from pathlib import Path

import pytest

from images.initramfs import in_load_order, module_bytes, module_name
from images.tool import ToolFailed


def module(tree: Path, name: str, *fields: str, suffix: str = ".ko") -> None:
    data = b"ELF\0" + b"".join(field.encode() + b"\0" for field in fields)
    path = tree / f"{name}{suffix}"
    path.write_bytes(lzma.compress(data) if suffix.endswith(".xz") else data)


def test_a_module_comes_after_what_it_depends_on(tmp_path: Path) -> None:
    module(tmp_path, "virtio_blk", "depends=virtio_ring,virtio")
    module(tmp_path, "virtio_ring", "depends=virtio")
    module(tmp_path, "virtio", "depends=")
    names = [module_name(path) for path in in_load_order(tmp_path, ["virtio_blk", "virtio"])]
    assert names == ["virtio", "virtio_ring", "virtio_blk"]


def test_soft_dependencies_come_first_and_built_in_ones_are_left_out(tmp_path: Path) -> None:
    module(tmp_path, "ext4", "depends=jbd2", "softdep=pre: crc32c")
    module(tmp_path, "crc32c", "depends=")
    assert [module_name(path) for path in in_load_order(tmp_path, ["ext4"])] == ["crc32c", "ext4"]


def test_dashes_and_compressed_files(tmp_path: Path) -> None:
    module(tmp_path, "a-b", "depends=", suffix=".ko.xz")
    [path] = in_load_order(tmp_path, ["a_b"])
    assert module_bytes(path).startswith(b"ELF")


def test_a_module_that_the_kernel_lacks_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ToolFailed, match="no module erofs"):
        list(in_load_order(tmp_path, ["erofs"]))
