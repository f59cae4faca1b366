"""Byte code for the guest's Python, made when the image is: its first start must not compile.

The files are of the "unchecked" kind: no time stamp, so that images are reproducible, and no look
at the source when they are loaded. Made by the distribution's own Python, because the format
belongs to the minor version, which the guest has too.
"""

from pathlib import Path

from images.tool import ToolFailed, run

PYTHON = "/usr/bin/python3"


def compile_below(root: Path, version: str) -> None:
    """Compile every module below `root`, which stands for the guest's `/`."""
    ours = run([PYTHON, "-c", "import platform; print(platform.python_version())"]).strip()
    if ours.rpartition(".")[0] != version:
        raise ToolFailed(f"{PYTHON} is {ours}, but the guest has Python {version}")
    run(
        [
            PYTHON, "-m", "compileall", "-q", "-f",
            "--invalidation-mode", "unchecked-hash",
            # What tracebacks show: the path in the guest.
            "-s", root, "-p", "/",
            root,
        ],
        env={"PYTHONHASHSEED": "0"},
    )  # fmt: skip
