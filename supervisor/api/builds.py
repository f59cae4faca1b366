"""The routes about builds: parse, ask, render."""

from __future__ import annotations

from quart import g, request
from quart_trio.wrappers import TrioResponse as Response

from supervisor.api.auth import check_visible
from supervisor.api.events import EventStreamBody
from supervisor.api.fields import DEPRECATED_WARNING, from_texts
from supervisor.api.forms import receive_form
from supervisor.api.logtext import log_response
from supervisor.api.ports import ApiDeps
from supervisor.api.queries import (
    check_names,
    next_link,
    one_more,
    parse_event_id,
    parse_flag,
    parse_list_query,
)
from supervisor.api.submissions import parse_key, submit
from supervisor.api.uploads import open_upload
from supervisor.api.views import json_response, render_build
from supervisor.errors import InvalidRequest, NotFound
from supervisor.model.build import Build
from supervisor.model.events import render_step
from supervisor.model.ids import BuildId, parse_build_id
from supervisor.tokens import Caller


class BuildRoutes:
    """Handlers, named as in the table of routes. `g.caller` is authorized when they are called."""

    def __init__(self, deps: ApiDeps) -> None:
        self._deps = deps
        self._builds = deps.builds

    async def submit_build(self) -> Response:
        """Take an upload in, as it arrives."""
        check_names(request.args, ())
        key = parse_key(request.headers.get("Idempotency-Key"))
        await self._builds.check_room(g.caller.tenant, key)
        async with open_upload(self._deps) as upload:
            texts = await receive_form(
                aiter(request.body),
                request.headers.get("Content-Type", ""),
                request.content_length,
                upload,
                self._deps.settings.max_source_bytes,
            )
            build = await submit(self._deps, g.caller, upload, from_texts(texts), key)
        is_new = build.id == upload.build_id
        response = json_response(self._render(build), 202 if is_new else 200)
        response.headers["Location"] = f"/builds/{build.id}"
        if "runtime" in texts:
            response.headers["Warning"] = DEPRECATED_WARNING
        return response

    async def list_builds(self) -> Response:
        """Show a page of builds."""
        caller: Caller = g.caller
        wanted = parse_list_query(request.args, None if caller.is_admin else caller.tenant)
        found = await self._builds.list(one_more(wanted))
        page = found[: wanted.limit]
        response = json_response([self._render(build) for build in page])
        if len(found) > len(page):
            response.headers["Link"] = next_link(request.path, request.args, page[-1])
        return response

    async def get_build(self, id: str) -> Response:
        """Show one build."""
        check_names(request.args, ())
        return json_response(self._render(await self.visible(id)))

    async def delete_build(self, id: str) -> Response:
        """Cancel, or purge."""
        check_names(request.args, ("purge",))
        purge = parse_flag(request.args, "purge", default=False)
        build = await self.visible(id)
        await (self._builds.purge(build.id) if purge else self._builds.cancel(build.id))
        return Response(status=204)

    async def build_logs(self, id: str) -> Response:
        """Follow by default; or the log as text, for who asks for that."""
        kinds = ("text/event-stream", "text/plain")
        if request.accept_mimetypes.best_match(kinds) == "text/plain":
            check_names(request.args, ("follow",))
            if parse_flag(request.args, "follow", default=False):
                raise InvalidRequest("the log as text is what there is so far: follow it as events")
            build = await self.visible(id)
            return log_response(self._builds.log_path(build.id), request, self._deps)
        return await self._event_stream(id, follow=True)

    async def build_events(self, id: str) -> Response:
        """Show what there is by default."""
        return await self._event_stream(id, follow=False)

    async def build_steps(self, id: str) -> Response:
        """Show the steps."""
        check_names(request.args, ())
        build = await self.visible(id)
        return json_response([render_step(step) for step in await self._builds.steps(build.id)])

    async def build_evidence(self, id: str) -> Response:
        """Show what a machine left that was lost, or ran out of something."""
        check_names(request.args, ())
        build = await self.visible(id)
        response = Response(await self._builds.evidence(build.id))
        response.content_type = "text/plain; charset=utf-8"
        response.headers["X-Content-Type-Options"] = "nosniff"  # a guest has written in it
        return response

    async def visible(self, id: str) -> Build:
        """Return the build if there is one that the caller may see. Raises NotFound."""
        return check_visible(g.caller, await self._builds.get(_parse_id(id)))

    async def _event_stream(self, id: str, *, follow: bool) -> Response:
        check_names(request.args, ("follow",))
        follow = parse_flag(request.args, "follow", default=follow)
        after = parse_event_id(request.headers.get("Last-Event-ID") or None, "Last-Event-ID")
        build = await self.visible(id)
        await self._builds.check_place(build.id, after)
        if request.method == "HEAD":
            response = Response(status=200)
        else:
            response = Response(EventStreamBody(self._deps, build.id, after, follow=follow))
        response.content_type = "text/event-stream"
        response.headers["Cache-Control"] = "no-cache"
        response.headers["X-Accel-Buffering"] = "no"
        response.timeout = None
        return response

    def _render(self, build: Build) -> dict[str, object]:
        return render_build(
            build,
            queue_position=self._builds.queue_position(build.id),
            registry_address=self._deps.registry_address,
        )


def _parse_id(text: str) -> BuildId:
    build_id = parse_build_id(text)
    if build_id is None:
        raise NotFound("there is no such build")
    return build_id
