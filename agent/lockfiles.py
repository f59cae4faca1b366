"""The lock files of a source tree, by path and hash: what an image was made from, for provenance.

Only regular files count; nothing is followed. What is looked at and what is reported is bounded, so
that no tree can make this slow or the report too long for a frame.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections import deque
from collections.abc import Callable

NAMES = frozenset(
    {
        "package-lock.json",
        "yarn.lock",
        "pnpm-lock.yaml",
        "requirements.txt",
        "poetry.lock",
        "Pipfile.lock",
        "uv.lock",
        "go.sum",
        "Cargo.lock",
    }
)
SKIPPED_DIRECTORIES = frozenset({".git", "node_modules"})
MAX_FILES = 1_000
MAX_PATH_BYTES = 128 << 10
"""Of all reported paths together: the result has to fit one frame."""
MAX_FILE_BYTES = 64 << 20
MAX_ENTRIES = 200_000
"""Directory entries looked at. The nearest to the root come first."""
_CHUNK_BYTES = 1 << 20


def hash_lockfiles_sync(root: str, check: Callable[[], None] = lambda: None) -> dict[str, str]:
    """Return the SHA-256 (hexadecimal) of each lock file below `root`, by its path relative to it.

    Breadth first and in order of names, so that the same tree gives the same answer where a bound
    is hit. Blocks: belongs in a thread. `check` is called often and may raise to end it.
    """
    found: dict[str, str] = {}
    directories = deque([""])
    looked_at = path_bytes = 0
    while directories and len(found) < MAX_FILES:
        check()
        directory = directories.popleft()
        try:
            with os.scandir(os.path.join(root, directory)) as entries:  # noqa: PTH118 - many
                names = sorted((entry.name, _kind(entry)) for entry in entries)
        except OSError:
            continue
        looked_at += len(names)
        for name, kind in names:
            path = f"{directory}/{name}" if directory else name
            if kind == "directory" and name not in SKIPPED_DIRECTORIES:
                directories.append(path)
            elif kind == "file" and name in NAMES and len(found) < MAX_FILES:
                digest = _hash(os.path.join(root, path), check) if _is_text(path) else None  # noqa: PTH118 - many
                path_bytes += len(os.fsencode(path))
                if digest is not None and path_bytes <= MAX_PATH_BYTES:
                    found[path] = digest
        if looked_at > MAX_ENTRIES:
            break
    return found


def _kind(entry: os.DirEntry[str]) -> str:
    if entry.is_dir(follow_symlinks=False):
        return "directory"
    return "file" if entry.is_file(follow_symlinks=False) else "other"


def _is_text(path: str) -> bool:
    """Say whether a path can be reported: names need not be UTF-8."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _hash(path: str, check: Callable[[], None]) -> str | None:
    try:
        # Not blocking and not following: the tree is a stranger's, and may change under us.
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        about = os.fstat(fd)
        if not stat.S_ISREG(about.st_mode) or about.st_size > MAX_FILE_BYTES:
            return None
        digest = hashlib.sha256()
        while chunk := os.read(fd, _CHUNK_BYTES):
            check()
            digest.update(chunk)
        return digest.hexdigest()
    except OSError:
        return None
    finally:
        os.close(fd)
