"""queue, machines: what the daemon is doing."""

from __future__ import annotations

import typer

from supervisor.ctl import fields
from supervisor.ctl.client import Client
from supervisor.ctl.commands.listing import parse_how, write_records
from supervisor.ctl.commands.options import AsJson, Quiet, Template
from supervisor.ctl.model import Json
from supervisor.ctl.session import Session, session_of
from supervisor.ctl.terminal import format_age, format_bytes

QUEUE_COLUMNS = ["#", "BUILD", "STATUS", "TENANT", "SINCE"]
MACHINE_COLUMNS = ["MACHINE", "STATE", "BUILD", "TENANT", "CPUS", "MEMORY", "RSS", "PID", "SINCE"]


def queue(
    context: typer.Context, as_json: AsJson = False, template: Template = None, quiet: Quiet = False
) -> None:
    """Show the builds that run, and those that wait in the order in which they would start."""

    async def command(session: Session, client: Client) -> None:
        how = parse_how(fields.BUILD, as_json=as_json, template=template, quiet=quiet)
        state = await client.queue()
        if how.as_json:
            session.out.json(state)
            return
        write_records(session.out, how, queued_builds(state), QUEUE_COLUMNS, queue_row)
        if state.get("draining"):
            session.out.note("the daemon is about to stop: nothing more is started")

    session_of(context).run(command)


def machines(
    context: typer.Context, as_json: AsJson = False, template: Template = None, quiet: Quiet = False
) -> None:
    """List the machines: those that run builds, and those that wait for one. For administrators."""

    async def command(session: Session, client: Client) -> None:
        how = parse_how(fields.MACHINE, as_json=as_json, template=template, quiet=quiet)
        found = await client.list_machines()
        write_records(session.out, how, found, MACHINE_COLUMNS, machine_row)

    session_of(context).run(command)


def queued_builds(state: Json) -> list[Json]:
    """Return running and waiting builds in one list."""
    return [*state.get("running", ()), *state.get("waiting", ())]


def queue_row(build: Json) -> list[str]:
    """Return a build's line in the table of the queue."""
    return [
        str(build.get("queue_position") or "-"),
        str(build.get("id")),
        str(build.get("status")),
        str(build.get("tenant")),
        format_age(build.get("started_at") or build.get("created_at")),
    ]


def machine_row(machine: Json) -> list[str]:
    """Return a machine's line in the table."""
    rss = machine.get("rss_bytes")
    return [
        str(machine.get("id")),
        str(machine.get("state")),
        str(machine.get("build") or "-"),
        str(machine.get("tenant") or "-"),
        str(machine.get("cpus")),
        f"{machine.get('memory_mb')} MiB",
        "-" if rss is None else format_bytes(rss),
        str(machine.get("pid") or "-"),
        format_age(machine.get("since")),
    ]
