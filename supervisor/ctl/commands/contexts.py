"""context list, use, add, rm: names for daemons."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from supervisor.ctl import fields
from supervisor.ctl.commands.listing import parse_how, write_record, write_records
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
from supervisor.ctl.model import Json
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
        records = list(_describe(read_contexts(find_file(os.environ))).values())
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
def use(
    context: typer.Context, name: Name, as_json: AsJson = False, template: Template = None
) -> None:
    """Talk to this daemon from now on; `local` is that of this host.

    With --json or --format the context is written as `context list` does.
    """
    session = session_of(context)

    def work() -> int:
        how = parse_how(fields.CONTEXT, as_json=as_json, template=template)
        path = find_file(os.environ)
        known = read_contexts(path)
        known.get(name)
        contexts = Contexts(None if name == LOCAL else name, known.targets)
        write_contexts(path, contexts)
        for variable in ("HYPEMAN_HOST", "HYPEMAN_SOCKET", "HYPEMAN_CONTEXT"):
            if os.environ.get(variable):
                session.out.note(f"{variable} is set, and wins over this")
        write_record(session.out, how, _describe(contexts)[name], _say_nothing)
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
    as_json: AsJson = False,
    template: Template = None,
) -> None:
    """Add a context, or replace one. The file is readable by you only.

    With --json or --format the context is written as `context list` does: without its token.
    """
    session = session_of(context)

    def work() -> int:
        how = parse_how(fields.CONTEXT, as_json=as_json, template=template)
        text = sys.stdin.read().strip() if token == "-" else token
        find_endpoint(host=host, token=text, environ={})  # complains about what cannot be one
        path = find_file(os.environ)
        known = read_contexts(path)
        targets = {**known.targets, check_name(name): Target(host, text)}
        contexts = Contexts(known.current, targets)
        write_contexts(path, contexts)
        write_record(session.out, how, _describe(contexts)[name], _say_nothing)
        return EXIT_OK

    session.finish(work)


@app.command("rm", epilog="Example: hypeman-ctl context rm prod")
def remove(
    context: typer.Context, name: Name, as_json: AsJson = False, template: Template = None
) -> None:
    """Forget a context. If it was the current one, that of this host is again.

    With --json or --format the context is written as it was, and {"removed": true} with it.
    """
    session = session_of(context)

    def work() -> int:
        how = parse_how(fields.REMOVED_CONTEXT, as_json=as_json, template=template)
        path = find_file(os.environ)
        known = read_contexts(path)
        if known.get(name) is None:
            raise UsageError(f"{LOCAL} is the daemon of this host: there is nothing to remove")
        targets = {other: target for other, target in known.targets.items() if other != name}
        write_contexts(path, Contexts(None if known.current == name else known.current, targets))
        write_record(session.out, how, {**_describe(known)[name], "removed": True}, _say_nothing)
        return EXIT_OK

    session.finish(work)


def _describe(known: Contexts) -> dict[str, Json]:
    """Return the contexts as they are shown, by name: that of this host first, without tokens."""
    chosen = os.environ.get("HYPEMAN_CONTEXT") or known.current or LOCAL
    here = str(find_endpoint(context=LOCAL, environ=os.environ))
    places = {LOCAL: here} | {name: target.host for name, target in known.targets.items()}
    return {
        name: {"name": name, "host": host, "current": name == chosen}
        for name, host in places.items()
    }


def _say_nothing() -> None:
    """What people are told by a command that did as it was told."""
