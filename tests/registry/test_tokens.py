"""`/v2/token`: what it takes, what it gives, and for how long."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

import pytest

from supervisor.model.ids import Tenant
from supervisor.runtime.clock import wall_clock
from supervisor.tokens import RepoGrant, mint_registry_token, parse_registry_token
from tests.registry.client import Client, basic
from tests.registry.images import image
from tests.registry.serve import KEYS, Served, admin_token, api_token


async def issue(served: Served, token: str, *scopes: str, **more: str) -> dict[str, Any]:
    client = Client(served.app)
    client.authorization = basic(token)
    pairs = [("service", "hypeman"), *(("scope", scope) for scope in scopes), *more.items()]
    answer = await client("GET", f"/v2/token?{urlencode(pairs)}")
    assert answer.status == 200
    given: dict[str, Any] = answer.json
    assert given["token"] == given["access_token"]
    return given


def grants(given: dict[str, Any]) -> set[tuple[str, str]]:
    caller = parse_registry_token(KEYS.registry, given["token"])
    return {(grant.repo, grant.scope) for grant in caller.grants}


async def test_no_more_than_asked_and_no_more_than_allowed(served: Served) -> None:
    given = await issue(
        served,
        api_token(),
        "repository:acme/app:pull",
        "repository:acme/web:pull,push repository:evil/app:pull,push,delete",
        "repository:base/x:*",
        "registry:catalog:*",
        "nonsense",
        "repository:../x:pull",
    )
    assert grants(given) == {
        ("acme/app", "pull"),
        ("acme/web", "pull"),
        ("acme/web", "push"),
        ("base/x", "pull"),
    }


async def test_a_token_without_a_scope_is_good_for_logging_in(served: Served) -> None:
    given = await issue(served, api_token())
    assert grants(given) == set()
    assert await Client(served.app, given["token"]).status_of("/v2/") == 200


async def test_what_is_issued_works_where_it_was_asked_for_only(served: Served) -> None:
    app = image({"a": b"1"})
    given = await issue(served, api_token(), "repository:acme/app:pull,push")
    client = Client(served.app, given["token"])
    await client.push("acme/app", app, "1")
    await Client(served.app, api_token()).push("acme/web", app, "1")
    answer = await client("GET", "/v2/acme/web/manifests/1")
    assert (answer.status, answer.code) == (404, "NAME_UNKNOWN")


async def test_a_token_too_small_for_a_write_is_told_to_ask_again(served: Served) -> None:
    given = await issue(served, api_token(), "repository:acme/app:pull")
    answer = await Client(served.app, given["token"])("POST", "/v2/acme/app/blobs/uploads/")
    assert answer.status == 401
    challenge = answer.headers["www-authenticate"]
    assert 'scope="repository:acme/app:pull,push"' in challenge
    assert 'error="insufficient_scope"' in challenge


async def test_deletion_is_granted_to_those_who_may(served: Served) -> None:
    await Client(served.app, api_token()).push("acme/app", image(), "1")
    given = await issue(served, api_token(), "repository:acme/app:delete")
    client = Client(served.app, given["token"])
    assert await client.status_of("/v2/acme/app/manifests/1", "DELETE") == 202


async def test_the_catalog_is_granted_to_administrators(served: Served) -> None:
    given = await issue(served, admin_token(), "registry:catalog:*")
    assert await Client(served.app, given["token"]).status_of("/v2/_catalog") == 200
    given = await issue(served, api_token(), "registry:catalog:*")
    assert await Client(served.app, given["token"]).status_of("/v2/_catalog") == 403


async def test_the_token_of_a_build_can_be_exchanged(served: Served) -> None:
    token = mint_registry_token(
        KEYS.registry,
        subject="builder-x",
        grants=[RepoGrant("builds/x", "push")],
        now=wall_clock(),
        lifetime_seconds=60,
    )
    given = await issue(served, token, "repository:builds/x:pull,push", "repository:acme/a:pull")
    assert grants(given) == {("builds/x", "pull"), ("builds/x", "push")}


async def test_what_is_issued_ends_with_what_it_came_from(served: Served) -> None:
    given = await issue(served, api_token(lifetime_seconds=120), "repository:acme/app:pull")
    assert 110 <= given["expires_in"] <= 120
    given = await issue(served, api_token(lifetime_seconds=100_000))
    assert given["expires_in"] == 1800


async def test_a_mount_works_with_a_token_for_the_target_only(served: Served) -> None:
    owner = Client(served.app, api_token())
    digest = await owner.push_blob("acme/app", b"layer")
    given = await issue(served, api_token(), "repository:acme/web:pull,push")
    client = Client(served.app, given["token"])
    answer = await client("POST", f"/v2/acme/web/blobs/uploads/?mount={digest}&from=acme/app")
    assert answer.status == 201
    given = await issue(served, api_token(Tenant("evil")), "repository:evil/web:pull,push")
    client = Client(served.app, given["token"])
    answer = await client("POST", f"/v2/evil/web/blobs/uploads/?mount={digest}&from=acme/app")
    assert answer.status == 202


@pytest.mark.parametrize(
    "fields",
    [
        {"grant_type": "password", "username": "x", "password": "TOKEN"},
        {"grant_type": "refresh_token", "refresh_token": "TOKEN"},
    ],
)
async def test_the_oauth_form_is_taken(served: Served, fields: dict[str, str]) -> None:
    token = api_token()
    form = {key: value.replace("TOKEN", token) for key, value in fields.items()}
    form |= {"scope": "repository:acme/app:pull", "service": "hypeman", "client_id": "test"}
    answer = await Client(served.app)("POST", "/v2/token", urlencode(form).encode())
    assert answer.status == 200
    assert grants(answer.json) == {("acme/app", "pull")}


async def test_nothing_is_issued_without_a_credential(served: Served) -> None:
    for target, body in (
        ("/v2/token?scope=repository:acme/app:pull", b""),
        ("/v2/token", b"grant_type=password&username=x&password=wrong"),
        ("/v2/token", b"grant_type=client_credentials"),
        ("/v2/token", b""),
    ):
        method = "POST" if body else "GET"
        answer = await Client(served.app)(method, target, body)
        assert (answer.status, answer.code) == (401, "UNAUTHORIZED")
        assert answer.headers["www-authenticate"].startswith("Basic ")


async def test_absurd_requests_are_refused(served: Served) -> None:
    client = Client(served.app, api_token())
    answer = await client("POST", "/v2/token", b"x" * 100_000)
    assert answer.status == 413
    scopes = urlencode({"scope": "repository:a/b:pull " * 40})
    assert await client.status_of(f"/v2/token?{scopes}") == 400
