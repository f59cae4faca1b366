"""A build that has been taken in: leave it, or follow it to its end and tell what came of it."""

from __future__ import annotations

from supervisor.ctl.client import Client
from supervisor.ctl.commands.builds import write_ending
from supervisor.ctl.commands.listing import How, write_record
from supervisor.ctl.model import BuildInfo
from supervisor.ctl.session import Session
from supervisor.ctl.watch import View, watch


async def finish(
    session: Session,
    client: Client,
    info: BuildInfo,
    how: How,
    *,
    view: View | None,
    is_quiet: bool,
) -> int | None:
    """Follow a build with `view` (None: leave it), write what was asked for; return the exit code.

    Standard output gets the image's reference with its digest; of a build that is left, its id.
    """
    code = None
    if view is not None:
        watched = await watch(session, client, info.id, view)
        info = await client.get_build(info.id)
        code = watched.exit_code
        if not is_quiet:
            write_ending(session.out, info)

    def write() -> None:
        if view is None:
            session.out.line(info.id)
        elif info.is_ready:
            session.out.line(f"{info.image_ref}@{info.image_digest}")

    write_record(session.out, how, info.raw, write, info.id)
    return code
