"""images, image inspect, image rm, image prune: what the registry holds."""

from __future__ import annotations

import json
from functools import partial
from typing import Annotated, Any

import trio
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
from supervisor.ctl.errors import EXIT_OK, CtlError
from supervisor.ctl.model import Json
from supervisor.ctl.output import Output
from supervisor.ctl.session import Session, session_of
from supervisor.ctl.terminal import clean_line, format_age, format_bytes

app = typer.Typer(
    help="Look at images, and remove them.", no_args_is_help=True, rich_markup_mode=None
)

ImageName = Annotated[
    str,
    typer.Argument(
        metavar="IMAGE", help="REPOSITORY[:TAG] or REPOSITORY@DIGEST, as it is pulled or without."
    ),
]


def images(
    context: typer.Context,
    repository: Annotated[
        str | None, typer.Argument(metavar="REPOSITORY", help="Only images of this repository.")
    ] = None,
    as_json: AsJson = False,
    template: Template = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Write REPOSITORY@DIGEST only.")
    ] = False,
) -> None:
    """List images by name. Their sizes do not add up: images share content."""

    async def command(session: Session, client: Client) -> None:
        how = parse_how(fields.IMAGE, as_json=as_json, template=template, quiet=quiet)
        found = await client.list_images(repository=repository)
        columns = ["REPOSITORY", "TAGS", "DIGEST", "SIZE", "PUSHED"]
        write_records(session.out, how, found, columns, _row, _name)

    session_of(context).run(command)


for _alias in ("list", "ls"):
    app.command(_alias, hidden=True, help="The same as images.")(images)


@app.command(epilog="Example: hypeman-ctl image inspect --format '{config.architecture}' hello:1")
def inspect(
    context: typer.Context, image: ImageName, as_json: AsJson = False, template: Template = None
) -> None:
    """Show an image: its content, and what its configuration says."""

    async def command(session: Session, client: Client) -> None:
        how = parse_how(fields.IMAGE_DETAIL, as_json=as_json, template=template)
        found = await client.get_image(image)
        write_record(session.out, how, found, lambda: _write_image(session.out, found))

    session_of(context).run(command)


@app.command("rm", epilog="Example: hypeman-ctl image rm hello:1")
def remove(
    context: typer.Context,
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE...", help="REPOSITORY[:TAG] or REPOSITORY@DIGEST."),
    ],
    as_json: AsJson = False,
    template: Template = None,
) -> None:
    """Remove tags, and images with their last one; by digest, images with all tags.

    Each name is written once it is gone, with --json as {"image": …, "removed": true}. The room
    comes free with `system prune`, or within a day.
    """

    async def command(session: Session, client: Client) -> int:
        how = parse_how(fields.REMOVED_IMAGE, as_json=as_json, template=template)
        code = EXIT_OK
        for name in images:
            await trio.lowlevel.checkpoint()
            try:
                await client.remove_image(name)
            except CtlError as exc:
                session.out.error(exc, debug=session.debug)
                code = exc.exit_code
            else:
                record = {"image": name, "removed": True}
                write_record(session.out, how, record, partial(session.out.line, name))
        return code

    session_of(context).run(command)


@app.command(epilog="Example: hypeman-ctl image prune --dry-run")
def prune(
    context: typer.Context,
    older_than: OlderThan = "1h",
    dry_run: DryRun = False,
    force: Force = False,
    as_json: AsJson = False,
    template: Template = None,
) -> None:
    """Remove images that have no tag. An administrator's also those of other tenants."""

    async def command(session: Session, client: Client) -> int:
        how = parse_how(fields.PRUNED, as_json=as_json, template=template)
        wish: dict[str, Any] = {
            "older_than_seconds": parse_amount(older_than, SECONDS, "--older-than")
        }
        return await prune_with_consent(
            session, how, client.prune_images, wish, dry_run=dry_run, force=force
        )

    session_of(context).run(command)


def _row(image: Json) -> list[str]:
    tags = ", ".join(map(str, image.get("tags") or ())) or "-"
    return [
        str(image.get("repository")),
        tags,
        str(image.get("digest"))[:19],
        format_bytes(image.get("size_bytes") or 0),
        format_age(image.get("pushed_at")),
    ]


def _name(image: Json) -> str:
    return f"{image.get('repository')}@{image.get('digest')}"


def _write_image(out: Output, image: Json) -> None:
    config = image.get("config") or {}
    settings = config.get("config") or {}
    labels = settings.get("Labels") or {}
    facts = [
        ("image", image.get("image_ref")),
        ("repository", image.get("repository")),
        ("tags", ", ".join(image.get("tags") or ())),
        ("digest", image.get("digest")),
        ("media type", image.get("media_type")),
        ("size", format_bytes(image.get("size_bytes") or 0)),
        ("pushed", image.get("pushed_at")),
        ("created", config.get("created")),
        ("platform", "/".join(str(config[key]) for key in ("os", "architecture") if key in config)),
        ("user", settings.get("User")),
        ("directory", settings.get("WorkingDir")),
        ("entrypoint", settings.get("Entrypoint")),
        ("command", settings.get("Cmd")),
        ("ports", ", ".join(settings.get("ExposedPorts") or ())),
    ]
    for name, value in facts:
        if value not in (None, ""):
            shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            out.line(f"{name + ':':<13}{clean_line(shown, colours=False)}")
    for name, values in (
        ("environment", settings.get("Env") or ()),
        ("labels", [f"{key}={value}" for key, value in labels.items()]),
        ("layers", [_layer(each) for each in image["manifest"].get("layers") or ()]),
        ("platforms", [_platform(each) for each in image["manifest"].get("manifests") or ()]),
    ):
        if values:
            out.line(f"{name}:")
            for value in values:
                out.line(f"  {clean_line(str(value), colours=False)}")


def _layer(descriptor: Json) -> str:
    return f"{descriptor.get('digest')}  {format_bytes(descriptor.get('size') or 0)}"


def _platform(descriptor: Json) -> str:
    platform = descriptor.get("platform") or {}
    return f"{descriptor.get('digest')}  {platform.get('os')}/{platform.get('architecture')}"
