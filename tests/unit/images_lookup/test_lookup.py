from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from supervisor.errors import ConfigError, NotReady
from supervisor.images.lookup import find_builder_image

FILES = ("vmlinux", "initramfs", "rootfs.erofs", "scratch.ext4")


def manifest(**changes: Any) -> dict[str, Any]:
    return {
        "schema": 1,
        "name": "hypeman/builder",
        "digest": "sha256:" + "d" * 64,
        "kernel": {"path": "vmlinux", "sha256": "e" * 64, "version": "6.1"},
        "initramfs": {"path": "initramfs"},
        "rootfs": {"path": "rootfs.erofs", "format": "erofs"},
        "scratch": {"path": "scratch.ext4"},
        "cmdline": "console=ttyS0 rootfstype=erofs",
        "components": {"buildkit": "v0.32.2"},
        **changes,
    }


def make_image(images: Path, content: dict[str, Any] | None = None, version: str = "v1") -> Path:
    directory = images / "hypeman" / "builder" / version
    directory.mkdir(parents=True)
    for name in FILES:
        (directory / name).touch()
    (directory / "manifest.json").write_text(json.dumps(content or manifest()))
    return directory


def test_a_tag_is_followed_once_to_what_it_means_now(tmp_path: Path) -> None:
    directory = make_image(tmp_path)
    (directory.parent / "latest").symlink_to("v1")
    image = find_builder_image(tmp_path, "hypeman/builder:latest")
    assert image.kernel == directory / "vmlinux"
    assert image.rootfs == directory / "rootfs.erofs"
    assert image.scratch == directory / "scratch.ext4"
    assert image.digest == "sha256:" + "d" * 64
    assert image.components == {"buildkit": "v0.32.2"}
    assert image.reference == "hypeman/builder:latest"


def test_the_tag_is_latest_if_absent(tmp_path: Path) -> None:
    make_image(tmp_path, version="latest")
    assert find_builder_image(tmp_path, "hypeman/builder").cmdline.startswith("console=")


@pytest.mark.parametrize(
    "reference",
    [
        "",
        ":latest",
        "../secret",
        "hypeman/../builder",
        "/etc",
        "hypeman//builder",
        "hypeman/builder:",
        "hypeman/builder:..",
        "hypeman/builder:a/b",
        "Hypeman/builder",
        "hypeman/builder:latest\n",
        "hypeman/builder@sha256:00",
        ".hidden",
    ],
)
def test_a_name_that_could_leave_the_directory_is_refused(tmp_path: Path, reference: str) -> None:
    with pytest.raises(ConfigError, match="BUILDER_IMAGE"):
        find_builder_image(tmp_path, reference)


def test_an_image_that_has_not_been_made_is_said_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(NotReady, match=r"no builder image hypeman/builder:latest in .*; make it"):
        find_builder_image(tmp_path, "hypeman/builder:latest")


def test_a_link_to_nowhere_is_an_image_that_has_not_been_made(tmp_path: Path) -> None:
    make_image(tmp_path)
    (tmp_path / "hypeman" / "builder" / "latest").symlink_to("v2")
    with pytest.raises(NotReady):
        find_builder_image(tmp_path, "hypeman/builder:latest")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"schema": 2}, "its schema is 2, and 1 is understood"),
        ({"digest": "sha256:short"}, "digest is 'sha256:short'"),
        ({"digest": None}, "digest is None"),
        ({"kernel": "vmlinux"}, "indices must be integers"),
        ({"kernel": {"path": "vmlinux", "sha256": "x"}}, "kernel.sha256"),
        ({"kernel": {"sha256": "e" * 64}}, "'path' is missing"),
        ({"rootfs": {"path": "../../../etc/shadow"}}, "path is"),
        ({"rootfs": {"path": "/etc/shadow"}}, "path is"),
        ({"rootfs": {"path": ".."}}, "path is"),
        ({"rootfs": {"path": "rootfs.ext4"}}, "rootfs.ext4 is missing"),
        ({"cmdline": "console=ttyS0\ninit=/bin/sh"}, "cmdline is"),
        ({"components": 7}, "not iterable"),
    ],
)
def test_a_manifest_that_cannot_be_used_says_why(
    tmp_path: Path, change: dict[str, Any], complaint: str
) -> None:
    make_image(tmp_path, manifest(**change))
    with pytest.raises(ConfigError) as caught:
        find_builder_image(tmp_path, "hypeman/builder:v1")
    assert complaint in str(caught.value)
    assert "make the image again" in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000])
def test_a_manifest_that_is_no_manifest_is_a_configuration_error(tmp_path: Path, text: str) -> None:
    directory = make_image(tmp_path)
    (directory / "manifest.json").write_text(text)
    with pytest.raises(ConfigError):
        find_builder_image(tmp_path, "hypeman/builder:v1")


def test_a_manifest_that_cannot_be_read_is_a_configuration_error(tmp_path: Path) -> None:
    directory = make_image(tmp_path)
    (directory / "manifest.json").unlink()
    (directory / "manifest.json").mkdir()
    with pytest.raises(ConfigError, match="Is a directory"):
        find_builder_image(tmp_path, "hypeman/builder:v1")
