"""Run other programs, visibly: one door, as in the daemon, but synchronous.

Output is kept back and only its tail is shown, when the program fails: nobody reads the rest,
and progress is told by the step that runs it.
"""

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from images.paths import TOOLS

TAIL_LINES = 30


class ToolFailed(Exception):
    """A program ended with a non-zero status; the text holds what a person needs to go on."""


def run(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: IO[bytes] | None = None,
    stdout: IO[bytes] | None = None,
) -> str:
    """Run `argv` to its end and return what it printed, if that was not sent elsewhere.

    Raises ToolFailed, whose message has the command line and the last lines of standard error.
    """
    words = [os.fspath(word) for word in argv]
    try:
        done = subprocess.run(
            words,
            env={**os.environ, "PATH": search_path(), **(env or {})},
            cwd=cwd,
            stdin=stdin or subprocess.DEVNULL,
            stdout=stdout or subprocess.PIPE,
            stderr=subprocess.PIPE,
            check=False,
        )
    except FileNotFoundError as exc:
        raise ToolFailed(f"{words[0]} is not installed: ./run doctor says what is missing") from exc
    if done.returncode:
        output = ((done.stdout or b"") + done.stderr).decode(errors="replace").splitlines()
        raise ToolFailed(
            "\n".join(
                [*output[-TAIL_LINES:], f"exit status {done.returncode}: {shlex.join(words)}"]
            )
        )
    return (done.stdout or b"").decode(errors="replace")


def search_path() -> str:
    """PATH, and behind it what ordinary users lack: our own tools, and where mke2fs is."""
    return os.pathsep.join([*os.get_exec_path(), str(TOOLS / "bin"), "/usr/sbin", "/sbin"])


def say(text: str) -> None:
    """Tell the person at the terminal what happens; flushed, because steps take minutes."""
    print(text, file=sys.stderr, flush=True)
