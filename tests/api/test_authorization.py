"""Who may do what, beside the table of `test_access_table.py`."""

from __future__ import annotations

from dataclasses import replace

import jwt
import pytest

from supervisor import tokens
from supervisor.api.front import Front
from supervisor.api.routes import ROUTES, Route
from supervisor.model.build import Status
from supervisor.tokens import LOCAL_ADMIN, Permission, RepoGrant
from tests.api.conftest import ADMIN, API_KEY, REGISTRY_KEY, Api, bearer, form, token

GUARDED = [route for route in ROUTES if route.permission is not None]
OPEN = [route for route in ROUTES if route.permission is None]
NOW = 1_700_000_000


def claims(**changes: object) -> dict[str, object]:
    return {"sub": "acme", "iat": NOW, "exp": NOW + 10**9, **changes}


def signed(secret: bytes = API_KEY, algorithm: str = "HS256", **changes: object) -> str:
    return jwt.encode(claims(**changes), secret, algorithm)


def registry_token(secret: bytes) -> str:
    return tokens.mint_registry_token(
        secret, subject="builder", grants=[RepoGrant("a", "push")], now=NOW, lifetime_seconds=1e9
    )


BAD_AUTHORIZATIONS = {
    "nothing": None,
    "empty": "",
    "no token": "Bearer ",
    "Basic": "Basic YTpi",
    "garbage": "Bearer garbage",
    "wrong key": f"Bearer {token(secret=b'w' * 32)}",
    "alg=none": "Bearer " + jwt.encode(claims(), None, "none"),
    "another algorithm": f"Bearer {signed(b'a' * 64, 'HS512')}",
    "expired": f"Bearer {signed(exp=NOW + 1)}",
    "no expiry": "Bearer " + jwt.encode({"sub": "acme"}, API_KEY, "HS256"),
    "no tenant": f"Bearer {signed(sub='No Tenant!')}",
    "registry token": f"Bearer {registry_token(REGISTRY_KEY)}",
    "registry token with our key": f"Bearer {registry_token(API_KEY)}",
    "build token": f"Bearer {signed(build_id='x')}",
    "repos token": f"Bearer {signed(repos=['x'], scope='push')}",
    "audience": f"Bearer {signed(aud='something')}",
}


async def call(
    api: Api, route: Route, headers: dict[str, str], build_id: str = ""
) -> tuple[int, str]:
    """Call a route with a request that is right but for who makes it."""
    path = route.path.replace("{id}", build_id or "0" * 24).replace("{name}", "acme/app:1")
    async with api.client(**headers) as client:
        if route.name == "submit_build":
            response = await client.post(path, files=form())
        elif route.name == "create_token":
            response = await client.post(path, json={"subject": "someone"})
        elif route.path.endswith("/prune"):
            response = await client.post(path, json={})
        else:
            response = await client.request(route.method, path)
    code = response.json()["code"] if response.status_code >= 400 else ""
    return response.status_code, code


async def test_open_routes_need_no_token(api: Api) -> None:
    for route in OPEN:
        assert await call(api, route, {}) == (200, ""), route


@pytest.mark.parametrize("permissions", ["build:read", [1], {"a": 1}, ["build:nonsense"], []])
async def test_malformed_permissions_are_none(api: Api, permissions: object) -> None:
    headers = {"Authorization": f"Bearer {signed(permissions=permissions)}"}
    for route in GUARDED:
        assert await call(api, route, headers) == (403, "forbidden"), route


async def test_without_permissions_a_token_has_all_but_the_administrators(api: Api) -> None:
    build_id = await api.submit_finished()
    for route in GUARDED:
        status, _ = await call(api, route, bearer(), build_id)
        assert (status == 403) is (route.permission is Permission.BUILD_ADMIN), route


async def test_another_tenants_build_does_not_exist(api: Api) -> None:
    build_id = await api.submit_finished()
    for route in GUARDED:
        is_admins = route.permission is Permission.BUILD_ADMIN
        if "{id}" in route.path and not route.is_websocket and not is_admins:
            assert await call(api, route, bearer("rival"), build_id) == (404, "not_found"), route
            assert await call(api, route, bearer("rival")) == (404, "not_found"), route
    assert build_id in api.fake.builds


async def test_the_answer_about_another_tenants_build_is_that_about_a_missing_one(api: Api) -> None:
    build_id = await api.submit()
    missing = "0" * 24
    async with api.client(**bearer("rival")) as client:
        foreign = await client.get(f"/builds/{build_id}")
        absent = await client.get(f"/builds/{missing}")
    assert foreign.text.replace(build_id, missing) == absent.text


async def test_an_administrator_sees_and_ends_every_tenants_builds(api: Api) -> None:
    build_id = await api.submit()
    async with api.client(**ADMIN) as client:
        assert [build["id"] for build in (await client.get("/builds")).json()] == [build_id]
        assert (await client.get(f"/builds/{build_id}")).json()["tenant"] == "acme"
        assert (await client.delete(f"/builds/{build_id}")).status_code == 204
    assert api.fake.builds[build_id].status is Status.CANCELLED


async def test_a_listener_that_knows_its_callers_needs_no_token(api: Api) -> None:
    local = Front(api=api.front._api, registry=None, caller=LOCAL_ADMIN)
    await api.submit()
    async with api.client() as client:
        client._transport.app = local  # type: ignore[attr-defined]
        assert len((await client.get("/builds")).json()) == 1


async def test_a_client_cannot_say_that_it_is_local(api: Api) -> None:
    async with api.client(**{"hypeman.caller": "local", "State": "hypeman.caller"}) as client:
        assert (await client.get("/builds")).status_code == 401


async def test_a_401_says_how_to_authenticate(api: Api) -> None:
    async with api.client() as client:
        response = await client.get("/builds")
    assert response.headers["WWW-Authenticate"] == 'Bearer realm="hypeman"'


async def test_the_scheme_is_not_case_sensitive(api: Api) -> None:
    async with api.client(Authorization=f"bearer {token()}") as client:
        assert (await client.get("/builds")).status_code == 200


async def test_two_credentials_are_none(api: Api) -> None:
    given = [("Authorization", f"Bearer {token(tenant)}") for tenant in ("acme", "globex")]
    async with api.client() as client:
        response = await client.get("/builds", headers=given)
        assert response.status_code == 401
        assert "more than one" in response.json()["message"]


class TestCreateToken:
    """POST /tokens."""

    async def test_the_token_works_and_has_what_was_asked(self, api: Api) -> None:
        asked = {
            "subject": "ci",
            "tenant": "acme",
            "permissions": ["build:read", "image:*"],
            "lifetime_seconds": 60,
        }
        api.fake.now = 2_000_000_000
        async with api.client(**ADMIN) as client:
            response = await client.post("/tokens", json=asked)
        assert response.status_code == 201
        said = jwt.decode(
            response.json()["token"], API_KEY, ["HS256"], options={"verify_iat": False}
        )
        assert said == {
            "sub": "ci",
            "tenant": "acme",
            "iat": 2_000_000_000,
            "exp": 2_000_000_060,
            "permissions": ["build:read", "image:delete", "image:read", "image:write"],
        }

    async def test_by_default_it_has_all_but_the_administrators_permission(self, api: Api) -> None:
        async with api.client(**ADMIN) as client:
            response = await client.post("/tokens", json={"subject": "ci"})
        said = jwt.decode(
            response.json()["token"], API_KEY, ["HS256"], options={"verify_iat": False}
        )
        assert "permissions" not in said
        assert said["tenant"] == "ci"

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"{",
            b"[" * 30_000,
            b"[]",
            b"{}",
            b'{"subject": ""}',
            b'{"subject": 1}',
            b'{"subject": "No Tenant"}',
            b'{"subject": "a", "tenant": "../x"}',
            b'{"subject": "a", "permissions": "build:read"}',
            b'{"subject": "a", "permissions": ["build:everything"]}',
            b'{"subject": "a", "lifetime_seconds": 0}',
            b'{"subject": "a", "lifetime_seconds": 1e9}',
            b'{"subject": "a", "lifetime_seconds": true}',
            b'{"subject": "a", "more": 1}',
        ],
    )
    async def test_nonsense_is_refused(self, api: Api, body: bytes) -> None:
        async with api.client(**ADMIN, **{"Content-Type": "application/json"}) as client:
            response = await client.post("/tokens", content=body)
        assert (response.status_code, response.json()["code"]) == (400, "invalid_request")

    async def test_a_long_body_is_refused(self, api: Api) -> None:
        async with api.client(**ADMIN, **{"Content-Type": "application/json"}) as client:
            response = await client.post("/tokens", content=b" " * 70_000)
        assert (response.status_code, response.json()["code"]) == (413, "payload_too_large")

    async def test_without_a_key_there_are_no_tokens(self, api: Api) -> None:
        keyless = replace(api, deps=replace(api.deps, keys=None))
        front = Front(api=keyless.front._api, registry=None, caller=LOCAL_ADMIN)
        async with keyless.client() as client:
            client._transport.app = front  # type: ignore[attr-defined]
            response = await client.post("/tokens", json={"subject": "ci"})
        assert (response.status_code, response.json()["code"]) == (503, "builder_not_ready")
