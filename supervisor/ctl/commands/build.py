"""build: pack, upload, follow."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated

import trio
import typer

from supervisor.ctl import fields
from supervisor.ctl.client import Client
from supervisor.ctl.commands.builds import parse_pairs
from supervisor.ctl.commands.listing import parse_how
from supervisor.ctl.commands.options import (
    AsJson,
    Detach,
    IdempotencyKey,
    ProgressKind,
    Quiet,
    Template,
    parse_amount,
)
from supervisor.ctl.commands.outcome import finish
from supervisor.ctl.context import Survey, printable
from supervisor.ctl.errors import ApiError, CtlError, UsageError
from supervisor.ctl.model import BuildInfo
from supervisor.ctl.output import Output
from supervisor.ctl.pack import Packed
from supervisor.ctl.session import Session, session_of
from supervisor.ctl.source import DirectorySource, StreamSource, open_source, plan_source_sync
from supervisor.ctl.terminal import format_bytes
from supervisor.ctl.upload import BuildOptions
from supervisor.ctl.watch import Progress, open_view
from supervisor.model.build import NetworkMode

_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600}
_MEBIBYTES = {"": 1, "m": 1, "mb": 1, "g": 1024, "gb": 1024}
_PART = re.compile(r"the part `(\w+)`")
_OPTIONS = {
    "allowed_domains": "--allow-domain", "build_args": "--build-arg",
    "cache_scope": "--cache-scope", "cpus": "--cpus", "dockerfile": "--file",
    "dockerfile_path": "--file", "image_name": "--tag",
    "memory_mb": "--memory", "network_mode": "--network", "secrets": "--secret", "tags": "--label",
    "target": "--target", "timeout_seconds": "--timeout",
}  # fmt: skip
"""What the parts of the form are called here."""
_REDRAW_SECONDS = 0.1
_MAX_NAMED = 5


def build(
    context: typer.Context,
    path: Annotated[
        str, typer.Argument(metavar="PATH|ARCHIVE|-", help="What to build; - is standard input.")
    ] = ".",
    file: Annotated[
        str | None,
        typer.Option(
            "--file",
            "-f",
            metavar="FILE",
            help="The Dockerfile, if it is not PATH/Dockerfile; - is stdin.",
        ),
    ] = None,
    target: Annotated[str | None, typer.Option(metavar="STAGE", help="The stage to build.")] = None,
    build_arg: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY[=VALUE]", help="Value of an ARG; without =, from your environment."
        ),
    ] = None,
    secret: Annotated[
        list[str] | None,
        typer.Option(metavar="ID[,env=NAME]", help="A secret that the daemon's host holds."),
    ] = None,
    tag: Annotated[
        str | None, typer.Option("--tag", "-t", metavar="NAME[:TAG]", help="A name for the image.")
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option("--label", "-l", metavar="KEY=VALUE", help="Something to find the build by."),
    ] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Run every step anew.")] = False,
    cache_scope: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of your build cache.")
    ] = None,
    timeout: Annotated[
        str | None, typer.Option(metavar="DURATION", help="How long it may take: 600, 10m, 2h.")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Memory of its machine: 2048, 512m, 4g.")
    ] = None,
    cpus: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Processors of its machine.")
    ] = None,
    network: Annotated[NetworkMode | None, typer.Option(help="What it may reach.")] = None,
    allow_domain: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="With egress: only these, *.NAME too.")
    ] = None,
    idempotency_key: IdempotencyKey = None,
    progress: ProgressKind = Progress.AUTO,
    detach: Detach = False,
    as_json: AsJson = False,
    template: Template = None,
    quiet: Quiet = False,
) -> None:
    """Build an image from a directory, an archive or standard input.

    Sends what .dockerignore leaves of PATH and follows the build. Progress goes to standard error;
    standard output gets the image's reference with its digest.

    Ctrl-C on a terminal asks whether to detach from the build or to cancel it; twice, or without a
    terminal, it cancels. Exit: 0 ready, 1 failed, 2 wrong usage, 3 no daemon, 130 cancelled.
    """
    shown = Progress.QUIET if quiet else progress

    async def command(session: Session, client: Client) -> int | None:
        how = parse_how(fields.BUILD, as_json=as_json, template=template, quiet=quiet)
        for option, text in (
            ("--file", file), ("--target", target), ("--tag", tag), ("--cache-scope", cache_scope),
        ):  # fmt: skip
            if text == "":  # an unset variable, most likely: not the same as without the option
                raise UsageError(f"{option} is empty; name something, or leave it out")
        options = BuildOptions(
            target=target,
            build_args=_parse_build_args(build_arg or []),
            tags=parse_pairs(label or [], "--label"),
            secrets=tuple(_parse_secret(text) for text in secret or []),
            cache_scope=cache_scope,
            timeout_seconds=_parse_amount(timeout, _SECONDS, "--timeout"),
            memory_mb=_parse_amount(memory, _MEBIBYTES, "--memory"),
            cpus=cpus,
            network_mode=str(network) if network else None,
            allowed_domains=tuple(allow_domain or ()),
            no_cache=no_cache,
            image_name=tag,
        )
        planned = await trio.to_thread.run_sync(
            plan_source_sync, path, file, abandon_on_cancel=True
        )
        view = None if detach else open_view(session, shown)
        info = await _upload(
            session.out, client, planned, options,
            idempotency_key=idempotency_key, is_quiet=shown is Progress.QUIET,
        )  # fmt: skip
        is_quiet = shown is Progress.QUIET
        return await finish(session, client, info, how, view=view, is_quiet=is_quiet)

    session_of(context).run(command)


async def _upload(
    out: Output,
    client: Client,
    planned: DirectorySource | StreamSource,
    options: BuildOptions,
    *,
    idempotency_key: str | None,
    is_quiet: bool,
) -> BuildInfo:
    """Pack and send at once, showing how far it has come. Cancelled, there is no build."""
    options = replace(
        options, dockerfile=planned.dockerfile, dockerfile_path=planned.dockerfile_path
    )
    meter = UploadMeter(out, planned.survey if isinstance(planned, DirectorySource) else None)
    source = open_source(planned)
    info: BuildInfo | None = None
    failure: CtlError | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(source.run)
        if not is_quiet:
            nursery.start_soon(meter.run, source.packed)
        try:
            info = await client.submit(options, source, idempotency_key=idempotency_key)
        except CtlError as exc:
            if isinstance(exc, ApiError):
                _speak_of_options(exc)
            failure = exc
        except trio.Cancelled:
            out.note("the upload was interrupted")
            raise
        finally:
            source.close()
        nursery.cancel_scope.cancel(reason="the source is sent")
    if failure is not None:
        raise failure
    assert info is not None
    if not is_quiet:
        meter.finish(source.packed, info)
    return info


class UploadMeter:
    """Tells how far an upload has come: on a terminal all the time, elsewhere when it is done."""

    def __init__(self, out: Output, survey: Survey | None) -> None:
        self._out = out
        self._survey = survey
        if survey is not None and survey.special:
            named = ", ".join(map(printable, survey.special[:_MAX_NAMED]))
            more = len(survey.special) - _MAX_NAMED
            out.note(
                f"warning: left out, being neither file, directory nor link: {named}"
                + (f" and {more} more" if more > 0 else "")
            )

    async def run(self, packed: Packed) -> None:
        """Redraw one line until cancelled, and take it away then."""
        if not self._out.has_terminal:
            return
        total = "" if self._survey is None else f" of {format_bytes(self._survey.total_bytes)}"
        try:
            while True:
                text = f"[+] sending {format_bytes(packed.read_bytes)}{total}"
                # A line that the terminal had to break could not be drawn over.
                self._draw(text[: self._out.columns - 1])
                await trio.sleep(_REDRAW_SECONDS)
        finally:
            self._draw("")

    def _draw(self, text: str) -> None:
        self._out.messages.write(f"\r{text}\x1b[K")
        self._out.messages.flush()

    def finish(self, packed: Packed, info: BuildInfo) -> None:
        """Tell what was sent and what it has become."""
        count = self._survey.files if self._survey is not None else None
        files = "" if count is None else "1 file, " if count == 1 else f"{count} files, "
        size = f"{format_bytes(packed.read_bytes)}, {format_bytes(packed.sent_bytes)} compressed"
        self._out.note(f"sent {files}{size}; build {info.id} is {info.status}")


def _speak_of_options(error: ApiError) -> None:
    """Have an error of the API name what was typed instead of the form's parts."""

    def rename(match: re.Match[str]) -> str:
        return _OPTIONS.get(match[1], match[0])

    error.message = _PART.sub(rename, error.message)
    error.details = tuple(_PART.sub(rename, detail) for detail in error.details)
    if error.code == "dockerfile_required":
        error.message, error.hint = "the source has no Dockerfile", "name another file with --file"


def _parse_build_args(texts: Sequence[str]) -> dict[str, str]:
    """Return the build arguments; one without a value has that of the environment, if any."""
    args = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name:
            raise UsageError(f"--build-arg {text}: expected KEY=VALUE, or KEY")
        if equals:
            args[name] = value
        elif name in os.environ:
            args[name] = os.environ[name]
    return args


def _parse_secret(text: str) -> dict[str, str]:
    """Return a secret's id and the variable for it, from `ID`, `id=ID` or `ID,env=NAME`."""
    first, *rest = text.split(",")
    secret = {"id": first.removeprefix("id=")}
    for part in rest:
        key, _, value = part.partition("=")
        if key in ("src", "source"):
            raise UsageError(
                f"--secret {text}: a file of yours cannot be sent",
                hint="secrets are kept by the daemon's operator and named by their id",
            )
        if key != "env" or not value:
            raise UsageError(f"--secret {text}: expected ID or ID,env=NAME")
        secret["env_var"] = value
    return secret


def _parse_amount(text: str | None, units: Mapping[str, int], option: str) -> int | None:
    return None if text is None else parse_amount(text, units, option)
