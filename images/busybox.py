"""The static busybox of the distribution: the initramfs's only program, and a base image.

Taken from its package rather than from the host, so that its version is the archive's on any host.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from images import apt
from images.paths import CACHE
from images.stamp import ensure
from images.tool import run

PACKAGE = "busybox-static"
DIRECTORY = CACHE / "busybox"


@dataclass(frozen=True)
class Busybox:
    key: str
    program: Path
    version: str


def prepare() -> Busybox:
    """Have the program below `build/cache`, fetching it if it is not there."""
    program, version = DIRECTORY / "busybox", DIRECTORY / "version"
    key = ensure("busybox", [apt.release(), Path(__file__)], [program, version], _fetch)
    return Busybox(key, program, version.read_text())


def _fetch() -> None:
    shutil.rmtree(DIRECTORY, ignore_errors=True)
    deb = apt.download(PACKAGE, DIRECTORY)
    run(["dpkg-deb", "-x", deb, DIRECTORY / "unpacked"])
    [program] = (DIRECTORY / "unpacked").rglob("bin/busybox")
    program.rename(DIRECTORY / "busybox")
    (DIRECTORY / "version").write_text(run(["dpkg-deb", "-f", deb, "Version"]).strip())
    shutil.rmtree(DIRECTORY / "unpacked")
    deb.unlink()
