"""Skip what was made already: a step is as fresh as the hash of everything it was made from.

A stamp holds one digest over names, file contents and settings. Times are never compared: a
checkout or a copied tree must not rebuild anything, and a changed byte always must.
"""

import hashlib
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from images import files
from images.paths import REPO, STAMPS
from images.tool import say


def digest_of(inputs: Iterable[Path | str]) -> str:
    """Hash settings (text) and inputs (files, or directories with all they hold)."""
    total = hashlib.sha256()
    for item in inputs:
        for name, value in _expand(item):
            total.update(f"{name}\0{value}\0".encode())
    return total.hexdigest()


def ensure(
    name: str, inputs: Iterable[Path | str], outputs: Iterable[Path], make: Callable[[], None]
) -> str:
    """Run `make` unless its outputs exist and were made from these very inputs.

    Returns the digest of the inputs, which later steps take as theirs.
    """
    key = digest_of([name, *inputs])
    stamp = STAMPS / name.replace("/", "-")
    wanted = list(outputs)
    if stamp.is_file() and stamp.read_text() == key and all(path.exists() for path in wanted):
        return key
    say(f"  {name} …")
    started = time.monotonic()
    stamp.unlink(missing_ok=True)
    make()
    for path in wanted:
        if not path.exists():
            raise AssertionError(f"step {name} did not make {path}")
    stamp.parent.mkdir(parents=True, exist_ok=True)
    stamp.write_text(key)
    say(f"  {name}: done in {time.monotonic() - started:.1f} s")
    return key


def _expand(item: Path | str) -> Iterable[tuple[str, str]]:
    if isinstance(item, str):
        yield "text", item
    elif item.is_dir():
        for path in sorted(item.rglob("*")):
            # Byte code is derived, and written by whoever imports the tree while we look.
            if path.is_file() and "__pycache__" not in path.parts:
                yield str(path.relative_to(REPO)), files.digest(path)
    else:
        yield str(item.relative_to(REPO)), files.digest(item)
