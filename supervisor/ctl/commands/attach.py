"""attach: follow a build again."""

from __future__ import annotations

import typer

from supervisor.ctl import fields
from supervisor.ctl.client import Client
from supervisor.ctl.commands.listing import parse_how
from supervisor.ctl.commands.options import AsJson, BuildName, ProgressKind, Quiet, Template
from supervisor.ctl.commands.outcome import finish
from supervisor.ctl.session import Session, session_of
from supervisor.ctl.watch import Progress, open_view


def attach(
    context: typer.Context,
    build: BuildName,
    progress: ProgressKind = Progress.AUTO,
    as_json: AsJson = False,
    template: Template = None,
    quiet: Quiet = False,
) -> None:
    """Follow a build that is running, with the same output and exit code as `build`."""

    async def command(session: Session, client: Client) -> int | None:
        how = parse_how(fields.BUILD, as_json=as_json, template=template, quiet=quiet)
        shown = Progress.QUIET if quiet else progress
        view = open_view(session, shown)
        info = await client.get_build(await client.resolve(build))
        is_quiet = shown is Progress.QUIET
        return await finish(session, client, info, how, view=view, is_quiet=is_quiet)

    session_of(context).run(command)
