"""system info, system df, system prune: the daemon's host."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from supervisor.ctl import fields
from supervisor.ctl.client import Client
from supervisor.ctl.commands.listing import parse_how, write_record, write_records
from supervisor.ctl.commands.options import (
    SECONDS,
    AsJson,
    DryRun,
    Force,
    OlderThan,
    Template,
    parse_amount,
)
from supervisor.ctl.commands.pruning import prune_with_consent
from supervisor.ctl.model import Json
from supervisor.ctl.output import Output
from supervisor.ctl.session import Session, session_of
from supervisor.ctl.terminal import clean_line, format_age, format_bytes

app = typer.Typer(
    help="Look after the daemon's host. For administrators.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command(epilog="Example: hypeman-ctl system info --format '{platform} {host.load_average}'")
def info(context: typer.Context, as_json: AsJson = False, template: Template = None) -> None:
    """Show versions, capacity and load of the daemon and its host."""

    async def command(session: Session, client: Client) -> None:
        how = parse_how(fields.SYSTEM, as_json=as_json, template=template)
        found = await client.system_info()
        write_record(session.out, how, found, lambda: _write_info(session.out, found))

    session_of(context).run(command)


@app.command(epilog="Example: hypeman-ctl system df")
def df(context: typer.Context, as_json: AsJson = False, template: Template = None) -> None:
    """Show what takes up room, and how much of it a prune would free now.

    Images and caches share content: the line `registry` is all of it, each blob once. What can be
    freed of it goes with `system prune`, of caches with `--caches`, of sources with `--sources`.
    """

    async def command(session: Session, client: Client) -> None:
        how = parse_how(fields.USAGE, as_json=as_json, template=template)
        columns = ["KIND", "COUNT", "SIZE", "RECLAIMABLE"]
        write_records(session.out, how, await client.disk_usage(), columns, _usage_row)

    session_of(context).run(command)


@app.command(epilog="Example: hypeman-ctl system prune --caches --older-than 7d")
def prune(
    context: typer.Context,
    caches: Annotated[bool, typer.Option("--caches", help="Whole build caches, too.")] = False,
    sources: Annotated[
        bool,
        typer.Option(
            "--sources", help="Sources of finished builds, too: no more retry of those then."
        ),
    ] = False,
    older_than: OlderThan = "1h",
    dry_run: DryRun = False,
    force: Force = False,
    as_json: AsJson = False,
    template: Template = None,
) -> None:
    """Remove what nothing can use: untagged images, content that no image needs, images of builds
    without a record. What running builds push to is left alone.

    Asks on a terminal; elsewhere --force or --dry-run is needed.
    """

    async def command(session: Session, client: Client) -> int:
        how = parse_how(fields.PRUNED, as_json=as_json, template=template)
        wish: dict[str, Any] = {
            "older_than_seconds": parse_amount(older_than, SECONDS, "--older-than"),
            "caches": caches,
            "sources": sources,
        }
        return await prune_with_consent(
            session, how, client.prune_system, wish, dry_run=dry_run, force=force
        )

    session_of(context).run(command)


def _usage_row(usage: Json) -> list[str]:
    return [
        str(usage.get("kind")),
        str(usage.get("count")),
        format_bytes(usage.get("size_bytes") or 0),
        format_bytes(usage.get("reclaimable_bytes") or 0),
    ]


def _write_info(out: Output, info: Json) -> None:
    builder, host = info.get("builder_image") or {}, info.get("host") or {}
    builds = info.get("builds") or {}
    versions = builder.get("components") or {}
    facts = [
        ("version", info.get("version")),
        ("up for", format_age(info.get("started_at")).removesuffix(" ago")),
        ("ready", "yes" if info.get("ready") else f"no: {info.get('why_not_ready')}"),
        ("builds", ", ".join(f"{count} {name}" for name, count in builds.items() if count)),
        ("machines", f"{info.get('hypervisor')} {info.get('platform')}"),
        ("builder image", f"{builder.get('reference')} {str(builder.get('digest'))[:19]}"),
        ("with", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("registry", info.get("registry_address")),
        ("data", info.get("data_dir")),
        ("disk", _share(host, "disk_free_bytes", "disk_bytes")),
        ("memory", _share(host, "memory_available_bytes", "memory_bytes")),
        ("load", f"{host.get('load_average', 0):.2f} on {host.get('cpus')} processors"),
    ]
    for name, value in facts:
        if value not in (None, ""):
            out.line(f"{name + ':':<15}{clean_line(str(value), colours=False)}")


def _share(host: Json, free: str, total: str) -> str:
    return f"{format_bytes(host.get(free) or 0)} of {format_bytes(host.get(total) or 0)} free"
