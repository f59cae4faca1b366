"""What lies where in an archive, as far as it must be known to judge it. Pure.

A name is kept as a 64-bit hash (keyed anew in each process), so a source costs some 60 bytes of
memory for each of its entries, however long they are called. Later entries replace earlier ones, as
tar(1) has it.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import NewType

Parts = tuple[bytes, ...]
_Name = NewType("_Name", int)

_ROOT = _Name(0)


class Dockerfile(Enum):
    """What the archive has where the Dockerfile should be."""

    PRESENT = auto()
    """A file, or a symbolic link of which only BuildKit can tell where it leads."""
    ABSENT = auto()
    EMPTY = auto()
    DIRECTORY = auto()
    DANGLING = auto()
    """A symbolic link to what is no file of the archive."""


class Tree:
    """The files, links and directories of one archive, in the order in which they come."""

    def __init__(self, dockerfile_path: str) -> None:
        wanted = tuple(part for part in dockerfile_path.encode().split(b"/") if part not in _DOTS)
        self._wanted = [wanted]
        if wanted and wanted[-1] == b"Dockerfile":
            # BuildKit's frontend falls back to the lower-case name.
            self._wanted.append((*wanted[:-1], b"dockerfile"))
        self._found: dict[Parts, Dockerfile] = {}
        self._targets: dict[Parts, bytes] = {}
        """Where the symbolic links on the way to the Dockerfile lead."""
        self._ways = {path[:length] for path in self._wanted for length in range(1, len(path) + 1)}
        self._files: set[_Name] = set()
        self._symlinks: set[_Name] = set()
        self._strays: set[_Name] = set()
        """Symbolic links that name an absolute path or `..`: tar(1) makes them last of all."""
        self._last: Parts = ()
        self._last_names: list[_Name] = []

    def is_below_file(self, parts: Parts) -> bool:
        """Say whether a directory that `parts` needs is a regular file."""
        return not self._files.isdisjoint(self._names(parts)[:-1])

    def is_below_stray(self, parts: Parts) -> bool:
        """Say whether the way to `parts` leads through a symbolic link that may lead anywhere."""
        return not self._strays.isdisjoint(self._names(parts)[:-1])

    def may_link(self, target: Parts) -> bool:
        """Say whether a hard link to `target` can be made: it is there, or behind a symbolic link.

        A link to a symbolic link itself is one to that.
        """
        names = self._names(target)
        return bool(names) and (names[-1] in self._files or not self._symlinks.isdisjoint(names))

    def add_file(self, parts: Parts, *, is_empty: bool) -> None:
        """Note a regular file."""
        self._replace(parts, Dockerfile.EMPTY if is_empty else Dockerfile.PRESENT)
        self._files.add(self._name(parts))

    def add_link(self, parts: Parts, target: Parts) -> None:
        """Note a hard link."""
        found = self._found.get(target, Dockerfile.PRESENT)
        self._replace(parts, found)
        self._files.add(self._name(parts))

    def add_symlink(self, parts: Parts, target: bytes) -> None:
        """Note a symbolic link."""
        self._replace(parts, Dockerfile.PRESENT)
        self._symlinks.add(self._name(parts))
        if target.startswith(b"/") or b".." in target.split(b"/"):
            self._strays.add(self._name(parts))
        if parts in self._ways:
            self._targets[parts] = target

    def add_directory(self, parts: Parts) -> None:
        """Note a directory."""
        self._replace(parts, Dockerfile.DIRECTORY)

    def find_dockerfile(self) -> Dockerfile:
        """Return what there is, once the whole archive is known; the best of all names for it."""
        found = [self._judge(path) for path in self._wanted]
        return next(
            (kind for kind in found if kind is Dockerfile.PRESENT),
            next((kind for kind in found if kind is not Dockerfile.ABSENT), Dockerfile.ABSENT),
        )

    def _judge(self, path: Parts) -> Dockerfile:
        for length in range(1, len(path) + 1):
            if (target := self._targets.get(path[:length])) is not None:
                end = _resolve(path[: length - 1], target)
                return self._judge_target((*end, *path[length:]))
        return self._found.get(path, Dockerfile.ABSENT)

    def _judge_target(self, path: Parts) -> Dockerfile:
        """Judge what one symbolic link leads to; a second one is BuildKit's to follow."""
        names = self._names(path)
        if names and (names[-1] in self._files or not self._symlinks.isdisjoint(names)):
            return Dockerfile.PRESENT
        return Dockerfile.DANGLING

    def _replace(self, parts: Parts, now: Dockerfile) -> None:
        name = self._name(parts)
        self._files.discard(name)
        self._symlinks.discard(name)
        self._strays.discard(name)
        if parts in self._ways:
            self._targets.pop(parts, None)
            self._found[parts] = now

    def _name(self, parts: Parts) -> _Name:
        return self._names(parts)[-1] if parts else _ROOT

    def _names(self, parts: Parts) -> list[_Name]:
        """Return the name of each directory on the way, and of the entry itself.

        Neighbours in an archive share most of their way, so most of it is known already.
        """
        shared = 0
        for ours, theirs in zip(parts, self._last, strict=False):
            if ours != theirs:
                break
            shared += 1
        names = self._last_names[:shared]
        for part in parts[shared:]:
            names.append(_Name(hash((names[-1] if names else _ROOT, part))))
        self._last, self._last_names = parts, names
        return names


_DOTS = (b"", b".")


def _resolve(directory: Parts, target: bytes) -> Parts:
    """Return where a link leads; the source is the root of everything, and `..` stops there."""
    way = [] if target.startswith(b"/") else list(directory)
    for part in target.split(b"/"):
        if part == b"..":
            del way[-1:]
        elif part not in _DOTS:
            way.append(part)
    return tuple(way)
