"""Every route against every kind of caller, over real connections: the whole table, row by row."""

from __future__ import annotations

import json

import pytest

from supervisor.api.routes import ROUTES, Route
from supervisor.model.build import Status
from supervisor.model.ids import BuildId
from supervisor.tokens import Permission
from tests.api.conftest import ADMIN, SOURCE, Api, Server, bearer
from tests.api.test_authorization import BAD_AUTHORIZATIONS
from tests.api.test_websockets import UPGRADE
from tests.fakes.operations import FakeImages, stored_image

ANSWERS = {
    "submit_build": 202,
    "list_builds": 200,
    "submit_and_follow": 101,
    "get_build": 200,
    "delete_build": 409,  # it has ended
    "build_logs": 200,
    "build_events": 200,
    "build_steps": 200,
    "build_evidence": 404,  # it has lost no machine
    "retry_build": 202,
    "follow_build": 101,
    "create_token": 201,
    "show_queue": 200,
    "list_images": 200,
    "prune_images": 200,
    "get_image": 200,
    "delete_image": 204,
    "list_machines": 200,
    "system_info": 200,
    "system_config": 200,
    "disk_usage": 200,
    "prune_system": 200,
    "health": 200,
    "ready": 200,
    "spec_json": 200,
    "spec_yaml": 200,
}
"""What each route answers to a right request about a build that is ready, by who may make it."""
FORM = (
    b'--x\r\nContent-Disposition: form-data; name="source"; filename="s"\r\n\r\n'
    + SOURCE
    + b"\r\n--x--\r\n"
)
CODES = {401: "unauthorized", 403: "forbidden", 404: "not_found", 409: "conflict"}
BODIES = {
    "submit_build": (b"multipart/form-data; boundary=x", FORM),
    "create_token": (b"application/json", b'{"subject": "someone"}'),
    "prune_images": (b"application/json", b"{}"),
    "prune_system": (b"application/json", b"{}"),
}


async def ask(
    api: Api, server: Server, route: Route, headers: dict[str, str], build_id: BuildId
) -> int:
    """Return the status that answers a request which is right but for who makes it."""
    assert isinstance(api.deps.images, FakeImages)
    api.deps.images.images = [stored_image("acme/app", "1")]
    path = route.path.replace("{id}", build_id).replace("{name}", "acme/app:1")
    kind, body = BODIES.get(route.name, (b"", b""))
    if kind:
        about = {"Content-Type": kind.decode(), "Content-Length": str(len(body))}
        headers = {**headers, **about}
    elif route.is_websocket:
        headers = {**headers, **UPGRADE}
    async with server.raw() as client:
        await client.send_head(route.method, path, headers)
        if body:
            await client.send_data(body)
        await client.send_end()
        status = await client.receive_status()
        if status >= 400:
            assert json.loads(await client.receive_body())["code"] == CODES[status], route
        return status


def test_the_table_has_every_route() -> None:
    assert ANSWERS.keys() == {route.name for route in ROUTES}


@pytest.mark.parametrize("kind", BAD_AUTHORIZATIONS)
async def test_without_a_valid_token(api: Api, server: Server, kind: str) -> None:
    authorization = BAD_AUTHORIZATIONS[kind]
    headers = {} if authorization is None else {"Authorization": authorization.strip()}
    build_id = await api.submit_finished()
    for route in ROUTES:
        expected = ANSWERS[route.name] if route.permission is None else 401
        assert await ask(api, server, route, headers, build_id) == expected, route


async def test_with_every_permission_but_the_needed_one(api: Api, server: Server) -> None:
    build_id = await api.submit_finished()
    for route in ROUTES:
        others = set(Permission) - {route.permission, Permission.BUILD_ADMIN}
        headers = bearer("acme", *others)
        expected = ANSWERS[route.name] if route.permission is None else 403
        assert await ask(api, server, route, headers, build_id) == expected, route


async def test_with_the_needed_permission_only(api: Api, server: Server) -> None:
    for route in ROUTES:
        build_id = await api.submit_finished()
        headers = bearer("acme", *filter(None, [route.permission]))
        assert await ask(api, server, route, headers, build_id) == ANSWERS[route.name], route


async def test_as_another_tenant(api: Api, server: Server) -> None:
    build_id = await api.submit_finished()
    for route in ROUTES:
        headers = bearer("rival", *set(Permission) - {Permission.BUILD_ADMIN})
        expected = ANSWERS[route.name]
        if route.permission is Permission.BUILD_ADMIN:
            expected = 403
        elif "{" in route.path:
            expected = 404
        assert await ask(api, server, route, headers, build_id) == expected, route
    assert api.fake.builds[build_id].status is Status.READY


async def test_as_an_administrator(api: Api, server: Server) -> None:
    for route in ROUTES:
        build_id = await api.submit_finished()
        assert await ask(api, server, route, ADMIN, build_id) == ANSWERS[route.name], route
