"""Reading, listing, cancelling and purging builds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from supervisor.model.build import NetworkMode, Phase, Provenance, Reason, Status, Step
from supervisor.model.ids import BuildId
from tests.api.conftest import Api, bearer


async def get(api: Api, path: str) -> object:
    async with api.client(**bearer()) as client:
        response = await client.get(path)
    assert response.status_code == 200, response.text
    return response.json()


async def test_a_ready_build_shows_everything(api: Api) -> None:
    build_id = await api.submit(tags='{"a": "b"}')
    build = api.fake.builds[build_id]
    policy = replace(
        build.request.policy, network_mode=NetworkMode.EGRESS, allowed_domains=("a.org",)
    )
    api.fake.change(
        replace(
            build,
            status=Status.READY,
            attempt=2,
            started_at=build.created_at + 1.5,
            completed_at=build.created_at + 10.25,
            request=replace(build.request, policy=policy),
            image_digest="sha256:" + "1" * 64,
            phases={Phase.QUEUE: 1.5, Phase.BUILD: 7.0004},
            provenance=Provenance(
                source_hash="sha256:" + "2" * 64,
                builder_image_digest="sha256:" + "3" * 64,
                timestamp=build.created_at,
                lockfile_hashes={"go.sum": "sha256:4"},
                buildkit_version="v0.32.0",
            ),
        )
    )
    assert await get(api, f"/builds/{build_id}") == {
        "id": build_id,
        "status": "ready",
        "tenant": "acme",
        "tags": {"a": "b"},
        "policy": {
            "timeout_seconds": 600,
            "memory_mb": 2048,
            "cpus": 2,
            "network_mode": "egress",
            "allowed_domains": ["a.org"],
        },
        "attempt": 2,
        "created_at": "2027-01-15T08:00:00.000Z",
        "started_at": "2027-01-15T08:00:01.500Z",
        "completed_at": "2027-01-15T08:00:10.250Z",
        "duration_ms": 8750,
        "phases": {"queue": 1500, "build": 7000},
        "image_digest": "sha256:" + "1" * 64,
        "image_ref": f"registry.example:5000/builds/{build_id}",
        "provenance": {
            "source_hash": "sha256:" + "2" * 64,
            "builder_image_digest": "sha256:" + "3" * 64,
            "timestamp": "2027-01-15T08:00:00.000Z",
            "lockfile_hashes": {"go.sum": "sha256:4"},
            "buildkit_version": "v0.32.0",
        },
    }


async def test_a_named_image_is_referred_to_by_its_name(api: Api) -> None:
    build_id = await api.submit(image_name="team/app:1")
    assert "image_ref" not in await get(api, f"/builds/{build_id}")  # type: ignore[operator]
    api.fake.finish(build_id, Status.READY)
    shown = await get(api, f"/builds/{build_id}")
    assert shown["image_ref"] == "registry.example:5000/acme/team/app:1"  # type: ignore[index]


async def test_a_failed_build_says_why(api: Api) -> None:
    build_id = await api.submit()
    build = api.fake.builds[build_id]
    api.fake.change(
        replace(
            build,
            status=Status.FAILED,
            completed_at=build.created_at + 5,
            error_code=Reason.BUILD_FAILED,
            error="RUN false: exit code 1",
        )
    )
    shown = await get(api, f"/builds/{build_id}")
    assert isinstance(shown, dict)
    assert (shown["error_code"], shown["error"]) == ("build_failed", "RUN false: exit code 1")
    assert shown["duration_ms"] == 0
    assert "started_at" not in shown
    assert "queue_position" not in shown


@pytest.mark.parametrize("id", ["0" * 24, "0", "0" * 25, "A" * 24, "..", "%2e%2e", "a%00b", "ä"])
async def test_a_missing_build_is_not_found(api: Api, id: str) -> None:
    async with api.client(**bearer()) as client:
        for route in ("", "/logs", "/events", "/steps"):
            response = await client.get(f"/builds/{id}{route}")
            assert response.status_code == 404, route
            assert response.json()["code"] == "not_found"


async def test_steps_are_shown_as_reported(api: Api) -> None:
    build_id = await api.submit()
    assert await get(api, f"/builds/{build_id}/steps") == []
    api.fake.steps_of[build_id] = (
        Step("sha256:1", "[1/2] FROM base", 1_800_000_000.5, 1_800_000_001.0, cached=True),
        Step("sha256:2", "[2/2] RUN false", 1_800_000_001.0, error="exit code 1"),
    )
    assert await get(api, f"/builds/{build_id}/steps") == [
        {
            "digest": "sha256:1",
            "name": "[1/2] FROM base",
            "cached": True,
            "started_at": "2027-01-15T08:00:00.500Z",
            "completed_at": "2027-01-15T08:00:01.000Z",
        },
        {
            "digest": "sha256:2",
            "name": "[2/2] RUN false",
            "cached": False,
            "started_at": "2027-01-15T08:00:01.000Z",
            "error": "exit code 1",
        },
    ]


class TestList:
    """GET /builds."""

    async def test_newest_first_and_only_ones_own(self, api: Api) -> None:
        mine = [await api.submit() for _ in range(3)]
        await api.submit("rival")
        shown = await get(api, "/builds")
        assert isinstance(shown, list)
        assert [build["id"] for build in shown] == mine[::-1]
        assert [build["queue_position"] for build in shown] == [3, 2, 1]

    async def test_pages_hold_every_build_once_while_others_arrive(self, api: Api) -> None:
        expected = [await api.submit(tags='{"k": "v&=["}') for _ in range(7)][::-1]
        found: list[str] = []
        async with api.client(**bearer()) as client:
            url: str | None = "/builds?limit=2&tags%5Bk%5D=v%26%3D%5B&status=queued"
            while url is not None:
                response = await client.get(url)
                found += [build["id"] for build in response.json()]
                link = response.links.get("next", {}).get("url")
                url = link
                await api.submit(tags='{"k": "v&=["}')
        assert found == expected

    async def test_the_last_full_page_has_no_next(self, api: Api) -> None:
        for _ in range(2):
            await api.submit()
        async with api.client(**bearer()) as client:
            response = await client.get("/builds?limit=2")
        assert len(response.json()) == 2
        assert "Link" not in response.headers

    async def test_filters(self, api: Api) -> None:
        one = await api.submit(tags='{"a": "1", "b": "2"}')
        two = await api.submit(tags='{"a": "1"}')
        api.fake.finish(two, Status.READY)

        async def ids(query: str) -> list[str]:
            shown = await get(api, f"/builds?{query}")
            assert isinstance(shown, list)
            return [build["id"] for build in shown]

        assert await ids("status=queued") == [one]
        assert await ids("status=ready") == [two]
        assert await ids("tags[a]=1") == [two, one]
        assert await ids("tags[a]=1&tags[b]=2") == [one]
        assert await ids("tags[a]=2") == []
        assert await ids(f"cursor={two}") == [one]

    @pytest.mark.parametrize(
        "query",
        [
            "status=done",
            "status=",
            "limit=0",
            "limit=1001",
            "limit=-1",
            "limit=many",
            "cursor=x",
            "cursor=",
            "tags=1",
            "tags[]=1",
            "tags[a]=1&tags[a]=2",
            "limit=1&limit=2",
            "staus=ready",
        ],
    )
    async def test_a_wrong_query_is_refused(self, api: Api, query: str) -> None:
        async with api.client(**bearer()) as client:
            response = await client.get(f"/builds?{query}")
        assert (response.status_code, response.json()["code"]) == (400, "invalid_request")


class TestDelete:
    """DELETE /builds/{id}."""

    async def test_it_cancels_once(self, api: Api) -> None:
        build_id = await api.submit()
        async with api.client(**bearer()) as client:
            first = await client.delete(f"/builds/{build_id}")
            second = await client.delete(f"/builds/{build_id}")
        assert (first.status_code, first.content) == (204, b"")
        assert (second.status_code, second.json()["code"]) == (409, "conflict")
        assert api.fake.builds[build_id].status is Status.CANCELLED

    async def test_purging_is_for_finished_builds(self, api: Api) -> None:
        build_id = await api.submit()
        async with api.client(**bearer()) as client:
            early = await client.delete(f"/builds/{build_id}?purge=true")
            api.fake.finish(build_id, Status.READY)
            done = await client.delete(f"/builds/{build_id}?purge=true")
            gone = await client.get(f"/builds/{build_id}")
        assert (early.status_code, done.status_code, gone.status_code) == (409, 204, 404)

    @pytest.mark.parametrize("query", ["purge=yes", "purge", "force=true"])
    async def test_a_wrong_query_changes_nothing(self, api: Api, query: str) -> None:
        build_id = await api.submit()
        async with api.client(**bearer()) as client:
            response = await client.delete(f"/builds/{build_id}?{query}")
        assert response.status_code == 400
        assert api.fake.builds[build_id].status is Status.QUEUED


class TestHealth:
    """The routes for operators."""

    async def test_ready_says_why_not(self, api: Api) -> None:
        api.fake.why_not_ready = "the builder image is missing: run just image builder"
        async with api.client() as client:
            assert (await client.get("/health")).json() == {"status": "ok"}
            response = await client.get("/ready")
            assert response.status_code == 503
            assert response.json() == {
                "code": "builder_not_ready",
                "message": "the builder image is missing: run just image builder",
            }
            api.fake.why_not_ready = None
            assert (await client.get("/ready")).json() == {"status": "ready"}


class TestErrors:
    """Errors are JSON, whatever they are about."""

    @pytest.mark.parametrize("path", ["/", "/nope", "/builds/", "/builds/x/y/z", "/static/x"])
    async def test_unknown_routes(self, api: Api, path: str) -> None:
        async with api.client(**bearer()) as client:
            response = await client.get(f"http://api{path}")
        assert response.status_code == 404
        assert response.json()["code"] == "not_found"

    @pytest.mark.parametrize("method", ["PUT", "PATCH", "OPTIONS", "TRACE", "BREW"])
    async def test_unknown_methods(self, api: Api, method: str) -> None:
        async with api.client(**bearer()) as client:
            response = await client.request(method, "/builds")
        assert (response.status_code, response.json()["code"]) == (405, "method_not_allowed")
        assert set(response.headers["Allow"].split(", ")) == {"GET", "HEAD", "POST"}

    async def test_a_bug_has_an_id_and_no_traceback(
        self, api: Api, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def fails(_: BuildId) -> None:
            raise ZeroDivisionError("the secret is in-the-message")

        monkeypatch.setattr(api.fake, "get", fails)
        async with api.client(**bearer()) as client:
            response = await client.get("/builds/" + "0" * 24)
        assert response.status_code == 500
        assert response.json()["code"] == "internal_error"
        assert "in-the-message" not in response.text
        assert "Traceback" not in response.text

    async def test_a_websocket_route_answers_plain_requests_with_what_is_missing(
        self, api: Api
    ) -> None:
        async with api.client(**bearer()) as client:
            response = await client.get("/builds/ws")
        assert response.status_code == 400
        assert "websocket" in response.json()["message"]

    async def test_the_registry_has_its_own_paths(self, api: Api) -> None:
        async with api.client() as client:
            assert (await client.get("/v2")).text == "registry /v2"
            assert (await client.get("/v2/")).text == "registry /v2/"
            assert (await client.get("/v2/a/tags/list")).text == "registry /v2/a/tags/list"
            assert (await client.get("/v20")).status_code == 404
