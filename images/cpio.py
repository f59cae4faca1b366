"""Write an initramfs in the one format that the kernel reads: cpio, "new ASCII" variant.

Written here rather than by cpio(1) because the archive needs a device node, owners that the caller
does not have and no times at all, and because the format is twenty lines.
"""

import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """One file: permission and type bits, and its bytes (the target, for a symbolic link)."""

    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def directory(mode: int = 0o755) -> Entry:
    return Entry(stat.S_IFDIR | mode)


def file(data: bytes, mode: int = 0o644) -> Entry:
    return Entry(stat.S_IFREG | mode, data)


def link(target: str) -> Entry:
    return Entry(stat.S_IFLNK | 0o777, target.encode())


def character_device(major: int, minor: int, mode: int = 0o600) -> Entry:
    return Entry(stat.S_IFCHR | mode, device=(major, minor))


def pack(entries: Mapping[str, Entry]) -> bytes:
    """Pack entries by path (relative, parents included by the caller) in sorted order."""
    return b"".join(_pack(entries))


def _pack(entries: Mapping[str, Entry]) -> Iterator[bytes]:
    for number, (name, entry) in enumerate(sorted(entries.items()), start=1):
        yield _member(name, number, entry)
    yield _member("TRAILER!!!", 0, Entry(0))


def _member(name: str, number: int, entry: Entry) -> bytes:
    fields = (
        number,
        entry.mode,
        0,  # uid
        0,  # gid
        1,  # links
        0,  # mtime
        len(entry.data),
        0,  # device of the file, major and minor
        0,
        *entry.device,
        len(name) + 1,
        0,  # checksum, unused in this variant
    )
    header = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
    return _padded(header) + _padded(entry.data)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
