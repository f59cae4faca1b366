"""`hypeman-ctl`: the table of its commands and the options that all of them share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from loguru import logger

from supervisor.ctl.commands import (
    attach,
    build,
    builds,
    config,
    contexts,
    doctor,
    host,
    images,
    logs,
    queue,
    retry,
    system,
    tokens,
    top,
)
from supervisor.ctl.helptext import use_plain_help
from supervisor.ctl.session import Session

app = typer.Typer(
    help="Build container images in microVMs, and look after the builds.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 ok, 1 build failed, 2 wrong usage, 3 daemon unreachable, 130 cancelled.",
)


@app.callback()
def program(
    context: typer.Context,
    socket: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="The daemon's UNIX socket. [env: HYPEMAN_SOCKET, or hypeman.sock in RUNTIME_DIR]",
        ),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(
            "--host",
            metavar="URL",
            help="A daemon elsewhere, instead of the socket. [env: HYPEMAN_HOST]",
        ),
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(
            metavar="TOKEN", help="The API token that goes with --host. [env: HYPEMAN_TOKEN]"
        ),
    ] = None,
    named: Annotated[
        str | None,
        typer.Option(
            "--context", metavar="NAME", help="A daemon by its name. [env: HYPEMAN_CONTEXT]"
        ),
    ] = None,
    debug: Annotated[
        bool,
        typer.Option("--debug", help="Tell of each request, its id, and where errors come from."),
    ] = False,
) -> None:
    context.obj = Session(socket=socket, host=url, token=token, context=named, debug=debug)


_COMMANDS: tuple[tuple[str, Callable[..., Any], str], ...] = (
    ("build", build.build, "build -t app:1 --build-arg VERSION=3 ."),
    ("list", builds.list_builds, "list --status failed --format '{id} {error_code}'"),
    ("show", builds.show, "show --json 0mf3k2"),
    ("logs", logs.logs, "logs -f 0mf3k2"),
    ("attach", attach.attach, "attach 0mf3k2"),
    ("steps", builds.steps, "steps 0mf3k2"),
    ("evidence", builds.evidence, "evidence 0mf3k2"),
    ("wait", builds.wait, "wait $(hypeman-ctl build --detach .)"),
    ("cancel", builds.cancel, "cancel 0mf3k2"),
    ("retry", retry.retry, "retry --detach 0mf3k2"),
    ("rm", builds.remove, "rm $(hypeman-ctl list -q --status failed)"),
    ("queue", queue.queue, "queue"),
    ("machines", queue.machines, "machines --format '{id} {memory_mb}'"),
    ("top", top.top, "top --once --format '{system.host.load_average}'"),
    ("images", images.images, "images --format '{image_ref} {size_bytes}'"),
    ("doctor", doctor.doctor, "doctor"),
    ("ready", system.ready, "ready"),
    ("version", system.version, "version"),
    ("completion", system.completion, "completion bash > ~/.bash_completions/hypeman-ctl.sh"),
)
for _name, _function, _example in _COMMANDS:
    app.command(_name, epilog=f"Example: hypeman-ctl {_example}")(_function)
for _alias in ("ps", "ls"):
    app.command(_alias, hidden=True, help="The same as list.")(builds.list_builds)
for _group, _app in (
    ("image", images.app),
    ("system", host.app),
    ("config", config.app),
    ("context", contexts.app),
    ("token", tokens.app),
):
    app.add_typer(_app, name=_group)
use_plain_help(app)


def run() -> None:
    """Do what the command line says, and end the program."""
    logger.remove()  # what is shared with the daemon logs; here the user is told instead
    app(prog_name=system.PROGRAM)
