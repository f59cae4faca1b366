"""Whether the daemon answers, and whether builds can start."""

from __future__ import annotations

from quart import request
from quart_trio.wrappers import TrioResponse as Response

from supervisor.api.ports import ApiDeps
from supervisor.api.queries import check_names
from supervisor.api.views import HealthView, json_response
from supervisor.errors import NotReady


class HealthRoutes:
    """Handlers, named as in the table of routes."""

    def __init__(self, deps: ApiDeps) -> None:
        self._deps = deps

    async def health(self) -> Response:
        """Answer."""
        check_names(request.args, ())
        return json_response(HealthView(status="ok").model_dump())

    async def ready(self) -> Response:
        """Answer 200 only when builds can start."""
        check_names(request.args, ())
        if (why := self._deps.builds.readiness()) is not None:
            raise NotReady(why)
        return json_response(HealthView(status="ready").model_dump())
