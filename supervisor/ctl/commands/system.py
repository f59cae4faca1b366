"""version, ready, completion."""

from __future__ import annotations

import os
from enum import StrEnum
from importlib.metadata import version as distribution_version
from typing import Annotated

import typer

from supervisor.ctl import fields
from supervisor.ctl.client import Client
from supervisor.ctl.commands.listing import parse_how, write_record
from supervisor.ctl.commands.options import AsJson, Template
from supervisor.ctl.errors import EXIT_OK, EXIT_UNREACHABLE, CtlError
from supervisor.ctl.session import Session, session_of

PROGRAM = "hypeman-ctl"


class Shell(StrEnum):
    """The shells that completion is made for."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def version(context: typer.Context, as_json: AsJson = False, template: Template = None) -> None:
    """Write the versions of this program and of the daemon's API."""

    async def command(session: Session, client: Client) -> int:
        how = parse_how(fields.VERSIONS, as_json=as_json, template=template)
        versions: dict[str, str | None] = {"client": distribution_version("hypeman")}
        failure: CtlError | None = None
        try:
            versions["api"] = await client.api_version()
        except CtlError as exc:
            versions["api"] = None
            failure = exc

        def write() -> None:
            for name, value in versions.items():
                session.out.line(f"{name:<7} {value or 'unknown'}")

        write_record(session.out, how, versions, write)
        if failure is not None:
            session.out.note(f"{PROGRAM}: {failure.message}")
            return failure.exit_code
        return EXIT_OK

    session_of(context).run(command)


def ready(context: typer.Context, as_json: AsJson = False, template: Template = None) -> None:
    """Tell whether the daemon can start builds. Exit 0 if so, 3 if not."""

    async def command(session: Session, client: Client) -> int:
        how = parse_how(fields.READINESS, as_json=as_json, template=template)
        why_not = await client.readiness()
        record = {"ready": why_not is None, **({"why_not": why_not} if why_not else {})}
        text = "ready" if why_not is None else f"not ready: {why_not}"
        write_record(session.out, how, record, lambda: session.out.line(text))
        return EXIT_OK if why_not is None else EXIT_UNREACHABLE

    session_of(context).run(command)


def completion(
    context: typer.Context,
    shell: Annotated[Shell, typer.Argument(metavar="bash|zsh|fish", help="Your shell.")],
) -> None:
    """Write the completion script for a shell; source it. A script is all it writes: no JSON."""
    os.environ[f"_{PROGRAM.replace('-', '_').upper()}_COMPLETE"] = f"source_{shell}"
    context.find_root().command.main(args=[], prog_name=PROGRAM)
