"""The guest's kernel: the distribution's, unpacked from its package and never installed.

Two forms are kept. `bzImage` is what the package has. `vmlinux` is the same kernel without its
decompressor, entered through its PVH note: under emulation the decompressor alone costs a second.
"""

import lzma
import shutil
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path

from images import apt
from images.paths import CACHE
from images.stamp import ensure
from images.tool import ToolFailed, run

DIRECTORY = CACHE / "kernel"


@dataclass(frozen=True)
class Kernel:
    """What later steps need of the unpacked kernel package."""

    key: str
    directory: Path

    @property
    def vmlinux(self) -> Path:
        return self.directory / "vmlinux"

    @property
    def bzimage(self) -> Path:
        return self.directory / "bzImage"

    @property
    def modules(self) -> Path:
        return self.directory / "modules"

    @property
    def version(self) -> str:
        """Package and version, as in `linux-image-6.1.0-1-cloud-amd64 6.1.1-1`."""
        return (self.directory / "version").read_text()


def prepare(package: str) -> Kernel:
    """Have the kernel unpacked below `build/cache`, fetching it if it is not there."""
    key = ensure(
        "kernel",
        [package, apt.release(), Path(__file__)],
        [DIRECTORY / name for name in ("vmlinux", "bzImage", "modules", "version")],
        lambda: _fetch(package),
    )
    return Kernel(key, DIRECTORY)


def _fetch(package: str) -> None:
    shutil.rmtree(DIRECTORY, ignore_errors=True)
    _, image = apt.candidate(package)
    version, _ = apt.candidate(image)
    deb = apt.download(image, DIRECTORY)
    unpacked = DIRECTORY / "unpacked"
    run(["dpkg-deb", "-x", deb, unpacked])
    [bzimage] = (unpacked / "boot").glob("vmlinuz-*")
    [modules] = unpacked.rglob("lib/modules/*/kernel")
    bzimage.rename(DIRECTORY / "bzImage")
    modules.rename(DIRECTORY / "modules")
    (DIRECTORY / "vmlinux").write_bytes(decompress(DIRECTORY / "bzImage"))
    (DIRECTORY / "version").write_text(f"{image} {version}")
    shutil.rmtree(unpacked)
    deb.unlink()


def decompress(bzimage: Path) -> bytes:
    """Take the ELF kernel out of a bzImage, as its boot header describes it.

    The fields are those of the kernel's Documentation/arch/x86/boot.rst.
    """
    data = bzimage.read_bytes()
    setup_sectors = data[0x1F1]
    offset, length = struct.unpack_from("<II", data, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    # The last four bytes are the unpacked size, added by the kernel's build for its decompressor.
    payload = data[start : start + length - 4]
    [size] = struct.unpack_from("<I", data, start + length - 4)
    if payload.startswith(b"\xfd7zXZ"):
        kernel = lzma.decompress(payload)
    elif payload.startswith(b"\x28\xb5\x2f\xfd"):
        kernel = _filtered(["zstd", "-dcq"], payload)
    elif payload.startswith(b"\x02\x21\x4c\x18"):
        kernel = _filtered(["lz4", "-dcq"], payload)
    else:
        raise ToolFailed(f"{bzimage} is compressed in a way that is not known here")
    if len(kernel) != size or not kernel.startswith(b"\x7fELF"):
        raise ToolFailed(f"{bzimage} does not unpack to an ELF kernel of {size} bytes")
    return kernel


def _filtered(argv: list[str], data: bytes) -> bytes:
    with tempfile.TemporaryFile() as packed, tempfile.TemporaryFile() as unpacked:
        packed.write(data)
        packed.seek(0)
        run(argv, stdin=packed, stdout=unpacked)
        unpacked.seek(0)
        return unpacked.read()
