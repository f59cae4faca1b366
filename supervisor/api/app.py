"""The Quart-Trio application: the table of routes, bound to its handlers."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from quart import g, request, websocket
from quart_trio import QuartTrio
from quart_trio.wrappers import TrioResponse as Response

from supervisor.api.asgi import BoundedRequest, HTTPConnection, WebsocketConnection
from supervisor.api.auth import authenticate, authorize
from supervisor.api.builds import BuildRoutes
from supervisor.api.health import HealthRoutes
from supervisor.api.images import ImageRoutes
from supervisor.api.openapi import SpecRoutes
from supervisor.api.operator import OperatorRoutes
from supervisor.api.ports import ApiDeps
from supervisor.api.problems import install
from supervisor.api.retry import RetryRoutes
from supervisor.api.routes import ROUTE_OF_NAME, ROUTES
from supervisor.api.tokenroute import TokenRoutes
from supervisor.api.ws import WebsocketRoutes
from supervisor.errors import InvalidRequest

Handler = Callable[..., Awaitable[Any]]

ANSWER_SECONDS = 60.0
"""For taking a short answer. Streams have no such limit, and say so themselves."""


class Application(QuartTrio):
    """Quart with bounded connections."""

    asgi_http_class = HTTPConnection
    asgi_websocket_class = WebsocketConnection
    request_class = BoundedRequest


def make_app(deps: ApiDeps) -> QuartTrio:
    """Return the application. It needs no start: nothing of the daemon lives in it."""
    app = Application(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = None  # limits are the handlers', with their own messages
    app.config["BODY_TIMEOUT"] = None
    app.config["RESPONSE_TIMEOUT"] = ANSWER_SECONDS
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    app.config["PROPAGATE_EXCEPTIONS"] = False
    app.url_map.merge_slashes = False
    install(app)
    _install_names(app)
    _install_authorization(app, deps)
    builds = BuildRoutes(deps)
    owners = (
        builds,
        WebsocketRoutes(deps, builds),
        RetryRoutes(deps, builds),
        ImageRoutes(deps),
        OperatorRoutes(deps),
        TokenRoutes(deps),
        HealthRoutes(deps),
        SpecRoutes(deps),
    )
    for route in ROUTES:
        handler = _handler(owners, route.name)
        if route.is_websocket:
            app.add_websocket(route.rule, route.name, handler)
            app.add_url_rule(
                route.rule, f"{route.name}_http", _only_websocket, methods=[route.method]
            )
        else:
            app.add_url_rule(route.rule, route.name, handler, methods=[route.method])
    return app


def _install_names(app: QuartTrio) -> None:
    """Give every request an id, which its answer tells; what fails is logged under it."""

    @app.before_request
    async def name_request() -> None:
        g.request_id = secrets.token_hex(8)

    @app.after_request
    async def tell_name(response: Response) -> Response:
        response.headers["X-Request-Id"] = g.request_id
        return response


def _install_authorization(app: QuartTrio, deps: ApiDeps) -> None:
    """Check every request against the table before its handler runs."""

    @app.before_request
    async def check_request() -> None:
        _check(deps, request)

    @app.before_websocket
    async def check_websocket() -> None:
        _check(deps, websocket)


def _check(deps: ApiDeps, asked: Any) -> None:
    if asked.endpoint is None:
        return  # no such route or method: the router answers
    permission = ROUTE_OF_NAME[asked.endpoint.removesuffix("_http")].permission
    if permission is None:
        return
    g.caller = authenticate(asked.scope, asked.headers.get("Authorization"), deps.keys)
    authorize(g.caller, permission)


def _handler(owners: tuple[object, ...], name: str) -> Handler:
    found: list[Handler] = [getattr(owner, name) for owner in owners if hasattr(owner, name)]
    assert len(found) == 1, f"the route {name} has {len(found)} handlers"
    return found[0]


async def _only_websocket(**_: str) -> Response:
    raise InvalidRequest("this route is a websocket: send Upgrade: websocket")
