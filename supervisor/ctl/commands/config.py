"""config check: the settings in effect."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from supervisor.ctl import fields
from supervisor.ctl.client import Client
from supervisor.ctl.commands.listing import How, parse_how, write_records
from supervisor.ctl.commands.options import AsJson, Template
from supervisor.ctl.errors import EXIT_OK, UsageError
from supervisor.ctl.model import Json
from supervisor.ctl.session import Session, session_of
from supervisor.errors import ConfigError

app = typer.Typer(help="Look at the configuration.", no_args_is_help=True, rich_markup_mode=None)


@app.command(epilog="Example: hypeman-ctl config check --local --config /etc/hypeman.toml")
def check(
    context: typer.Context,
    local: Annotated[
        bool,
        typer.Option("--local", help="Those that a daemon started from here would have instead."),
    ] = False,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", envvar="HYPEMAN_CONFIG", metavar="FILE", help="With --local: its TOML file."
        ),
    ] = None,
    as_json: AsJson = False,
    template: Template = None,
) -> None:
    """Show the settings that the daemon runs with, secrets hidden. For administrators.

    With --local the environment and the file are read here, no daemon is asked, and what cannot be
    used is said: exit 2.
    """
    session = session_of(context)

    def write(how: How, settings: list[Json]) -> None:
        write_records(session.out, how, settings, ["SETTING", "VALUE", ""], _row)

    def work() -> int:
        # Takes as long to import as all the rest, and nothing else needs it.
        from supervisor.config import effective_values, load_keys, load_settings

        how = parse_how(fields.SETTING, as_json=as_json, template=template)
        try:
            settings = load_settings(config)
            load_keys(settings)
        except ConfigError as exc:
            raise UsageError(exc.message) from exc
        shown = [
            {"name": value.name, "value": value.shown, "is_default": value.is_default}
            for value in effective_values(settings)
        ]
        write(how, [{k: v for k, v in each.items() if v is not None} for each in shown])
        return EXIT_OK

    async def command(_: Session, client: Client) -> None:
        how = parse_how(fields.SETTING, as_json=as_json, template=template)
        write(how, list(await client.system_config()))

    if local:
        session.finish(work)
    else:
        session.run(command)


def _row(setting: Json) -> list[str]:
    value = setting.get("value")
    shown = "" if value is None else str(value)
    return [str(setting.get("name")), shown, "" if setting.get("is_default") else "changed"]
