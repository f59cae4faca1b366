"""logs: what a build has printed."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from supervisor.ctl import fields
from supervisor.ctl.client import Client
from supervisor.ctl.commands.listing import How, parse_how
from supervisor.ctl.commands.options import AsJson, BuildName, Template
from supervisor.ctl.errors import UsageError
from supervisor.ctl.model import LogLine
from supervisor.ctl.session import Session, session_of
from supervisor.ctl.terminal import clean_line, parse_time
from supervisor.runtime.clock import wall_clock

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def logs(
    context: typer.Context,
    build: BuildName,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the build has ended.")
    ] = False,
    timestamps: Annotated[
        bool, typer.Option("--timestamps", "-t", help="Begin each line with its time.")
    ] = False,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="Only lines since then: RFC 3339, or an age like 90s, 5m."
        ),
    ] = None,
    as_json: AsJson = False,
    template: Template = None,
) -> None:
    """Write the log of a build.

    Lines go to standard output as the build printed them; on a terminal, without what would control
    it. With --json or --format, each event of the build on a line of its own.
    """

    async def command(session: Session, client: Client) -> None:
        how = parse_how(fields.EVENT, as_json=as_json, template=template)
        build_id = await client.resolve(build)
        earliest = _parse_since(since) if since is not None else None
        await _write_events(
            session,
            client,
            build_id,
            follow=follow,
            timestamps=timestamps,
            earliest=earliest,
            how=how,
        )

    session_of(context).run(command)


async def _write_events(
    session: Session,
    client: Client,
    build_id: str,
    *,
    follow: bool,
    timestamps: bool,
    earliest: float | None,
    how: How,
) -> None:
    out = session.out
    is_inside_line = False

    def tell(problem: str) -> None:
        out.note(f"hypeman-ctl: {problem}; connecting again")

    async with client.open_events(build_id, follow=follow, on_interruption=tell) as events:
        async for event in events:
            at = parse_time(event.data.timestamp)
            if earliest is not None and at is not None and at < earliest:
                continue
            if how.as_json:
                out.line(_one_line(event.raw))
                continue
            if how.template is not None:
                out.formatted(how.template, event.raw)
                continue
            if not isinstance(event.data, LogLine):
                continue
            content = event.data.content
            text = clean_line(content) if out.data_is_terminal else content
            if timestamps and not is_inside_line:
                text = f"{event.data.timestamp} {text}"
            is_inside_line = event.data.is_partial
            out.write(text if is_inside_line else f"{text}\n")
            if follow:
                out.flush()
    out.flush()


def _one_line(raw: object) -> str:
    return json.dumps(raw, ensure_ascii=False, separators=(",", ":"))


def _parse_since(text: str) -> float:
    if text[:-1].isdecimal() and text[-1:] in _UNITS:
        return wall_clock() - int(text[:-1]) * _UNITS[text[-1]]
    at = parse_time(text)
    if at is None:
        raise UsageError(
            f"--since {text} is no time",
            hint="write 2026-03-01T12:00:00Z, or an age: 90s, 5m, 2h, 1d",
        )
    return at
