"""The builder image that was made: complete, described truly, reproducible, and it boots."""

from __future__ import annotations

import json
import os
import re
import tarfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from images import busybox, disk, files, gotools, initramfs, kernel, rootfs, scratch
from images.check_boot import IMAGE, boot
from images.paths import IMAGES

README = (IMAGES / "README.md").read_text()
RECIPE: dict[str, Any] = tomllib.loads((IMAGES / "builder" / "recipe.toml").read_text())
BOOTS = int(os.environ.get("HYPEMAN_TEST_BOOTS", "2"))
HELLO_GOAL_SECONDS = 3.5

pytestmark = pytest.mark.skipif(
    not (IMAGE / "manifest.json").is_file(), reason="the builder image is not made: ./run setup"
)


@pytest.fixture(scope="module")
def manifest() -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((IMAGE / "manifest.json").read_text())
    return facts


@pytest.fixture(scope="module")
def contents() -> Iterator[dict[str, tarfile.TarInfo]]:
    with tarfile.open(rootfs.TAR) as archive:
        yield {info.name.removeprefix("./"): info for info in archive}


def test_the_manifest_has_the_digests_of_the_files_beside_it(manifest: dict[str, Any]) -> None:
    parts = [manifest["kernel"], manifest["kernel"]["bzimage"]]
    for part in [*parts, manifest["initramfs"], manifest["rootfs"]]:
        assert files.digest(IMAGE / part["path"]) == part["sha256"], part["path"]
    template = manifest["scratch"]
    assert files.sparse_digest(IMAGE / template["path"]) == template["blocks_sha256"]
    assert (IMAGE / template["path"]).stat().st_size == template["size_bytes"]


def test_the_manifest_names_the_versions_of_the_go_modules(manifest: dict[str, Any]) -> None:
    assert gotools.versions().items() <= manifest["components"].items()


def test_every_path_of_the_readme_is_there_and_executable(
    contents: dict[str, tarfile.TarInfo],
) -> None:
    table = README.partition("### Components")[2].partition("### Environment")[0]
    paths = re.findall(r"^\| `/(\S+)`", table, re.M)
    assert len(paths) == 11
    for path in paths:
        assert contents[path].mode & 0o111, path


def test_only_the_id_mappers_are_set_uid(contents: dict[str, tarfile.TarInfo]) -> None:
    special = {name for name, info in contents.items() if info.isreg() and info.mode & 0o6000}
    assert special == {"usr/bin/newuidmap", "usr/bin/newgidmap"}


def test_the_builder_owns_its_home(contents: dict[str, tarfile.TarInfo]) -> None:
    assert contents[rootfs.STATE].uid == contents[rootfs.HOME].uid == 1000


def test_packing_again_gives_the_same_initramfs(manifest: dict[str, Any]) -> None:
    linux = kernel.Kernel("", kernel.DIRECTORY)
    packed = initramfs.pack(linux, RECIPE["kernel"]["modules"], busybox.DIRECTORY / "busybox")
    assert packed == (IMAGE / manifest["initramfs"]["path"]).read_bytes()


def test_packing_again_gives_the_same_root_disk(manifest: dict[str, Any], tmp_path: Path) -> None:
    # From the packed tar: what goes into that in which order is test_tree.py's matter.
    disk.pack(rootfs.TAR, tmp_path / "rootfs", RECIPE["source_date_epoch"])
    assert files.digest(tmp_path / "rootfs") == manifest["rootfs"]["sha256"]


def test_making_the_scratch_disk_again_gives_the_same_bytes(
    manifest: dict[str, Any], tmp_path: Path
) -> None:
    scratch.make(tmp_path / "scratch", RECIPE["scratch"], RECIPE["source_date_epoch"])
    assert files.sparse_digest(tmp_path / "scratch") == manifest["scratch"]["blocks_sha256"]
    assert (tmp_path / "scratch").stat().st_blocks * 512 < 4 << 20


@pytest.mark.e2e
def test_it_boots_every_time_and_says_where_the_time_went() -> None:
    boots = [boot(IMAGE) for _ in range(BOOTS)]
    for each in boots:
        assert list(each.stamps) == ["init", "modules", "root", "scratch", "handover"]
    # The goal is for a machine with nothing else to do, so it is told, not asserted: other tests
    # may run beside this one. What is asserted would only ever be a real change for the worse.
    fastest = min(each.seconds for each in boots)
    assert fastest < 4 * HELLO_GOAL_SECONDS
