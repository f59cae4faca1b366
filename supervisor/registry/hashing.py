"""Hashes of content that is on its way in."""

from __future__ import annotations

import hashlib
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
    with path.open("rb") as file:
        file.seek(start)
        left = stop - start
        while left > 0:
            piece = file.read(min(left, _READ_BYTES))
            if not piece:
                raise HostError("an upload's file is shorter than what was written to it")
            running.update(piece)
            left -= len(piece)
