"""Read the headers of a tar archive as it streams by, and judge them. Nothing is ever unpacked.

Understood are ustar, pax (POSIX.1-2001) and GNU tar, as far as what an entry is called, how large
it is and where the next one begins depend on it. Everything is hostile: sizes are counted before
they are believed, extended headers are bounded before they are read, and names stay the bytes they
are.

The checks serve the caller (a wrong archive is a 400 before anything boots) and the budget of the
machine that will unpack it. They are not what protects the host: the host never unpacks.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import NoReturn

from supervisor.errors import InvalidSource, PayloadTooLarge
from supervisor.source.tree import Dockerfile, Tree

BLOCK = 512
MAX_EXTENDED_BYTES = 1 << 20
"""Of one extended header; real ones hold a path or some attributes."""
MAX_NAME_BYTES = 4095
MAX_COMPONENT_BYTES = 255
"""As Linux has them: a longer name could not be unpacked."""
MAX_DEPTH = 256
"""Directories inside each other. Real sources have some twenty; each costs time to check."""
_HEADERS_PER_ENTRY = 4
"""A long name, a long link name, a pax header and the entry itself."""

FREE_BYTES = 256 << 20
"""So much content is read however small the upload was; it takes a second."""

_REGULAR = frozenset((0, ord("0"), ord("7")))
_HARD_LINK, _SYMLINK, _DIRECTORY = b"125"
_DEVICES = {ord("3"): "a character device", ord("4"): "a block device", ord("6"): "a FIFO"}
_PAX, _PAX_GLOBAL, _SOLARIS_PAX = b"xgX"
_LONG_NAME, _LONG_LINK, _SPARSE, _LABEL = b"LKSV"
_ZEROS = bytes(BLOCK)


@dataclass(frozen=True, slots=True)
class ArchiveLimits:
    """How much an archive may hold."""

    max_entries: int
    max_unpacked_bytes: int
    max_ratio: int = 200
    """How many times the upload's size its content may have, beyond `FREE_BYTES`."""

    @property
    def max_stream_bytes(self) -> int:
        """How long the tar stream itself may be: contents, headers, padding and what is behind."""
        return (
            self.max_unpacked_bytes
            + (_HEADERS_PER_ENTRY + 4) * BLOCK * self.max_entries
            + (16 << 20)
        )


@dataclass(frozen=True, slots=True)
class ArchiveFacts:
    """What an archive holds."""

    entries: int
    unpacked_bytes: int
    """The sum of the files' sizes."""
    dockerfile: Dockerfile

    @property
    def has_dockerfile(self) -> bool:
        """Say whether BuildKit will find a Dockerfile, as far as the archive tells."""
        return self.dockerfile is Dockerfile.PRESENT


class _Part(Enum):
    """What the next bytes of the stream are."""

    HEADER = auto()
    EXTENDED = auto()
    SPARSE_MAP = auto()
    REST = auto()
    """Behind the end marker."""


@dataclass(slots=True)
class _Overrides:
    """What extended headers said about the entry that follows them."""

    path: bytes | None = None
    link: bytes | None = None
    size: int | None = None
    real_size: int = 0


class TarReader:
    """Judges one archive, fed in pieces of any size.

    Raises InvalidSource for what is no archive or may not be in one, PayloadTooLarge past a limit.
    """

    def __init__(self, limits: ArchiveLimits, dockerfile_path: str, upload_bytes: int) -> None:
        self._limits = limits
        self._max_stream = min(
            limits.max_stream_bytes, FREE_BYTES + limits.max_ratio * upload_bytes
        )
        self._upload_bytes = upload_bytes
        self._tree = Tree(dockerfile_path)
        self._part = _Part.HEADER
        self._pending = bytearray()
        self._need = BLOCK
        self._skip = 0
        self._next = _Overrides()
        self._extended_type = 0
        self._extended_size = 0
        self._sparse_size = 0
        self._headers = 0
        self._entries = 0
        self._unpacked = 0
        self._stream = 0
        self._consumed = 0

    def feed(self, data: bytes) -> None:
        """Take the next piece of the stream."""
        self._stream += len(data)
        if self._stream > self._max_stream:
            self._too_long()
        at = 0
        while at < len(data) and self._part is not _Part.REST:
            if self._skip:
                step = min(self._skip, len(data) - at)
                self._skip -= step
                at += step
                continue
            piece = data[at : at + self._need - len(self._pending)]
            at += len(piece)
            if self._pending or len(piece) < self._need:
                self._pending += piece
                if len(self._pending) < self._need:
                    return
                piece = bytes(self._pending)
                self._pending.clear()
            self._consumed = self._stream - len(data) + at
            self._on_part(piece)

    def finish(self) -> ArchiveFacts:
        """Return what the archive holds, once all of it was fed."""
        if self._stream == 0:
            raise InvalidSource("the source holds no tar archive: its gzip data is empty")
        # A missing end marker is forgiven, as tar(1) does; the end of an entry is not.
        if self._skip or self._pending or self._part in (_Part.EXTENDED, _Part.SPARSE_MAP):
            raise InvalidSource("the tar archive ends in the middle of an entry; was it cut off?")
        return ArchiveFacts(self._entries, self._unpacked, self._tree.find_dockerfile())

    def _on_part(self, data: bytes) -> None:
        match self._part:
            case _Part.HEADER:
                self._on_header(data)
            case _Part.EXTENDED:
                self._part, self._need = _Part.HEADER, BLOCK
                self._on_extended(data[: self._extended_size])
            case _Part.SPARSE_MAP:
                if data[504] == 0:
                    self._part = _Part.HEADER
                    self._skip_contents(self._sparse_size)
            case _Part.REST:
                raise AssertionError("nothing is read behind the end marker")

    def _on_header(self, header: bytes) -> None:
        if header == _ZEROS:
            self._part = _Part.REST
            return
        self._check_sum(header)
        self._headers += 1
        if self._headers > _HEADERS_PER_ENTRY * self._limits.max_entries:
            self._too_many()
        kind = header[156]
        size = _number(header[124:136])
        if kind in (_PAX, _PAX_GLOBAL, _SOLARIS_PAX, _LONG_NAME, _LONG_LINK):
            self._expect_extended(kind, size)
        elif kind == _LABEL:
            self._skip_contents(size)
        else:
            self._on_entry(header, kind, size)

    def _on_entry(self, header: bytes, kind: int, size: int) -> None:
        said, self._next = self._next, _Overrides()
        self._entries += 1
        if self._entries > self._limits.max_entries:
            self._too_many()
        path = said.path if said.path is not None else _ustar_path(header)
        if said.size is not None:
            size = said.size
        link = said.link if said.link is not None else _text(header[157:257])
        parts = _check_path(path, "an entry")
        self._check_place(parts, path)
        if kind in _REGULAR and path.endswith(b"/"):
            kind = _DIRECTORY  # as archives from before POSIX have them, and tar(1) reads them
            if size:
                raise InvalidSource(f"the directory {_show(path)} has contents of its own")
        if not parts and kind != _DIRECTORY:
            raise InvalidSource("an entry for the source itself is no directory")
        if kind in _REGULAR or kind == _SPARSE:
            real_size = max(
                size, said.real_size, _number(header[483:495]) if kind == _SPARSE else 0
            )
            self._count(real_size)
            self._tree.add_file(parts, is_empty=real_size == 0)
        elif kind == _HARD_LINK:
            target = _check_path(link, f"the hard link {_show(path)}")
            if not self._tree.may_link(target):
                raise InvalidSource(
                    f"the hard link {_show(path)} is to {_show(link)}, which is no file before it"
                )
            self._tree.add_link(parts, target)
        elif kind == _SYMLINK:
            if not 0 < len(link) <= MAX_NAME_BYTES or b"\0" in link:
                raise InvalidSource(
                    f"the symbolic link {_show(path)} has a target of {len(link)} bytes"
                )
            self._tree.add_symlink(parts, link)
        elif kind == _DIRECTORY:
            self._tree.add_directory(parts)
        elif kind in _DEVICES:
            raise InvalidSource(f"the source holds {_DEVICES[kind]}: {_show(path)}")
        else:
            raise InvalidSource(
                f"the source holds an entry of unknown type {_show(bytes([kind]))}: {_show(path)}"
            )
        if kind == _SPARSE and header[482]:
            self._part, self._sparse_size = _Part.SPARSE_MAP, size
        elif kind in _REGULAR or kind == _SPARSE:
            self._skip_contents(size)
        # Links and directories have no contents, whatever their size field says.

    def _expect_extended(self, kind: int, size: int) -> None:
        if not 0 < size <= MAX_EXTENDED_BYTES:
            raise InvalidSource(f"the source has an extended header of {size} bytes")
        self._part, self._extended_type, self._extended_size = _Part.EXTENDED, kind, size
        self._need = _padded(size)

    def _on_extended(self, data: bytes) -> None:
        if self._extended_type == _LONG_NAME:
            self._next.path = _text(data)
            return
        if self._extended_type == _LONG_LINK:
            self._next.link = _text(data)
            return
        is_global = self._extended_type == _PAX_GLOBAL
        for key, value in _pax_records(data):
            if is_global and key in _MEANINGFUL:
                raise InvalidSource(f"the source has a global header that sets {_show(key)}")
            match key:
                case b"path" | b"GNU.sparse.name":
                    self._next.path = value
                case b"linkpath":
                    self._next.link = value
                case b"size":
                    self._next.size = _decimal(value)
                case b"GNU.sparse.realsize" | b"GNU.sparse.size":
                    self._next.real_size = max(self._next.real_size, _decimal(value))

    def _count(self, size: int) -> None:
        self._unpacked += size
        if self._unpacked > self._limits.max_unpacked_bytes:
            self._too_large()

    def _check_place(self, parts: tuple[bytes, ...], path: bytes) -> None:
        """Refuse what tar(1) in the guest could not unpack there."""
        if len(parts) > MAX_DEPTH:
            raise InvalidSource(f"an entry lies more than {MAX_DEPTH} deep: {_show(path)}")
        if any(len(part) > MAX_COMPONENT_BYTES for part in parts):
            raise InvalidSource(
                f"an entry has a name of more than {MAX_COMPONENT_BYTES} bytes: {_show(path)}"
            )
        if self._tree.is_below_file(parts):
            raise InvalidSource(f"an entry lies below a regular file: {_show(path)}")
        if self._tree.is_below_stray(parts):
            raise InvalidSource(
                f"an entry lies below a symbolic link that leads out of the source: {_show(path)}"
            )

    def _skip_contents(self, size: int) -> None:
        self._skip = _padded(size)
        # What is announced is believed if it is too much: nothing of it is decompressed.
        if self._consumed + self._skip > self._max_stream:
            self._too_long()

    def _check_sum(self, header: bytes) -> None:
        # Counted with the field itself as spaces; some old tars summed signed bytes.
        field = _text(header[148:156]).strip()
        said = int(field, 8) if field and not field.translate(None, b"01234567") else -1
        rest = header[:148] + header[156:]
        plain = sum(rest) + 8 * 32
        if said != plain and said != plain - 256 * sum(byte > 127 for byte in rest):
            where = "is not a tar archive" if self._headers == 0 else "is damaged"
            raise InvalidSource(f"the source {where}: a header has the wrong checksum")

    def _too_long(self) -> NoReturn:
        if self._max_stream < self._limits.max_stream_bytes:
            raise PayloadTooLarge(
                f"the source unpacks to more than {self._limits.max_ratio} times its"
                f" {self._upload_bytes:,} bytes; if that is meant, pack long runs of zeros with"
                " tar --sparse, or compress less"
            )
        self._too_large()

    def _too_large(self) -> NoReturn:
        raise PayloadTooLarge(
            f"the source unpacks to more than {self._limits.max_unpacked_bytes:,} bytes"
        )

    def _too_many(self) -> NoReturn:
        raise PayloadTooLarge(f"the source has more than {self._limits.max_entries:,} entries")


_MEANINGFUL = frozenset(
    {b"path", b"linkpath", b"size", b"GNU.sparse.name", b"GNU.sparse.realsize", b"GNU.sparse.size"}
)


def _check_path(path: bytes, what: str) -> tuple[bytes, ...]:
    """Return the components of a path that stays inside the archive."""
    if not path or len(path) > MAX_NAME_BYTES:
        raise InvalidSource(f"the name of {what} has {len(path)} bytes")
    if b"\0" in path:
        raise InvalidSource(f"the name of {what} has a NUL byte: {_show(path)}")
    if path.startswith(b"/"):
        raise InvalidSource(f"{what} has an absolute path: {_show(path)}")
    parts = path.split(b"/")
    if b".." in parts:
        raise InvalidSource(f"{what} leads out of the source: {_show(path)}")
    return tuple(part for part in parts if part not in (b"", b"."))


def _ustar_path(header: bytes) -> bytes:
    name = _text(header[:100])
    # GNU tar ("ustar  ") uses the bytes of the prefix for something else.
    if header[257:263] == b"ustar\0" and (prefix := _text(header[345:500])):
        return prefix + b"/" + name
    return name


def _text(field: bytes) -> bytes:
    return field.split(b"\0", 1)[0]


def _number(field: bytes) -> int:
    """Read octal digits, or the base-256 form that large numbers have."""
    if field[0] & 0x80:
        number = int.from_bytes(bytes([field[0] & 0x7F]) + field[1:])
        if field[0] & 0x40:
            raise InvalidSource("the source has a header with a negative number")
        return number
    digits = _text(field).strip()
    if not digits:
        return 0
    if digits.translate(None, b"01234567"):
        raise InvalidSource(f"the source has a header with a malformed number: {_show(digits)}")
    return int(digits, 8)


def _decimal(value: bytes) -> int:
    if not value.isdigit() or len(value) > 19:
        raise InvalidSource(
            f"the source has an extended header with a malformed size: {_show(value)}"
        )
    return int(value)


def _pax_records(data: bytes) -> list[tuple[bytes, bytes]]:
    """Split `length key=value\\n` records; the length counts all of its record."""
    records = []
    at = 0
    while at < len(data) and data[at] != 0:
        space = data.find(b" ", at, at + 8)
        digits = data[at:space]
        if space < 0 or not digits.isdigit():
            raise InvalidSource("the source has a malformed extended header")
        end = at + int(digits)
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if end > len(data) or data[end - 1 : end] != b"\n" or not equals or end <= space:
            raise InvalidSource("the source has a malformed extended header")
        records.append((key, value))
        at = end
    return records


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _show(name: bytes) -> str:
    """Return a name for a message: on one line, in ASCII, not too long."""
    text = ascii(name[:200].decode(errors="backslashreplace"))
    return text + "..." if len(name) > 200 else text
