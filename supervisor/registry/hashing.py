"""Hashes of content that is on its way in."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from supervisor.errors import HostError
from supervisor.model.oci import Algorithm
from supervisor.registry.writing import Piece

_READ_BYTES = 1 << 20


class Hash(Protocol):
    """A hash in progress."""

    def update(self, data: Piece, /) -> None:
        """Take more content."""
        ...

    def hexdigest(self) -> str:
        """Return the hash of the content so far."""
        ...


def new_hash(algorithm: Algorithm) -> Hash:
    """Return a hash of nothing yet."""
    make: Callable[[], Hash] = {
        Algorithm.SHA256: hashlib.sha256,
        Algorithm.SHA512: hashlib.sha512,
    }[algorithm]
    return make()


def hash_sync(pieces: Sequence[Piece], running: Hash) -> None:
    """Hash `pieces`."""
    for piece in pieces:
        running.update(piece)


def hash_file_sync(path: Path, start: int, stop: int, running: Hash) -> None:
    """Hash a part of a file. Raises HostError if it is not all there."""
    with path.open("rb", buffering=0) as file:
        try:
            hash_descriptor_sync(file.fileno(), start, stop, running)
        except EOFError as exc:
            raise HostError("an upload's file is shorter than what was written to it") from exc


def hash_descriptor_sync(fd: int, start: int, stop: int, running: Hash) -> None:
    """Hash a part of an open file. Raises EOFError if it is not all there; and OSError."""
    buffer = bytearray(min(stop - start, _READ_BYTES))
    with memoryview(buffer) as view:
        while start < stop:
            length = os.preadv(fd, [view[: stop - start]], start)
            if not length:
                raise EOFError
            running.update(view[:length])
            start += length
