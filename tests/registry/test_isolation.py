"""Who sees what: tokens of tenants, of builds, of administrators, of nobody."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from supervisor.model.ids import BuildId, Tenant
from supervisor.runtime.clock import wall_clock
from supervisor.tokens import (
    LOCAL_ADMIN,
    Caller,
    Permission,
    RepoGrant,
    mint_api_token,
    mint_registry_token,
)
from tests.registry.client import Client, basic
from tests.registry.images import CONFIG, LAYER, descriptor, digest_of, image
from tests.registry.serve import (
    KEYS,
    Served,
    admin_token,
    api_token,
    open_registry,
)

MINE = BuildId("0" * 23 + "1")
SIBLING = BuildId("0" * 23 + "2")
FOREIGN = BuildId("0" * 23 + "3")
TENANTS = {MINE: Tenant("acme"), SIBLING: Tenant("acme"), FOREIGN: Tenant("evil")}

APP = image({"a": b"secret"})


async def tenant_of_build(build: BuildId) -> Tenant | None:
    return TENANTS.get(build)


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    """A registry with an image in every kind of repository."""
    with trio.fail_after(60):
        async with open_registry(tmp_path / "data", tenant_of_build=tenant_of_build) as registry:
            admin = Client(registry.app, admin_token())
            for repository in PLACES:
                await admin.push(repository, APP, "1")
            yield registry


PLACES = (
    f"builds/{MINE}",
    f"builds/{SIBLING}",
    f"builds/{FOREIGN}",
    "cache/acme/web",
    "cache/acme/other",
    "cache/evil/web",
    "cache/global/go",
    "acme/app",
    "evil/app",
    "base/debian",
    "mirror/docker.io/library/alpine",
)


def build_token(build: BuildId, *grants: RepoGrant) -> str:
    return mint_registry_token(
        KEYS.registry,
        subject=f"builder-{build}",
        build_id=build,
        grants=[RepoGrant(f"builds/{build}", "push"), *grants],
        now=wall_clock(),
        lifetime_seconds=600,
    )


async def readable(client: Client) -> set[str]:
    """Return where the image can be read; everywhere else must look as if it were not there."""
    found = set()
    layer = APP.blobs[1]
    for repository in PLACES:
        answers = [
            await client("GET", f"/v2/{repository}/manifests/1"),
            await client("GET", f"/v2/{repository}/manifests/{APP.digest}"),
            await client("GET", f"/v2/{repository}/tags/list"),
            await client("GET", f"/v2/{repository}/referrers/{APP.digest}"),
            await client("HEAD", f"/v2/{repository}/manifests/1"),
            await client("GET", f"/v2/{repository}/blobs/{digest_of(layer)}"),
        ]
        statuses = {answer.status for answer in answers}
        assert statuses in ({200}, {404}), (repository, statuses)
        if statuses == {200}:
            found.add(repository)
        else:
            assert answers[0].code == "NAME_UNKNOWN"
    return found


async def pushable(client: Client) -> set[str]:
    """Return where an upload may begin."""
    found = set()
    for repository in PLACES:
        answer = await client("POST", f"/v2/{repository}/blobs/uploads/")
        put = await client("PUT", f"/v2/{repository}/manifests/1", APP.manifest)
        if answer.status == 202:
            assert put.status == 201
            found.add(repository)
        else:
            assert (answer.status, answer.code) in ((403, "DENIED"), (401, "UNAUTHORIZED"))
            assert put.status == answer.status
    return found


async def deletable(client: Client) -> set[str]:
    found = set()
    for repository in PLACES:
        answer = await client("DELETE", f"/v2/{repository}/manifests/nothing")
        if answer.status == 404:
            found.add(repository)
        else:
            assert answer.status in (401, 403)
    return found


SHARED = {"base/debian", "mirror/docker.io/library/alpine"}
OWN = {"acme/app", f"builds/{MINE}", f"builds/{SIBLING}"}


async def test_a_tenant_sees_its_own_and_the_shared(served: Served) -> None:
    client = Client(served.app, api_token(Tenant("acme")))
    assert await readable(client) == OWN | SHARED
    assert await pushable(client) == {"acme/app"}
    assert await deletable(client) == {"acme/app"}


async def test_a_permission_that_is_absent_is_missed(served: Served) -> None:
    reader = Client(served.app, api_token(permissions=frozenset({Permission.IMAGE_READ})))
    assert await readable(reader) == OWN | SHARED
    assert await pushable(reader) == set()
    assert await deletable(reader) == set()
    nothing = Client(served.app, api_token(permissions=frozenset({Permission.BUILD_WRITE})))
    assert await readable(nothing) == set()
    assert await pushable(nothing) == set()


async def test_a_build_token_is_held_to_its_build(served: Served) -> None:
    grant = RepoGrant("cache/acme/web", "push")
    client = Client(served.app, build_token(MINE, grant))
    assert await readable(client) == OWN | SHARED | {"cache/acme/web", "cache/global/go"}
    assert await pushable(client) == {f"builds/{MINE}", "cache/acme/web"}
    assert await deletable(client) == set()


async def test_the_token_of_a_removed_build_is_worth_its_grants_only(served: Served) -> None:
    gone = BuildId("0" * 23 + "9")
    client = Client(served.app, build_token(gone, RepoGrant("base/debian", "pull")))
    assert await readable(client) == {"base/debian"}


async def test_an_administrator_may_do_everything(served: Served) -> None:
    client = Client(served.app, admin_token())
    assert await readable(client) == set(PLACES)
    assert await pushable(client) == set(PLACES)
    assert await deletable(client) == set(PLACES)
    answer = await client("GET", "/v2/_catalog?n=2")
    assert answer.json == {"repositories": sorted(PLACES)[:2]}
    assert "link" in answer.headers


async def test_a_trusted_connection_needs_no_token(tmp_path: Path) -> None:
    async with open_registry(tmp_path / "data", caller=LOCAL_ADMIN) as registry:
        client = Client(registry.app)
        await client.push("base/debian", APP, "1")
        assert await client.status_of("/v2/_catalog") == 200


async def test_a_trusted_connection_of_somebody_is_held_to_what_he_may(tmp_path: Path) -> None:
    caller = Caller("x", Tenant("acme"), frozenset({Permission.IMAGE_READ}))
    async with open_registry(tmp_path / "data", caller=caller) as registry:
        client = Client(registry.app)
        assert await client.status_of("/v2/acme/app/blobs/uploads/", "POST") == 403


async def test_nobody_is_asked_for_a_token(served: Served) -> None:
    client = Client(served.app, host="localhost:8083")
    for method, target, scope in (
        ("GET", "/v2/", ""),
        ("GET", "/v2/acme/app/manifests/1", "repository:acme/app:pull"),
        ("HEAD", "/v2/acme/none/manifests/1", "repository:acme/none:pull"),
        ("POST", "/v2/acme/app/blobs/uploads/", "repository:acme/app:pull,push"),
        ("DELETE", "/v2/acme/app/manifests/1", "repository:acme/app:delete"),
        ("GET", "/v2/_catalog", "registry:catalog:*"),
    ):
        answer = await client(method, target)
        assert answer.status == 401
        expected = 'Bearer realm="http://localhost:8083/v2/token",service="hypeman"'
        if scope:
            expected += f',scope="{scope}"'
        assert answer.headers["www-authenticate"] == expected
        assert answer.code == "UNAUTHORIZED"


@pytest.mark.parametrize(
    "host",
    ["", 'x"', "a b", "x\r\ny", "http://x", "x/y", "x:", "x:port", "[::1", "x" * 300, "é"],
)
async def test_a_hostile_host_is_not_repeated(served: Served, host: str) -> None:
    answer = await Client(served.app, host=host)("GET", "/v2/")
    assert 'realm="http://registry.test:5000/v2/token"' in answer.headers["www-authenticate"]


@pytest.mark.parametrize("host", ["localhost", "10.102.0.1:8083", "[::1]:5000", "a.b-c.example:1"])
async def test_a_plain_host_is(served: Served, host: str) -> None:
    answer = await Client(served.app, host=host)("GET", "/v2/")
    assert f'realm="http://{host}/v2/token"' in answer.headers["www-authenticate"]


@pytest.mark.parametrize(
    "authorization",
    [
        "Bearer junk",
        "Bearer ",
        "Bearer a.b.c",
        "Basic !!!",
        "Basic bm9jb2xvbg==",
        basic("wrong"),
        "Digest x",
        "Bearer " + "x" * 100_000,
    ],
)
async def test_a_credential_that_is_not_valid_is_refused(
    served: Served, authorization: str
) -> None:
    client = Client(served.app)
    client.authorization = authorization
    answer = await client("GET", "/v2/acme/app/manifests/1")
    assert (answer.status, answer.code) == (401, "UNAUTHORIZED")
    assert 'error="invalid_token"' in answer.headers["www-authenticate"]


async def test_tokens_that_are_over_or_of_another_key_are_refused(served: Served) -> None:
    now = wall_clock()
    for token in (
        api_token(lifetime_seconds=-60),
        mint_api_token(b"x" * 32, subject="acme", now=now, lifetime_seconds=60),
        # Each key signs its own kind only.
        mint_api_token(KEYS.registry, subject="acme", now=now, lifetime_seconds=60),
        mint_registry_token(
            KEYS.api,
            subject="x",
            grants=[RepoGrant("acme/app", "pull")],
            now=now,
            lifetime_seconds=60,
        ),
    ):
        answer = await Client(served.app, token)("GET", "/v2/acme/app/manifests/1")
        assert answer.status == 401


async def test_a_token_is_taken_as_basic_password_and_as_user_name(served: Served) -> None:
    client = Client(served.app)
    for user, password in (("x", api_token()), ("", api_token()), (api_token(), "x")):
        client.authorization = basic(password, user)
        assert await client.status_of("/v2/acme/app/manifests/1") == 200


async def test_a_blob_is_not_mounted_out_of_a_foreign_repository(served: Served) -> None:
    client = Client(served.app, api_token(Tenant("mallory")))
    secret = digest_of(APP.blobs[1])
    admin = Client(served.app, admin_token())
    for repository in SHARED:  # or it would be readable anyway
        await admin("DELETE", f"/v2/{repository}/manifests/{APP.digest}")
        await admin("DELETE", f"/v2/{repository}/blobs/{secret}")
    for query in (f"?mount={secret}&from=acme/app", f"?mount={secret}"):
        answer = await client("POST", f"/v2/mallory/app/blobs/uploads/{query}")
        assert answer.status == 202
    assert await client.status_of(f"/v2/mallory/app/blobs/{secret}") == 404


@pytest.mark.parametrize("config", [APP.blobs[0], b"what nobody has"])
async def test_a_refused_manifest_does_not_tell_what_others_have_stored(
    served: Served, config: bytes
) -> None:
    client = Client(served.app, api_token(Tenant("mallory")))
    lists = image(
        config=descriptor(CONFIG, config), layers=[descriptor(LAYER, b"nor anybody has this")]
    )
    answer = await client.push_manifest("mallory/app", lists, "1")
    assert (answer.status, answer.code) == (400, "MANIFEST_BLOB_UNKNOWN")
    wanted = [digest_of(config), digest_of(b"nor anybody has this")]
    assert answer.json["errors"][0]["detail"] == wanted


@pytest.mark.parametrize(
    "path",
    [
        "/v2/../etc",
        "/v2/acme/../evil/app/manifests/1",
        "/v2/acme//app/manifests/1",
        "/v2/ACME/app/manifests/1",
        "/v2/acme/app%00/manifests/1",
        "/v2/acme/app\n/manifests/1",
        "/v2/" + "a" * 300 + "/manifests/1",
        "/v2/" + "a" * 5000 + "/manifests/1",
        "/v2/acme/app/manifests/" + "x" * 200,
        "/v2/acme/app/manifests/.hidden",
        "/v2/acme/app/blobs/nonsense",
        "/v2/acme/app/blobs/uploadsx",
        "/v2/acme/app/nothing",
        "/v2/nothing",
        "/v2x",
    ],
)
async def test_hostile_paths_get_an_error_in_json(served: Served, path: str) -> None:
    answer = await Client(served.app, admin_token())("GET", path)
    assert answer.status in (400, 404)
    assert answer.code in {
        "NAME_INVALID",
        "UNSUPPORTED",
        "DIGEST_INVALID",
        "MANIFEST_INVALID",
        "NAME_UNKNOWN",
    }


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v2/acme/app/manifests/1"),
        ("PATCH", "/v2/acme/app/blobs/sha256:" + "0" * 64),
        ("GET", "/v2/acme/app/blobs/uploads/"),
        ("PUT", "/v2/acme/app/tags/list"),
        ("POST", "/v2/"),
        ("DELETE", "/v2/_catalog"),
        ("BREW", "/v2/acme/app/manifests/1"),
        ("DELETE", "/v2/token"),
    ],
)
async def test_a_method_that_a_route_does_not_have_is_refused_in_json(
    served: Served, method: str, path: str
) -> None:
    answer = await Client(served.app, admin_token())(method, path)
    assert (answer.status, answer.code) == (405, "UNSUPPORTED")


async def test_absurd_queries_are_refused(served: Served) -> None:
    client = Client(served.app, admin_token())
    query = "&".join(f"a{number}=1" for number in range(100))
    answer = await client("GET", f"/v2/acme/app/tags/list?{query}")
    assert (answer.status, answer.code) == (400, "UNSUPPORTED")
