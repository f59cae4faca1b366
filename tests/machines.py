"""Real machines for tests: the builder image as it is, or with a program of the test's own."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from images import cpio
from supervisor.errors import NotReady
from supervisor.images.lookup import find_builder_image
from supervisor.model.image import BuilderImage

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "build" / "images"
TOOLS = ROOT / "build" / "tools" / "bin"


def path_with_tools() -> str:
    """Return PATH with the tools that the project builds for itself."""
    return f"{os.environ['PATH']}:{TOOLS}"


def real_image() -> BuilderImage:
    """Return the builder image; skips the test if it has not been made."""
    try:
        return find_builder_image(IMAGES, "hypeman/builder:latest")
    except NotReady as exc:
        pytest.skip(f"{exc.message} (just image builder)")


def image_running(program: Path, directory: Path) -> BuilderImage:
    """Return the builder image with `program`, a Python file, in the place of the agent.

    The kernel unpacks archives that follow each other, later files replacing earlier ones. So the
    initramfs gets an init that puts the program there before it hands over.
    """
    image = real_image()
    init = (ROOT / "images" / "builder" / "init").read_text()
    head, handover, tail = init.rpartition("exec switch_root")
    assert handover, "the initramfs hands over in a way that is not known here"
    patched = f"{head}cat /guest.py >/root/usr/bin/builder-agent\n{handover}{tail}"
    script = b"#!/usr/bin/python3 -ISB\n" + program.read_bytes()
    extra = cpio.pack(
        {"init": cpio.file(patched.encode(), 0o755), "guest.py": cpio.file(script, 0o755)}
    )
    initramfs = directory / "initramfs"
    initramfs.write_bytes(image.initramfs.read_bytes() + extra)
    return dataclasses.replace(image, initramfs=initramfs)
