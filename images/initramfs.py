"""The initramfs: a static busybox, the few modules that the root disk needs, and `init`.

It is stored uncompressed: three megabytes are read faster than anything unpacks under emulation.
"""

import lzma
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from images import cpio, files
from images.busybox import Busybox
from images.kernel import Kernel
from images.paths import CACHE, IMAGES
from images.stamp import ensure
from images.tool import ToolFailed

OUTPUT = CACHE / "initramfs"
INIT = IMAGES / "builder" / "init"
DIRECTORIES = ["bin", "dev", "lower", "modules", "proc", "root", "rw", "sys"]


Stages = Mapping[str, Sequence[str]]
"""Modules by the list that init loads them from; what an earlier list has is loaded by then."""


def prepare(kernel: Kernel, busybox: Busybox, modules: Stages) -> tuple[str, Path]:
    """Have the initramfs packed; return the digest of its inputs and its path."""
    key = ensure(
        "initramfs",
        [kernel.key, busybox.key, str(modules), INIT, Path(__file__), Path(cpio.__file__)],
        [OUTPUT],
        lambda: files.write(OUTPUT, pack(kernel, modules, busybox.program)),
    )
    return key, OUTPUT


def pack(kernel: Kernel, modules: Stages, shell: Path) -> bytes:
    """Compose the archive from its parts; the same parts give the same bytes."""
    entries = {name: cpio.directory() for name in DIRECTORIES}
    # The kernel opens the console before anything is mounted; without this node it warns.
    entries["dev/console"] = cpio.character_device(5, 1)
    entries["init"] = cpio.file(INIT.read_bytes(), 0o755)
    entries["bin/busybox"] = cpio.file(shell.read_bytes(), 0o755)
    for applet in ("sh", "cat", "insmod", "ip", "mkdir", "mount", "switch_root"):
        entries[f"bin/{applet}"] = cpio.link("busybox")
    loaded: set[Path] = set()
    for stage, names in modules.items():
        paths = [path for path in in_load_order(kernel.modules, names) if path not in loaded]
        loaded.update(paths)
        listing = "".join(f"{module_name(path)}\n" for path in paths)
        entries[f"modules/{stage}"] = cpio.file(listing.encode())
    for path in loaded:
        entries[f"modules/{module_name(path)}"] = cpio.file(module_bytes(path))
    return cpio.pack(entries)


def in_load_order(tree: Path, wanted: Sequence[str]) -> Iterator[Path]:
    """The files of the wanted modules, each after those that it names in its own `.modinfo`.

    Names that have no file are built into the kernel. depmod's index is not used, because a
    package that was only unpacked has none.
    """
    found = {module_name(path): path for path in tree.rglob("*.ko*")}
    seen: set[str] = set()

    def visit(name: str) -> Iterator[Path]:
        if name in seen or name not in found:
            return
        seen.add(name)
        for field in re.findall(
            rb"\0(?:depends=|softdep=pre: )([^\0]*)", module_bytes(found[name])
        ):
            for needed in re.split(r"[ ,]+", field.decode()):
                yield from visit(needed.replace("-", "_"))
        yield found[name]

    for name in wanted:
        if name not in found:
            raise ToolFailed(f"the kernel has no module {name}")
        yield from visit(name)


def module_name(path: Path) -> str:
    return path.name.partition(".ko")[0].replace("-", "_")


def module_bytes(path: Path) -> bytes:
    """The module unpacked: newer releases ship them compressed, which costs time at every boot."""
    data = path.read_bytes()
    return lzma.decompress(data) if path.suffix == ".xz" else data
