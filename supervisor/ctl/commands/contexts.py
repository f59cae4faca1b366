"""context list, use, add, rm: names for daemons."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from supervisor.ctl import fields
from supervisor.ctl.commands.listing import parse_how, write_records
from supervisor.ctl.commands.options import AsJson, Template
from supervisor.ctl.connection import find_endpoint
from supervisor.ctl.contexts import (
    LOCAL,
    Contexts,
    Target,
    check_name,
    find_file,
    read_contexts,
    write_contexts,
)
from supervisor.ctl.errors import EXIT_OK, UsageError
from supervisor.ctl.session import session_of

app = typer.Typer(help="Name daemons, and choose one.", no_args_is_help=True, rich_markup_mode=None)
Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the context.")]


@app.command("list", epilog="Example: hypeman-ctl context list --format '{name} {host}'")
def list_contexts(
    context: typer.Context,
    as_json: AsJson = False,
    template: Template = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Write names only.")] = False,
) -> None:
    """List the contexts. Tokens are not shown."""
    session = session_of(context)

    def work() -> int:
        how = parse_how(fields.CONTEXT, as_json=as_json, template=template, quiet=quiet)
        known = read_contexts(find_file(os.environ))
        chosen = os.environ.get("HYPEMAN_CONTEXT") or known.current or LOCAL
        here = str(find_endpoint(context=LOCAL, environ=os.environ))
        places = {LOCAL: here} | {name: target.host for name, target in known.targets.items()}
        records = [
            {"name": name, "host": host, "current": name == chosen} for name, host in places.items()
        ]
        write_records(
            session.out,
            how,
            records,
            ["", "NAME", "HOST"],
            lambda each: ["*" if each["current"] else "", each["name"], each["host"]],
            lambda each: str(each["name"]),
        )
        return EXIT_OK

    session.finish(work)


@app.command(epilog="Example: hypeman-ctl context use prod")
def use(context: typer.Context, name: Name) -> None:
    """Talk to this daemon from now on; `local` is that of this host."""
    session = session_of(context)

    def work() -> int:
        path = find_file(os.environ)
        known = read_contexts(path)
        known.get(name)
        write_contexts(path, Contexts(None if name == LOCAL else name, known.targets))
        for variable in ("HYPEMAN_HOST", "HYPEMAN_SOCKET", "HYPEMAN_CONTEXT"):
            if os.environ.get(variable):
                session.out.note(f"{variable} is set, and wins over this")
        return EXIT_OK

    session.finish(work)


@app.command(
    epilog="Example: hypeman-ctl context add prod --host https://b.example.org --token - <token"
)
def add(
    context: typer.Context,
    name: Name,
    host: Annotated[
        str, typer.Option("--host", metavar="URL", help="Where it is; unix:///path is a socket.")
    ],
    token: Annotated[
        str,
        typer.Option(
            "--token", metavar="TOKEN", help="The API token; - reads it from standard input."
        ),
    ] = "",
) -> None:
    """Add a context, or replace one. The file is readable by you only."""
    session = session_of(context)

    def work() -> int:
        text = sys.stdin.read().strip() if token == "-" else token
        find_endpoint(host=host, token=text, environ={})  # complains about what cannot be one
        path = find_file(os.environ)
        known = read_contexts(path)
        targets = {**known.targets, check_name(name): Target(host, text)}
        write_contexts(path, Contexts(known.current, targets))
        return EXIT_OK

    session.finish(work)


@app.command("rm", epilog="Example: hypeman-ctl context rm prod")
def remove(context: typer.Context, name: Name) -> None:
    """Forget a context. If it was the current one, that of this host is again."""
    session = session_of(context)

    def work() -> int:
        path = find_file(os.environ)
        known = read_contexts(path)
        if known.get(name) is None:
            raise UsageError(f"{LOCAL} is the daemon of this host: there is nothing to remove")
        targets = {other: target for other, target in known.targets.items() if other != name}
        write_contexts(path, Contexts(None if known.current == name else known.current, targets))
        return EXIT_OK

    session.finish(work)
