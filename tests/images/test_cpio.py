"""The initramfs format, held against cpio(1)'s reading of it."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from images import cpio


@pytest.mark.skipif(shutil.which("cpio") is None, reason="no cpio on this host")
def test_cpio_reads_what_pack_writes() -> None:
    archive = cpio.pack(
        {
            "bin": cpio.directory(),
            "bin/sh": cpio.link("busybox"),
            "bin/busybox": cpio.file(b"program", 0o755),
            "console": cpio.character_device(5, 1),
        }
    )
    listing = subprocess.run(
        ["cpio", "--list", "--verbose", "--numeric-uid-gid", "--quiet"],
        input=archive,
        capture_output=True,
        check=True,
    ).stdout.decode()
    lines = [line.split() for line in listing.splitlines()]
    assert [(line[0], line[-1]) for line in lines] == [
        ("drwxr-xr-x", "bin"),
        ("-rwxr-xr-x", "bin/busybox"),
        ("lrwxrwxrwx", "busybox"),
        ("crw-------", "console"),
    ]


def test_the_order_of_entries_does_not_matter() -> None:
    one, two = cpio.file(b"1"), cpio.file(b"2")
    assert cpio.pack({"a": one, "b": two}) == cpio.pack({"b": two, "a": one})
