"""list, show, steps, evidence, cancel, rm, wait: looking at builds and ending them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Annotated

import trio
import typer

from supervisor.ctl import fields
from supervisor.ctl.client import Client
from supervisor.ctl.commands.listing import How, parse_how, write_record, write_records
from supervisor.ctl.commands.options import (
    AsJson,
    BuildName,
    BuildNames,
    Quiet,
    Template,
)
from supervisor.ctl.errors import EXIT_BUILD_FAILED, EXIT_OK, CtlError, UsageError
from supervisor.ctl.model import BuildInfo, Json, StepInfo
from supervisor.ctl.output import Output
from supervisor.ctl.session import Session, session_of
from supervisor.ctl.terminal import clean_line, format_age, format_seconds, parse_time
from supervisor.model.build import Phase, Status
from supervisor.runtime.clock import wall_clock

_PHASES = [str(phase) for phase in Phase]


def list_builds(
    context: typer.Context,
    status: Annotated[
        Status | None, typer.Option("--status", "-s", help="Only builds with this status.")
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option("--label", "-l", metavar="KEY=VALUE", help="Only builds with this label."),
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, metavar="N", help="At most so many.")
    ] = 50,
    as_json: AsJson = False,
    template: Template = None,
    quiet: Quiet = False,
) -> None:
    """List builds, newest first. Also called ps and ls."""

    async def command(session: Session, client: Client) -> None:
        how = parse_how(fields.BUILD, as_json=as_json, template=template, quiet=quiet)
        tags = parse_pairs(label or (), "--label")
        builds = await client.list_builds(
            status=str(status) if status else None, tags=tags, most=limit
        )
        now = wall_clock()
        rows = {info.id: _list_row(info, now) for info in builds}
        columns = ["BUILD", "STATUS", "CREATED", "TIME", "RESULT"]
        records = [info.raw for info in builds]
        write_records(session.out, how, records, columns, lambda each: rows[each["id"]])

    session_of(context).run(command)


def show(
    context: typer.Context, build: BuildName, as_json: AsJson = False, template: Template = None
) -> None:
    """Show all that is known about a build."""

    async def command(session: Session, client: Client) -> None:
        how = parse_how(fields.BUILD, as_json=as_json, template=template)
        info = await client.get_build(await client.resolve(build))
        write_record(session.out, how, info.raw, lambda: write_build(session.out, info))

    session_of(context).run(command)


def steps(
    context: typer.Context, build: BuildName, as_json: AsJson = False, template: Template = None
) -> None:
    """List the steps that BuildKit has run for a build."""

    async def command(session: Session, client: Client) -> None:
        how = parse_how(fields.STEP, as_json=as_json, template=template)
        found = await client.list_steps(await client.resolve(build))
        found = sorted(found, key=lambda each: each[0].started_at or "~")
        rows = {step.digest: [*_describe_step(step), step.name] for step, _ in found}
        records = [raw for _, raw in found]
        columns = ["STATE", "TIME", "STEP"]
        write_records(session.out, how, records, columns, lambda each: rows[each["digest"]])

    session_of(context).run(command)


def evidence(
    context: typer.Context, build: BuildName, as_json: AsJson = False, template: Template = None
) -> None:
    """Show what a build's machine left when it was lost or met a limit. For administrators.

    The last of its console, of the VMM's messages, and of those between host and guest; to a pipe
    as they are, on a terminal without what would control it.
    """

    async def command(session: Session, client: Client) -> None:
        how = parse_how(fields.EVIDENCE, as_json=as_json, template=template)
        build_id = await client.resolve(build)
        text = await client.get_evidence(build_id)
        out = session.out

        def write() -> None:
            if not out.data_is_terminal:
                out.write(text)
                return
            for line in text.removesuffix("\n").split("\n"):
                out.line(clean_line(line))

        write_record(out, how, {"id": build_id, "evidence": text}, write)

    session_of(context).run(command)


def cancel(
    context: typer.Context,
    builds: BuildNames,
    as_json: AsJson = False,
    template: Template = None,
) -> None:
    """Cancel builds. Each id is written once its cancellation is accepted.

    With --json as {"id": …, "status": "cancelled"}.
    """

    async def end(client: Client, build_id: str) -> Json:
        await client.cancel(build_id)
        return {"id": build_id, "status": str(Status.CANCELLED)}

    _for_each(
        context,
        builds,
        end,
        lambda: parse_how(fields.CANCELLED, as_json=as_json, template=template),
    )


def remove(
    context: typer.Context,
    builds: BuildNames,
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Cancel those that are not finished first.")
    ] = False,
    as_json: AsJson = False,
    template: Template = None,
) -> None:
    """Remove finished builds: records, logs, sources, and images without a name of their own.

    Each id is written once its build is gone, with --json as {"id": …, "removed": true}.
    """

    async def purge(client: Client, build_id: str) -> Json:
        if force and not (await client.get_build(build_id)).is_final:
            await client.cancel(build_id)
            await _wait_final(client, build_id)
        await client.purge(build_id)
        return {"id": build_id, "removed": True}

    _for_each(
        context,
        builds,
        purge,
        lambda: parse_how(fields.REMOVED, as_json=as_json, template=template),
    )


def wait(
    context: typer.Context,
    builds: BuildNames,
    as_json: AsJson = False,
    template: Template = None,
    quiet: Quiet = False,
) -> None:
    """Wait until builds have ended. Exit 0 if all are ready, 1 if one is not."""

    async def command(session: Session, client: Client) -> int:
        how = parse_how(fields.BUILD, as_json=as_json, template=template, quiet=quiet)
        code = EXIT_OK
        for name in builds:
            build_id = await client.resolve(name)
            await _wait_final(client, build_id)
            info = await client.get_build(build_id)
            if not info.is_ready:
                code = EXIT_BUILD_FAILED
            text = f"{info.id} {session.out.styled(info.status)}"
            write_record(session.out, how, info.raw, partial(session.out.line, text), info.id)
        return code

    session_of(context).run(command)


def write_build(out: Output, info: BuildInfo) -> None:
    """Write a build as a list of facts."""
    raw = info.raw
    provenance = raw.get("provenance") or {}
    policy = raw.get("policy") or {}
    facts = [
        ("id", info.id),
        ("status", info.status),
        ("queue position", info.queue_position),
        ("tenant", info.tenant),
        ("tags", ", ".join(f"{key}={value}" for key, value in info.tags.items())),
        ("image", info.image_ref),
        ("digest", info.image_digest),
        ("created", info.created_at),
        ("started", info.started_at),
        ("completed", info.completed_at),
        ("duration", _milliseconds(info.duration_ms)),
        ("phases", describe_phases(info)),
        ("attempt", raw.get("attempt")),
        ("limits", ", ".join(f"{key} {value}" for key, value in policy.items())),
        ("source", provenance.get("source_hash")),
        ("base image", provenance.get("base_image_digest")),
        ("builder image", provenance.get("builder_image_digest")),
        ("buildkit", provenance.get("buildkit_version")),
        ("reason", info.error_code),
        ("exact reason", raw.get("error_reason")),
    ]
    for name, value in facts:
        if value not in (None, ""):
            text = clean_line(str(value), colours=False)
            out.line(f"{name + ':':<16}{out.styled(text) if name == 'status' else text}")
    if info.error:
        out.line("error:")
        for line in info.error.splitlines():
            out.line(f"  {clean_line(line, colours=False)}")


def write_ending(out: Output, info: BuildInfo) -> None:
    """Tell in a few words what came of a build that was followed."""
    if not info.is_final:
        out.note(f"build {info.id} goes on; follow it again with: hypeman-ctl attach {info.id}")
    elif info.is_ready:
        out.note(f"build {info.id} is ready after {_milliseconds(info.duration_ms)}")
    else:
        why = f": {info.error_code}" if info.error_code not in (None, info.status) else ""
        out.note(
            f"build {info.id} {'has ' if info.status == Status.FAILED else 'is '}{info.status}{why}"
        )
        for line in (info.error or "").splitlines():
            if line != info.error_code:
                out.note(f"  {clean_line(line, colours=False)}")


def describe_phases(info: BuildInfo) -> str:
    """Return the time in each phase, in the order in which a build goes through them."""
    known = [name for name in _PHASES if name in info.phases]
    names = [*known, *(name for name in info.phases if name not in known)]
    return ", ".join(f"{name} {_milliseconds(info.phases[name])}" for name in names)


def parse_pairs(texts: Sequence[str], option: str) -> dict[str, str]:
    """Return `KEY=VALUE` options as a mapping. Raises UsageError."""
    pairs = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise UsageError(f"{option} {text}: expected KEY=VALUE")
        pairs[key] = value
    return pairs


def _list_row(info: BuildInfo, now: float) -> list[str]:
    return [
        info.id, info.status, format_age(info.created_at), _took(info, now), _summary(info),
    ]  # fmt: skip


def _summary(info: BuildInfo) -> str:
    if info.is_ready:
        return info.image_ref or ""
    if info.queue_position is not None:
        return f"number {info.queue_position} in the queue"
    return info.error_code or ""


def _took(info: BuildInfo, now: float) -> str:
    if info.duration_ms is not None:
        return _milliseconds(info.duration_ms)
    started = parse_time(info.started_at)
    return format_seconds(max(0.0, now - started)) if started is not None else ""


def _describe_step(step: StepInfo) -> tuple[str, str]:
    start, end = parse_time(step.started_at), parse_time(step.completed_at)
    took = format_seconds(max(0.0, end - start)) if start is not None and end is not None else ""
    if step.error:
        return "failed", took
    if step.cached:
        return "cached", took
    if step.completed_at:
        return "done", took
    return ("running" if step.started_at else "waiting"), took


def _milliseconds(count: float | None) -> str:
    return "" if count is None else format_seconds(count / 1000)


async def _wait_final(client: Client, build_id: str) -> None:
    async with client.open_events(build_id) as events:
        async for _ in events:
            pass


def _for_each(
    context: typer.Context,
    names: Sequence[str],
    act: Callable[[Client, str], Awaitable[Json]],
    find_how: Callable[[], How],
) -> None:
    """Do the same with each build; what fails for one does not keep it from the others.

    `act` returns the record of what it has done.
    """

    async def command(session: Session, client: Client) -> int:
        how = find_how()
        code = EXIT_OK
        for name in names:
            await trio.lowlevel.checkpoint()
            try:
                build_id = await client.resolve(name)
                done = await act(client, build_id)
            except CtlError as exc:
                session.out.error(exc, debug=session.debug)
                code = exc.exit_code
            else:
                write_record(session.out, how, done, partial(session.out.line, build_id))
        return code

    session_of(context).run(command)
