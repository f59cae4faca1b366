"""The build context with which images/generic/Dockerfile builds where there is no network.

It is the part of the repository that the Dockerfile copies. What its stage `compiled` would have
fetched and compiled is in the base that goes with it, `base/hypeman`: compiled on the host, and
packed there once, not by every machine that builds from it.
"""

import shutil
from pathlib import Path

from images.paths import AGENT, BUILD, IMAGES, REPO
from images.stamp import ensure

CONTEXT = BUILD / "generic-context"
COPIED = [AGENT, IMAGES / "builder" / "files", IMAGES / "generic" / "Dockerfile"]


def prepare() -> Path:
    """Have the context below `build/`, with its Dockerfile at the top."""
    ensure("generic-context", [*COPIED, Path(__file__)], [CONTEXT], _make)
    return CONTEXT


def _make() -> None:
    shutil.rmtree(CONTEXT, ignore_errors=True)
    CONTEXT.mkdir()
    for source in COPIED:
        target = CONTEXT / source.relative_to(REPO)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source, CONTEXT / source.name)
