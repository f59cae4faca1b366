"""The manifest beside the image: what the daemon checks, and what an operator asks about.

Its digest covers the parts' bytes and the command line, so that it changes when a machine would
boot differently, and not when this file's layout does.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from images import apt, disk, files, gotools
from images.busybox import Busybox
from images.kernel import Kernel
from images.rootfs import Rootfs

Facts = dict[str, Any]
SCRATCH = "scratch.ext4"


def compose(
    recipe: Mapping[str, Any],
    kernel: Kernel,
    busybox: Busybox,
    rootfs: Rootfs,
    parts: Mapping[str, Path],
) -> Facts:
    """All that is known of an image, from the parts that were made for it."""
    digests = {
        name: (files.sparse_digest if name == SCRATCH else files.digest)(path)
        for name, path in parts.items()
    }
    command_line = " ".join([*recipe["kernel"]["cmdline"], f"rootfstype={disk.FORMAT}"])
    listing = "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))
    total = hashlib.sha256(f"{listing}{command_line}\n".encode())
    return {
        "schema": 1,
        "name": recipe["name"],
        "digest": f"sha256:{total.hexdigest()}",
        "kernel": _part(digests, "vmlinux") | {
            "version": kernel.version,
            "bzimage": _part(digests, "bzImage"),
        },
        "initramfs": _part(digests, "initramfs"),
        "rootfs": _part(digests, f"rootfs.{disk.FORMAT}") | {"format": disk.FORMAT},
        "scratch": {
            "path": SCRATCH,
            "size_bytes": parts[SCRATCH].stat().st_size,
            # Over its blocks, not its bytes: see files.sparse_digest.
            "blocks_sha256": digests[SCRATCH],
        },
        "cmdline": command_line,
        "components": {
            **gotools.versions(),
            "busybox": busybox.version,
            "debian": apt.release(),
            "git": rootfs.packages["git"],
            "python": rootfs.packages["python3-minimal"],
            "fuse-overlayfs": rootfs.packages["fuse-overlayfs"],
        },
        "python_packages": rootfs.python_packages,
        "packages": rootfs.packages,
        "agent": {"sha256": rootfs.agent},
    }  # fmt: skip


def render(facts: Facts) -> bytes:
    return json.dumps(facts, indent=2, sort_keys=True).encode() + b"\n"


def _part(digests: Mapping[str, str], name: str) -> dict[str, str]:
    return {"path": name, "sha256": digests[name]}
