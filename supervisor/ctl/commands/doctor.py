"""doctor: whether everything that is needed is there, and what to do where it is not."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version as distribution_version
from pathlib import Path
from typing import Annotated

import trio
import typer

import supervisor
from supervisor.ctl import fields
from supervisor.ctl.client import Client
from supervisor.ctl.commands.listing import parse_how, write_records
from supervisor.ctl.commands.options import AsJson, Template
from supervisor.ctl.errors import EXIT_OK, EXIT_UNREACHABLE, ApiError, CtlError
from supervisor.ctl.model import Json
from supervisor.ctl.session import Session, session_of
from supervisor.errors import ToolFailed
from supervisor.runtime.process import run_tool

_HOST_SECONDS = 180.0
"""Looking takes two; the boots have their own limits."""
_MAX_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    name: str
    state: str
    """ok, missing, failed, not needed, note."""
    found: str
    what_to_do: str = ""

    @property
    def is_bad(self) -> bool:
        """Say whether builds need it and do not have it."""
        return self.state in ("missing", "failed")


def doctor(
    context: typer.Context,
    boot: Annotated[bool, typer.Option(help="Boot a machine, to see whether it comes up.")] = True,
    here: Annotated[
        bool | None,
        typer.Option(
            "--here/--no-here",
            help="Look at this host, too; if not said, where the daemon is asked by its socket.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
    template: Template = None,
) -> None:
    """Check this host and the daemon: what is there, in which version, and what to do.

    The host's part is done by the recipes beside the program; an installation without them is told
    so. Exit 3 if builds could not run.
    """

    async def command(session: Session, client: Client) -> int:
        how = parse_how(fields.CHECK, as_json=as_json, template=template)
        is_wanted = here if here is not None else client.endpoint.socket is not None
        checks = await check_host(boot=boot) if is_wanted else []
        checks += await check_daemon(client)
        records = [asdict(check) for check in checks]
        write_records(session.out, how, records, ["STATE", "WHAT", "FOUND"], _row)
        for check in checks:
            if check.what_to_do:
                session.out.note(f"{check.name}: {check.what_to_do}")
        return EXIT_UNREACHABLE if any(check.is_bad for check in checks) else EXIT_OK

    session_of(context).run(command)


def _row(check: Json) -> list[str]:
    return [check["state"], check["name"], check["found"]]


async def check_host(*, boot: bool) -> list[Check]:
    """Return what the recipes find on this host."""
    root = Path(supervisor.__file__).parents[1]
    if not (root / "images" / "host.py").is_file():
        text = "the recipes are not installed here; the daemon is asked alone"
        return [Check("host", "note", text)]
    output = bytearray()

    def collect(data: bytes) -> None:
        if len(output) < _MAX_BYTES:
            output.extend(data)

    argv = [sys.executable, "-m", "images.host", "--json", *(["--boot"] if boot else [])]
    try:
        with trio.fail_after(_HOST_SECONDS):
            await run_tool(argv, sink=collect, cwd=root)
        found = json.loads(output.splitlines()[-1])
        return [Check(**each) for each in found]
    except ToolFailed as exc:
        return [Check("host", "failed", exc.message, "see it all with: ./run doctor")]
    except (trio.TooSlowError, ValueError, LookupError, TypeError):
        return [Check("host", "failed", "no answer", "see it all with: ./run doctor")]


async def check_daemon(client: Client) -> Sequence[Check]:
    """Return what is to be said about the daemon."""
    try:
        why_not = await client.readiness()
    except CtlError as exc:
        return [Check("daemon", "failed", exc.message, exc.hint)]
    place = str(client.endpoint)
    if why_not is not None:
        return [Check("daemon", "failed", f"{place} is not ready: {why_not}", "see its log")]
    checks = [Check("daemon", "ok", f"{place} is ready")]
    try:
        info = await client.system_info()
    except ApiError:
        return checks  # for administrators only
    mine, its = distribution_version("hypeman"), str(info.get("version"))
    state = "ok" if mine == its else "note"
    checks.append(Check("version", state, f"daemon {its}, this program {mine}"))
    checks.append(Check("machines", "ok", f"{info.get('hypervisor')} {info.get('platform')}"))
    return checks
