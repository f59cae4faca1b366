"""top: what the daemon is doing, as it changes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated

import trio
import typer
from rich.cells import cell_len
from rich.console import Console
from rich.live import Live
from rich.text import Text

from supervisor.ctl import fields
from supervisor.ctl.client import Client
from supervisor.ctl.commands.listing import parse_how
from supervisor.ctl.commands.options import AsJson
from supervisor.ctl.commands.options import Template as TemplateText
from supervisor.ctl.commands.queue import (
    MACHINE_COLUMNS,
    QUEUE_COLUMNS,
    machine_row,
    queue_row,
    queued_builds,
)
from supervisor.ctl.errors import EXIT_OK, DaemonUnreachable
from supervisor.ctl.model import Json
from supervisor.ctl.output import align, colours_wanted
from supervisor.ctl.session import Session, session_of
from supervisor.ctl.template import Template
from supervisor.ctl.terminal import clean_line, format_bytes

_LEAST_SECONDS = 0.1


def top(
    context: typer.Context,
    interval: Annotated[
        float,
        typer.Option(
            "--interval", "-i", metavar="SECONDS", min=_LEAST_SECONDS, help="Seconds between looks."
        ),
    ] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Look once, and leave.")] = False,
    as_json: AsJson = False,
    template: TemplateText = None,
) -> None:
    """Show builds, machines and the host's load, again and again. For administrators.

    Ctrl-C ends it. Elsewhere than on a terminal it looks once. With --json or --format each look is
    a line, {"system": …, "queue": …, "machines": […]}, wherever it goes; with --once it is one.
    """

    async def command(session: Session, client: Client) -> int:
        how = parse_how(fields.TOP, as_json=as_json, template=template)
        if how.as_json or how.template is not None:
            line_of_all = Template("{}")  # of JSON also on a terminal, unlike what is shown once
            await _report(session, client, how.template or line_of_all, interval, once=once)
            return EXIT_OK
        if once or not session.out.data_is_terminal:
            for line in _draw(await _look(client)):
                session.out.line(line)
            return EXIT_OK
        await _watch(session, client, interval)
        return EXIT_OK

    session_of(context).run(command)


async def _report(
    session: Session, client: Client, template: Template, interval: float, *, once: bool
) -> None:
    """Write a line for each look until interrupted, also when the daemon was away meanwhile."""
    session.out.formatted(template, await _look(client))
    if once:
        return
    with (
        trio.CancelScope() as scope,
        session.on_interrupt(partial(scope.cancel, reason="interrupted by a signal")),
    ):
        while True:
            await trio.sleep(interval)
            try:
                looked = await _look(client)
            except DaemonUnreachable as exc:
                session.out.note(f"hypeman-ctl: {clean_line(exc.message, colours=False)}")
            else:
                session.out.formatted(template, looked)


async def _watch(session: Session, client: Client, interval: float) -> None:
    """Draw until interrupted, also while the daemon is away."""
    interrupted = trio.Event()
    console = Console(file=session.out.data, no_color=not colours_wanted(), highlight=False)
    with (
        session.on_interrupt(interrupted.set),
        Live(console=console, screen=True, auto_refresh=False) as live,
    ):
        lines = _draw(await _look(client))
        while not interrupted.is_set():
            live.update(_fit(lines, console), refresh=True)
            with trio.move_on_after(interval):
                await interrupted.wait()
            try:
                lines = _draw(await _look(client))
            except DaemonUnreachable as exc:
                lines = [clean_line(exc.message, colours=False), "", *lines[2:]]


async def _look(client: Client) -> Json:
    """Return what the daemon says of itself, its builds and its machines."""
    info, state = await client.system_info(), await client.queue()
    return {"system": info, "queue": state, "machines": await client.list_machines()}


def _draw(looked: Json) -> list[str]:
    """Return the picture as lines."""
    info, state, machines = looked["system"], looked["queue"], looked["machines"]
    host, builds = info.get("host") or {}, queued_builds(state)
    running, waiting = len(state.get("running", ())), len(state.get("waiting", ()))
    free, total = host.get("memory_available_bytes") or 0, host.get("memory_bytes") or 0
    ready = "ready" if info.get("ready") else f"not ready: {info.get('why_not_ready')}"
    return [
        clean_line(f"hypeman {info.get('version')}, {ready}", colours=False),
        f"builds: {running} of {state.get('capacity')} running, {waiting} waiting"
        f"   load: {host.get('load_average', 0):.2f} on {host.get('cpus')} processors",
        f"memory: {format_bytes(free)} of {format_bytes(total)} available"
        f"   disk: {format_bytes(host.get('disk_free_bytes') or 0)} free",
        "",
        *align(QUEUE_COLUMNS, [queue_row(build) for build in builds]),
        "",
        *align(MACHINE_COLUMNS, [machine_row(machine) for machine in machines]),
    ]


def _fit(lines: Sequence[str], console: Console) -> Text:
    """Return the lines as far as the screen has room."""
    shown = list(lines[: console.height])
    texts = [Text(line if cell_len(line) else " ", no_wrap=True) for line in shown]
    for text in texts:
        text.truncate(console.width)
    return Text("\n", no_wrap=True).join(texts)
