"""`python -m supervisor.demo [PATH] [--keep]`."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import trio
import typer

from supervisor.demo.demo import EXIT_INTERRUPTED, run_demo
from supervisor.runtime.logs import setup_logging

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "hello"
EXIT_USAGE = 2


def demo(
    path: Annotated[
        Path, typer.Argument(help="A directory with a Dockerfile; examples/hello if absent.")
    ] = EXAMPLE,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the daemon running until Ctrl-C.")
    ] = False,
) -> None:
    """Build a directory in a microVM and show what comes of it; then stop everything again.

    State goes to a temporary directory, or to DATA_DIR and RUNTIME_DIR if they are set. The exit
    code is that of the build.
    """
    if not path.is_dir():
        sys.stderr.write(f"demo: {path} is not a directory\n")
        raise typer.Exit(EXIT_USAGE)
    setup_logging("error")
    try:
        code = trio.run(partial(run_demo, os.environ, path.resolve(), keep=keep))
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    raise typer.Exit(code)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command()(demo)
    app(prog_name="demo")
