"""retry: build again what has ended."""

from __future__ import annotations

import typer

from supervisor.ctl import fields
from supervisor.ctl.client import Client
from supervisor.ctl.commands.listing import parse_how
from supervisor.ctl.commands.options import (
    AsJson,
    BuildName,
    Detach,
    IdempotencyKey,
    ProgressKind,
    Quiet,
    Template,
)
from supervisor.ctl.commands.outcome import finish
from supervisor.ctl.session import Session, session_of
from supervisor.ctl.watch import Progress, open_view


def retry(
    context: typer.Context,
    build: BuildName,
    idempotency_key: IdempotencyKey = None,
    progress: ProgressKind = Progress.AUTO,
    detach: Detach = False,
    as_json: AsJson = False,
    template: Template = None,
    quiet: Quiet = False,
) -> None:
    """Build again what has ended: a new build of the same source and options.

    The daemon keeps the source, so nothing is sent. Follows the new build as `build` does, with the
    same output and exit code.
    """

    async def command(session: Session, client: Client) -> int | None:
        how = parse_how(fields.BUILD, as_json=as_json, template=template, quiet=quiet)
        shown = Progress.QUIET if quiet else progress
        view = None if detach else open_view(session, shown)
        info = await client.retry(await client.resolve(build), idempotency_key=idempotency_key)
        is_quiet = shown is Progress.QUIET
        if not (is_quiet or detach):
            session.out.note(f"build {info.id} is {info.status}")
        return await finish(session, client, info, how, view=view, is_quiet=is_quiet)

    session_of(context).run(command)
