"""What a build is made from: a directory, an archive, or standard input, ready to be uploaded."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import trio

from supervisor.ctl.context import (
    DEFAULT_DOCKERFILE,
    Context,
    Survey,
    find_dockerfile,
    open_context,
    survey_context,
)
from supervisor.ctl.dockerignore import IGNORE_FILE
from supervisor.ctl.errors import UsageError
from supervisor.ctl.pack import Archive, Packed, new_compressor
from supervisor.ctl.upload import Source

STDIN = "-"
_PEEK_BYTES = 512
_READ_BYTES = 64 << 10
_MAX_DOCKERFILE_BYTES = 1 << 20
"""The API's limit."""
_GZIP_MAGIC = b"\x1f\x8b"
_TAR_MAGIC_AT = 257
_EMPTY_TAR = bytes(1024)


@dataclass(frozen=True, slots=True)
class DirectorySource:
    """A directory, looked through once."""

    context: Context
    survey: Survey
    dockerfile_path: str | None = None
    """Where the Dockerfile is inside, if that was said."""
    dockerfile: str | None = None
    """Its text, if it is not inside."""


@dataclass(frozen=True, slots=True)
class StreamSource:
    """An archive that is read as it is sent; `first` has been read already."""

    fd: int
    first: bytes
    is_compressed: bool
    dockerfile_path: str | None = None
    dockerfile: str | None = None


def plan_source_sync(where: str, dockerfile: str | None) -> DirectorySource | StreamSource:
    """Look at what the user wants built. Raises UsageError if it cannot be; nothing is sent.

    `where` is a directory, an archive or `-`; `dockerfile` what `--file` says.
    """
    if where == STDIN:
        if dockerfile == STDIN:
            raise UsageError("PATH and --file cannot both be standard input")
        return _plan_stdin(dockerfile)
    path = Path(where)
    if path.is_dir() or not path.exists():
        return _plan_directory(path, dockerfile)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as exc:
        raise UsageError(f"cannot read {path}: {exc.strerror}") from exc
    return _plan_stream(fd, _peek(fd, str(path)), dockerfile, str(path))


class OpenSource(Source, Protocol):
    """A source that is being made while it is read. Its reader closes it."""

    packed: Packed

    async def run(self) -> None:
        """Make it, as a task beside the reader, until the end or until it is closed."""

    def close(self) -> None:
        """Stop reading. Does nothing the second time."""


def open_source(planned: DirectorySource | StreamSource) -> OpenSource:
    """Return the archive to upload; the caller runs it beside reading it, and closes it."""
    if isinstance(planned, StreamSource):
        return _Stream(planned)
    return Archive(planned.context)


class _Stream:
    """An archive that exists, compressed on the way if it is not yet."""

    def __init__(self, source: StreamSource) -> None:
        self.packed = Packed()
        self._next = source.first
        self._fd = source.fd
        self._compressor = None if source.is_compressed else new_compressor()

    async def run(self) -> None:
        """Nothing is to be made."""

    async def receive(self) -> bytes:
        while self._next:
            piece, self._next = self._next, await self._read()
            self.packed.read_bytes += len(piece)
            data = self._compressor.compress(piece) if self._compressor else piece
            if data:
                return self._count(data)
        compressor, self._compressor = self._compressor, None
        return self._count(compressor.flush()) if compressor else b""

    def close(self) -> None:
        if self._fd > 0:
            os.close(self._fd)
        self._fd = -1

    async def _read(self) -> bytes:
        if self._fd < 0:
            return b""
        # Whatever feeds standard input may take its time; it is not waited for when cancelled.
        return await trio.to_thread.run_sync(os.read, self._fd, _READ_BYTES, abandon_on_cancel=True)

    def _count(self, data: bytes) -> bytes:
        self.packed.sent_bytes += len(data)
        return data


def _plan_directory(path: Path, dockerfile: str | None) -> DirectorySource:
    text = inside = None
    if dockerfile == STDIN:
        text = _decode(sys.stdin.buffer.read(_MAX_DOCKERFILE_BYTES + 1), "standard input")
        if not text.strip():
            raise UsageError("standard input is empty; send a Dockerfile through it")
    elif dockerfile is not None and path.is_dir():
        inside, text = _locate(path, dockerfile)
    context = open_context(
        path, dockerfile=None if text is not None else inside or DEFAULT_DOCKERFILE
    )
    if inside is None and text is None and find_dockerfile(path) is None:
        raise UsageError(
            f"{path} has no {DEFAULT_DOCKERFILE}", hint="name another file with --file"
        )
    return DirectorySource(context, survey_context(context), inside, text)


def _locate(root: Path, dockerfile: str) -> tuple[str | None, str | None]:
    """Return the Dockerfile's path inside `root`, or its text if it lies elsewhere."""
    file = Path(dockerfile)
    if not file.exists() and (root / file).exists():
        file = root / file
    if not file.is_file():
        raise UsageError(f"there is no file {dockerfile}")
    file = file.parent.resolve() / file.name
    try:
        return file.relative_to(root.resolve()).as_posix(), None
    except ValueError:
        pass
    if (ignore := file.with_name(f"{file.name}{IGNORE_FILE}")).exists():
        raise UsageError(
            f"{ignore} cannot be honoured: its Dockerfile lies outside of {root}",
            hint=f"move both into {root}, or use {IGNORE_FILE} there",
        )
    try:
        return None, _decode(file.read_bytes(), dockerfile)
    except OSError as exc:
        raise UsageError(f"cannot read {dockerfile}: {exc.strerror}") from exc


def _plan_stdin(dockerfile: str | None) -> StreamSource:
    fd = sys.stdin.fileno()
    if os.isatty(fd):
        raise UsageError("standard input is a terminal; send an archive or a Dockerfile through it")
    first = _peek(fd, "standard input")
    if _is_gzip(first) or _is_tar(first):
        return _plan_stream(fd, first, dockerfile, "standard input")
    if dockerfile is not None:
        raise UsageError("standard input is neither a gzip-compressed nor a plain tar archive")
    # As `docker build -`: a Dockerfile without anything beside it.
    text = first + sys.stdin.buffer.read(_MAX_DOCKERFILE_BYTES + 1 - len(first))
    if not text.strip():
        raise UsageError("standard input is empty; send an archive or a Dockerfile through it")
    return StreamSource(-1, _EMPTY_TAR, False, dockerfile=_decode(text, "standard input"))


def _peek(fd: int, name: str) -> bytes:
    """Return the beginning, as much as tells what it is: a pipe may hand it out in pieces."""
    first = b""
    try:
        while len(first) < _PEEK_BYTES and (data := os.read(fd, _PEEK_BYTES - len(first))):
            first += data
    except OSError as exc:
        raise UsageError(f"cannot read {name}: {exc.strerror}") from exc
    return first


def _plan_stream(fd: int, first: bytes, dockerfile: str | None, name: str) -> StreamSource:
    if not (_is_gzip(first) or _is_tar(first)):
        os.close(fd)
        raise UsageError(
            f"{name} is neither a directory nor a gzip-compressed or plain tar archive"
        )
    return StreamSource(fd, first, _is_gzip(first), dockerfile_path=dockerfile)


def _is_gzip(first: bytes) -> bool:
    return first.startswith(_GZIP_MAGIC)


def _is_tar(first: bytes) -> bool:
    return first[_TAR_MAGIC_AT : _TAR_MAGIC_AT + 5] == b"ustar"


def _decode(data: bytes, name: str) -> str:
    if len(data) > _MAX_DOCKERFILE_BYTES:
        raise UsageError(
            f"{name} is too large for a Dockerfile: over {_MAX_DOCKERFILE_BYTES} bytes"
        )
    try:
        return data.decode()
    except UnicodeDecodeError as exc:
        raise UsageError(f"{name} is not a Dockerfile: it is not UTF-8 text") from exc
