"""The build context with which images/generic/Dockerfile builds where there is no network.

It is the part of the repository that the Dockerfile copies, and beside it, in `prepared/`, what
its stage `compiled` would have fetched and compiled. The matching base is `base/hypeman`.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from images import gotools
from images.paths import AGENT, BUILD, IMAGES, REPO
from images.rootfs import LIBRARY, PYTHON
from images.stamp import ensure

CONTEXT = BUILD / "generic-context"
COPIED = [AGENT, IMAGES / "builder" / "files", IMAGES / "generic" / "Dockerfile"]


def prepare(python_key: str, programs_key: str, programs: Mapping[str, Path]) -> Path:
    """Have the context below `build/`, with its Dockerfile at the top."""
    ensure(
        "generic-context",
        [python_key, programs_key, *COPIED, Path(__file__)],
        [CONTEXT],
        lambda: _make(programs),
    )
    return CONTEXT


def _make(programs: Mapping[str, Path]) -> None:
    shutil.rmtree(CONTEXT, ignore_errors=True)
    binaries, library = CONTEXT / "prepared" / "usr" / "bin", CONTEXT / "prepared" / LIBRARY
    binaries.mkdir(parents=True)
    for name, path in programs.items():
        os.link(path, binaries / name)
    shutil.copytree(PYTHON / LIBRARY, library)
    (library / "versions").write_text(gotools.render_versions())
    for source in COPIED:
        target = CONTEXT / source.relative_to(REPO)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source, CONTEXT / source.name)
