"""The scratch disk's template: an empty ext4 that each machine gets a sparse copy of.

No journal and no checksums on data: the disk ends with its machine, so there is nothing to recover.
Group descriptors say "not initialised", so inode tables are neither written here nor in the guest.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from images.paths import CACHE
from images.stamp import ensure
from images.tool import run

TEMPLATE = CACHE / "scratch.ext4"

# Directories at its top, which init binds into place: mode and owner, as debugfs takes them.
DIRECTORIES = {"buildkit": ("040755", 1000), "src": ("040755", 0), "tmp": ("041777", 0)}


def prepare(settings: Mapping[str, Any], epoch: int) -> tuple[str, Path]:
    """Have the template made; return the digest of its inputs and its path."""
    key = ensure(
        "scratch",
        [str(settings), str(epoch), Path(__file__)],
        [TEMPLATE],
        lambda: make(TEMPLATE, settings, epoch),
    )
    return key, TEMPLATE


def make(target: Path, settings: Mapping[str, Any], epoch: int) -> None:
    """Write the template; the same settings give the same bytes."""
    temporary, script = target.with_suffix(".new"), target.with_suffix(".debugfs")
    temporary.unlink(missing_ok=True)
    # The first is for e2fsprogs before 1.47.1, the second since.
    clock = {"E2FSPROGS_FAKE_TIME": str(epoch), "SOURCE_DATE_EPOCH": str(epoch)}
    features = ["^has_journal", "^resize_inode", "^metadata_csum", "uninit_bg"]
    extended = [
        "lazy_itable_init=1",
        "nodiscard",
        "root_owner=0:0",
        f"hash_seed={settings['uuid']}",
    ]
    run([
        "mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", "-L", "scratch",
        "-U", settings["uuid"], "-O", ",".join(features), "-E", ",".join(extended),
        temporary, f"{settings['size_gib']}G",
    ], env=clock)  # fmt: skip
    # debugfs and not `mke2fs -d`: owners other than the caller, without root.
    script.write_text(
        "".join(
            f"mkdir {name}\nsif {name} mode {mode}\n"
            f"sif {name} uid {owner}\nsif {name} gid {owner}\n"
            for name, (mode, owner) in DIRECTORIES.items()
        )
    )
    run(["debugfs", "-w", "-f", script, temporary], env=clock)
    script.unlink()
    temporary.replace(target)
