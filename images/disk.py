"""Make a read-only disk image of a root file system that comes as a tar file.

EROFS without compression: measured against squashfs (zstd, lz4, none) and compressed EROFS it
boots fastest under emulation, where unpacking is what costs (numbers in README.md). The host pays
with 250 MB of disk, once, which all machines share through the page cache.
"""

import os
import shutil
from pathlib import Path

from images.tool import run

FORMAT = "erofs"
UUID = "6d797065-6d61-6e00-8000-726f6f746673"


def pack(tar: Path, image: Path, epoch: int) -> None:
    """Write `image`; the same tar gives the same bytes.

    mkfs.erofs of Debian 12 takes a directory only, so one is unpacked beside the image. An ordinary
    user does that under fakeroot, which keeps the owners that the tar names.
    """
    tree, temporary = image.with_suffix(".tree"), image.with_suffix(".new")
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(mode=0o755)
    script = """
        tar --extract --file="$1" --directory="$2" --same-owner --preserve-permissions
        mkfs.erofs --quiet -T"$4" -U"$5" "$3" "$2"
    """
    run([
        *([] if os.geteuid() == 0 else ["fakeroot"]),
        "sh", "-euc", script, "sh", tar, tree, temporary, str(epoch), UUID,
    ])  # fmt: skip
    shutil.rmtree(tree)
    temporary.replace(image)
