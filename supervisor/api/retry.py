"""A new build from a finished one: the same source and fields, without sending them again."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

from quart import g, request
from quart_trio.wrappers import TrioResponse as Response

from supervisor.actors.builds import IdempotencyKey, NewBuild
from supervisor.api.builds import BuildRoutes
from supervisor.api.ports import ApiDeps
from supervisor.api.queries import check_names
from supervisor.api.submissions import parse_key, take_in
from supervisor.api.uploads import open_upload
from supervisor.api.views import json_response, render_build
from supervisor.errors import Conflict, ResourceExhausted
from supervisor.model.build import Build, BuildRequest, Policy
from supervisor.runtime.files import fsync_directory_sync
from supervisor.runtime.threads import run_in_thread
from supervisor.tokens import Caller


class RetryRoutes:
    """Handlers, named as in the table of routes."""

    def __init__(self, deps: ApiDeps, builds: BuildRoutes) -> None:
        self._deps = deps
        self._builds = builds

    async def retry_build(self, id: str) -> Response:
        """Take the build in again, as a new one of the same tenant."""
        check_names(request.args, ())
        key = parse_key(request.headers.get("Idempotency-Key"))
        first = await self._builds.visible(id)
        if not first.status.is_final:
            raise Conflict(f"build {first.id} is {first.status}; only what has ended is retried")
        made_by = None if key is None else IdempotencyKey(key, _hash(first))
        if made_by is not None:
            # Now: the source may have been removed since.
            known = await self._deps.builds.find_made_by(first.tenant, made_by)
            if known is not None:
                return self._render(known, 200)
        await self._deps.builds.check_room(first.tenant, key)
        async with open_upload(self._deps) as upload:
            await run_in_thread(
                self._deps.threads.disk,
                _share_source_sync,
                self._deps.builds.upload_path(first.id),
                upload.path,
            )
            new = NewBuild(
                upload.build_id,
                first.tenant,
                _allowed_now(first.request, self._deps, g.caller),
                first.source,
                made_by,
            )
            build = await take_in(self._deps, upload, new)
        return self._render(build, 202 if build.id == new.id else 200)

    def _render(self, build: Build, status: int) -> Response:
        shown = render_build(
            build,
            queue_position=self._deps.builds.queue_position(build.id),
            registry_address=self._deps.registry_address,
        )
        response = json_response(shown, status)
        response.headers["Location"] = f"/builds/{build.id}"
        return response


def _allowed_now(asked: BuildRequest, deps: ApiDeps, caller: Caller) -> BuildRequest:
    """Return the request within what this caller may, and what the operator allows by now."""
    policy, settings = asked.policy, deps.settings
    return replace(
        asked,
        policy=Policy(
            timeout_seconds=min(policy.timeout_seconds, settings.max_build_timeout),
            memory_mb=min(policy.memory_mb, settings.max_build_memory_mb),
            cpus=min(policy.cpus, settings.max_build_cpus),
            network_mode=policy.network_mode,
            allowed_domains=policy.allowed_domains,
        ),
        export_global_cache=asked.export_global_cache and caller.is_admin,
    )


def _hash(build: Build) -> str:
    return hashlib.sha256(f"retry {build.id}".encode()).hexdigest()


def _share_source_sync(source: Path, target: Path) -> None:
    """Give the archive a second name, durably: nobody ever writes to it again."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
        os.link(source, target)
    except FileNotFoundError:
        raise Conflict("the source of that build is not kept any more; submit it anew") from None
    except OSError as exc:
        raise ResourceExhausted(f"the source cannot be kept: {exc.strerror}") from exc
    for level in (target.parent, target.parent.parent, target.parent.parent.parent):
        fsync_directory_sync(level)
