"""Writes docs/cli.md from the commands: `python -m supervisor.ctl.reference > docs/cli.md`.

A test compares the two, so the page cannot fall behind.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import typer

from supervisor.ctl.commands.system import PROGRAM
from supervisor.ctl.program import app

_WIDTH = 88
_HEAD = f"""\
# {PROGRAM}

*Made from the program by `python -m supervisor.ctl.reference`; do not edit.*

Data goes to standard output, progress and messages to standard error. Statuses are coloured on a
terminal unless `NO_COLOR` is set. `--json` writes what the API answers, or a record of each thing
that was done; `--format` fills the `{{fields}}` of that JSON into a text: `{{a.b}}` looks inside,
`{{}}` is all of it, `\\t` and `\\n` are tab and line end. A field that does not exist is a mistake
(2); one that has no value is empty. All commands know both but `completion`, which writes a script.
A build's id may be shortened to any unique beginning.

Which daemon is meant: `--socket`, `--host` or `--context`; else the variables below; else the
context that `context use` has chosen; else the socket of this host.

Ctrl-C on a build that is followed asks whether to detach or to cancel it. A second one cancels it,
and so does the first where there is no terminal to ask on. During an upload it ends the upload, and
there is no build.

| exit code | meaning |
|---|---|
| 0 | done; of a build: its image is there |
| 1 | the build failed |
| 2 | the command line, the directory or the request must change; or the output cannot be written |
| 3 | the daemon cannot be reached, or builds cannot start |
| 70 | a mistake of this program; `--debug` shows where |
| 130 | interrupted, or the build was cancelled |

| variable | meaning |
|---|---|
| `HYPEMAN_HOST` | URL of a daemon elsewhere, as `--host`; `unix:///path` is a socket |
| `HYPEMAN_TOKEN` | the API token for it, as `--token` |
| `HYPEMAN_SOCKET` | the socket of the local daemon, as `--socket` |
| `HYPEMAN_CONTEXT` | a context by its name, as `--context` |
| `XDG_CONFIG_HOME` | contexts are in its `hypeman/contexts.json`; `~/.config` if unset |
| `RUNTIME_DIR` | where the local daemon's `hypeman.sock` is, `/run/hypeman` if unset |
"""


def reference() -> str:
    """Return the page."""
    sections = [
        f"## {name}\n\n```text\n{text}\n```\n"
        for name, text in _help_texts(typer.main.get_command(app), None, PROGRAM)
    ]
    return "\n".join([_HEAD, *sections])


def _help_texts(command: Any, parent: Any, name: str) -> Iterator[tuple[str, str]]:
    """Yield the help of a command and of all below it; typer's own classes are not public."""
    context = typer.Context(
        command,
        parent=parent,
        info_name=name,
        terminal_width=_WIDTH,
        help_option_names=["-h", "--help"],
    )
    text = "\n".join(line.rstrip() for line in command.get_help(context).splitlines())
    yield context.command_path, text
    for below in getattr(command, "commands", {}).values():
        if not below.hidden:
            yield from _help_texts(below, context, below.name)


if __name__ == "__main__":
    sys.stdout.write(reference())
