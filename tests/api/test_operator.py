"""The operator's routes: retrying, the queue, machines, images, the system."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from supervisor.model.build import Status
from supervisor.model.ids import BuildId
from tests.api.conftest import ADMIN, SOURCE, Api, bearer
from tests.fakes.operations import FakeImages, stored_image


def images_of(api: Api) -> FakeImages:
    assert isinstance(api.deps.images, FakeImages)
    return api.deps.images


async def get(api: Api, path: str, headers: dict[str, str] = ADMIN) -> Any:
    async with api.client(**headers) as client:
        response = await client.get(path)
    assert response.status_code == 200, response.text
    return response.json()


class TestRetry:
    """POST /builds/{id}/retry."""

    async def test_a_new_build_has_the_same_source_and_fields(self, api: Api) -> None:
        first = await api.submit(target="app", tags='{"team": "a"}', no_cache="true")
        api.fake.finish(first, Status.FAILED)
        async with api.client(**bearer("acme")) as client:
            response = await client.post(f"/builds/{first}/retry")
        assert response.status_code == 202
        second = BuildId(response.json()["id"])
        assert response.headers["Location"] == f"/builds/{second}"
        assert second != first
        old, new = api.fake.builds[first], api.fake.builds[second]
        assert (new.request, new.source, new.tenant) == (old.request, old.source, old.tenant)
        assert (new.status, new.attempt) == (Status.QUEUED, 0)
        assert api.fake.upload_path(second).read_bytes() == SOURCE

    async def test_the_source_outlives_the_build_that_it_came_with(self, api: Api) -> None:
        first = await api.submit_finished()
        async with api.client(**bearer("acme")) as client:
            second = BuildId((await client.post(f"/builds/{first}/retry")).json()["id"])
            assert (await client.delete(f"/builds/{first}?purge=true")).status_code == 204
        assert api.fake.upload_path(second).read_bytes() == SOURCE

    async def test_what_has_not_ended_is_not_retried(self, api: Api) -> None:
        build_id = await api.submit()
        async with api.client(**bearer("acme")) as client:
            response = await client.post(f"/builds/{build_id}/retry")
        assert (response.status_code, response.json()["code"]) == (409, "conflict")
        assert "queued" in response.json()["message"]

    async def test_without_its_source_a_build_cannot_be_retried(self, api: Api) -> None:
        build_id = await api.submit_finished()
        api.fake.upload_path(build_id).unlink()
        async with api.client(**bearer("acme")) as client:
            response = await client.post(f"/builds/{build_id}/retry")
        assert (response.status_code, response.json()["code"]) == (409, "conflict")
        assert "submit it anew" in response.json()["message"]
        assert len(api.fake.builds) == 1

    async def test_a_key_makes_one_build(self, api: Api) -> None:
        build_id, other = await api.submit_finished(), await api.submit_finished()
        headers = {**bearer("acme"), "Idempotency-Key": "again"}
        async with api.client(**headers) as client:
            first = await client.post(f"/builds/{build_id}/retry")
            second = await client.post(f"/builds/{build_id}/retry")
            conflict = await client.post(f"/builds/{other}/retry")
        assert (first.status_code, second.status_code, conflict.status_code) == (202, 200, 409)
        assert first.json()["id"] == second.json()["id"]

    async def test_a_repeated_retry_needs_no_source(self, api: Api) -> None:
        build_id = await api.submit_finished()
        headers = {**bearer("acme"), "Idempotency-Key": "again"}
        async with api.client(**headers) as client:
            first = await client.post(f"/builds/{build_id}/retry")
            api.fake.upload_path(build_id).unlink()
            second = await client.post(f"/builds/{build_id}/retry")
        assert (first.status_code, second.status_code) == (202, 200)
        assert second.json()["id"] == first.json()["id"]
        assert second.headers["Location"] == f"/builds/{first.json()['id']}"

    async def test_an_administrators_retry_belongs_to_the_tenant(self, api: Api) -> None:
        build_id = await api.submit_finished()
        async with api.client(**ADMIN) as client:
            response = await client.post(f"/builds/{build_id}/retry")
        assert response.json()["tenant"] == "acme"

    async def test_limits_are_those_of_now_and_rights_those_of_the_caller(self, api: Api) -> None:
        build_id = await api.submit_finished()
        build = api.fake.builds[build_id]
        policy = replace(build.request.policy, timeout_seconds=9000, cpus=4)
        request = replace(build.request, policy=policy, export_global_cache=True)
        api.fake.change(replace(build, request=request))
        smaller = api.with_settings(max_build_timeout=700, max_build_cpus=2)
        async with smaller.client(**bearer("acme")) as client:
            response = await client.post(f"/builds/{build_id}/retry")
        again = api.fake.builds[BuildId(response.json()["id"])].request
        assert (again.policy.timeout_seconds, again.policy.cpus) == (700, 2)
        assert not again.export_global_cache


class TestEvidence:
    """GET /builds/{id}/evidence."""

    async def test_the_operator_sees_what_a_machine_left(self, api: Api) -> None:
        build_id = await api.submit()
        api.fake.evidence_of[build_id] = b"[console]\nthe last words\n"
        async with api.client(**ADMIN) as client:
            response = await client.get(f"/builds/{build_id}/evidence")
        assert (response.status_code, response.text) == (200, "[console]\nthe last words\n")
        assert response.headers["Content-Type"] == "text/plain; charset=utf-8"
        assert response.headers["X-Content-Type-Options"] == "nosniff"

    async def test_its_owner_does_not(self, api: Api) -> None:
        build_id = await api.submit()
        api.fake.evidence_of[build_id] = b"[VMM]\na file of the host\n"
        async with api.client(**bearer("acme")) as client:
            response = await client.get(f"/builds/{build_id}/evidence")
        assert response.status_code == 403
        assert "file" not in response.text


class TestQueueAndMachines:
    """GET /queue, GET /machines."""

    async def test_a_tenant_sees_its_own(self, api: Api) -> None:
        mine, waiting, others = [await api.submit(tenant) for tenant in ("acme", "acme", "rival")]
        api.fake.start(mine)
        shown = await get(api, "/queue", bearer("acme"))
        assert [build["id"] for build in shown["running"]] == [mine]
        assert [build["id"] for build in shown["waiting"]] == [waiting]
        assert shown["waiting"][0]["queue_position"] == 1
        assert (shown["capacity"], shown["draining"]) == (2, False)
        everybodys = await get(api, "/queue")
        assert [build["id"] for build in everybodys["waiting"]] == [waiting, others]

    async def test_a_running_build_has_a_machine(self, api: Api) -> None:
        build_id = await api.submit()
        (idle,) = await get(api, "/machines")
        assert (idle["state"], "build" in idle, "tenant" in idle) == ("idle", False, False)
        api.fake.start(build_id)
        machine, _ = await get(api, "/machines")
        assert (machine["id"], machine["state"]) == (f"{build_id}-1", "building")
        assert (machine["build"], machine["tenant"]) == (build_id, "acme")
        assert (machine["cpus"], machine["memory_mb"]) == (2, 2048)
        assert (machine["pid"], machine["rss_bytes"]) == (4711, 1 << 29)
        assert not {"pid", "rss_bytes"} & idle.keys()


class TestImages:
    """GET and DELETE below /images, POST /images/prune."""

    @pytest.fixture
    async def api(self, api: Api) -> Api:
        images_of(api).images = [
            stored_image("acme/app", "1", "latest"),
            stored_image("acme/app", digest="e"),
            stored_image("rival/app", "1"),
        ]
        return api

    async def test_a_tenant_lists_its_own(self, api: Api) -> None:
        shown = await get(api, "/images", bearer("acme"))
        assert [(image["repository"], image["tags"]) for image in shown] == [
            ("acme/app", ["1", "latest"]), ("acme/app", []),
        ]  # fmt: skip
        assert shown[0]["image_ref"] == "registry.example:5000/acme/app:1"
        assert shown[1]["image_ref"] == f"registry.example:5000/acme/app@sha256:{'e' * 64}"
        assert len(await get(api, "/images")) == 3
        assert await get(api, "/images?repository=rival/app", bearer("acme")) == []

    async def test_pages_lead_to_each_other(self, api: Api) -> None:
        found, path = [], "/images?limit=1"
        async with api.client(**ADMIN) as client:
            while path:
                response = await client.get(path)
                found += [image["digest"] for image in response.json()]
                path = response.links.get("next", {}).get("url", "")
        assert found == [f"sha256:{char * 64}" for char in ("d", "e", "d")]

    @pytest.mark.parametrize(
        "name",
        [
            "acme/app:1",
            "acme/app",
            "app:1",
            f"acme/app@sha256:{'d' * 64}",
            f"acme/app:1@sha256:{'d' * 64}",
            "registry.example:5000/acme/app:1",
            "acme%2Fapp:1",
        ],
    )
    async def test_an_image_has_many_names(self, api: Api, name: str) -> None:
        shown = await get(api, f"/images/{name}", bearer("acme"))
        assert shown["digest"] == f"sha256:{'d' * 64}"
        assert shown["manifest"]["layers"][0]["size"] == 1200
        assert shown["config"]["architecture"] == "amd64"
        assert shown["config"]["created"] is None

    @pytest.mark.parametrize(
        "name",
        [
            "acme/app:2",
            "app@x",
            "acme/APP",
            "acme//app",
            "..",
            "acme/app:1:2",
            "acme/app@",
            ":",
            "@",
        ],
    )
    async def test_what_is_not_there_is_404(self, api: Api, name: str) -> None:
        for method in ("GET", "DELETE"):
            async with api.client(**bearer("acme")) as client:
                response = await client.request(method, f"/images/{name}")
            assert (response.status_code, response.json()["code"]) == (404, "not_found")

    async def test_another_tenants_image_does_not_exist(self, api: Api) -> None:
        for method in ("GET", "DELETE"):
            async with api.client(**bearer("acme")) as client:
                foreign = await client.request(method, "/images/rival/app:1")
                absent = await client.request(method, "/images/rival/app:2")
            assert foreign.status_code == 404
            assert foreign.text == absent.text
        assert len(images_of(api).images) == 3

    async def test_an_image_that_goes_while_it_is_read_is_404(self, api: Api) -> None:
        images_of(api).documents_are_gone = True
        async with api.client(**ADMIN) as client:
            assert (await client.get("/images/acme/app:1")).status_code == 404

    @pytest.mark.parametrize(
        "config",
        [None, b"", b"[]", b"{", b"[" * 100_000, b'{"a": NaN}', b'{"a": 1e999}', b"\xff"],
    )
    async def test_a_configuration_that_is_none_is_left_out(
        self, api: Api, config: bytes | None
    ) -> None:
        images_of(api).config = config
        shown = await get(api, "/images/acme/app:1")
        assert "config" not in shown
        assert shown["manifest"]["schemaVersion"] == 2

    async def test_a_deep_configuration_is_shown_as_it_is(self, api: Api) -> None:
        images_of(api).config = b'{"a": ' + b"[" * 300 + b"]" * 300 + b"}"
        shown = await get(api, "/images/acme/app:1")
        assert json.dumps(shown["config"]).count("[") == 300

    async def test_removing_takes_tags_first(self, api: Api) -> None:
        async with api.client(**bearer("acme")) as client:
            assert (await client.delete("/images/app:1")).status_code == 204
            assert (await client.get("/images/app:1")).status_code == 404
            assert (await client.get("/images/app:latest")).status_code == 200
            assert (await client.delete("/images/app")).status_code == 204
        assert [image.digest[7] for image in images_of(api).images] == ["e", "d"]

    async def test_what_an_index_is_made_of_stays(self, api: Api) -> None:
        digest = images_of(api).images[1].digest
        images_of(api).parts.add(digest)
        async with api.client(**bearer("acme")) as client:
            response = await client.delete(f"/images/acme/app@{digest}")
        assert (response.status_code, response.json()["code"]) == (409, "conflict")

    async def test_pruning_is_within_the_tenant_and_may_be_tried(self, api: Api) -> None:
        api.fake.now = 2e9
        images_of(api).images.append(stored_image("rival/old"))
        async with api.client(**bearer("acme")) as client:
            tried = await client.post("/images/prune", json={"dry_run": True})
            done = await client.post("/images/prune", json={"older_than_seconds": 60})
        assert tried.json() == {**done.json(), "dry_run": True}
        assert (done.json()["manifests"], done.json()["freed_bytes"]) == (1, 1_234_567)
        assert [wish.tenant for wish in images_of(api).wishes] == ["acme", "acme"]
        assert [wish.before for wish in images_of(api).wishes] == [2e9 - 3600, 2e9 - 60]
        assert all(wish.images_only for wish in images_of(api).wishes)
        assert len(images_of(api).images) == 3

    @pytest.mark.parametrize(
        "body", [b"", b"[]", b'{"older_than_seconds": -1}', b'{"dry_run": 1}', b'{"caches": true}']
    )
    async def test_a_wrong_wish_prunes_nothing(self, api: Api, body: bytes) -> None:
        headers = {**ADMIN, "Content-Type": "application/json"}
        async with api.client(**headers) as client:
            response = await client.post("/images/prune", content=body)
        assert (response.status_code, response.json()["code"]) == (400, "invalid_request")
        assert images_of(api).wishes == []


class TestSystem:
    """GET /system/info, /system/config and /system/df, POST /system/prune."""

    async def test_info_tells_about_daemon_and_host(self, api: Api) -> None:
        await api.submit_finished()
        shown = await get(api, "/system/info")
        assert shown["ready"] is True
        assert (shown["platform"], shown["builds"]["ready"]) == ("q35/tcg", 1)
        assert shown["builder_image"]["components"] == {"buildkit": "v0.32.2"}
        assert shown["host"]["disk_free_bytes"] == 40 << 30
        api.fake.why_not_ready = "the disk is full"
        shown = await get(api, "/system/info")
        assert (shown["ready"], shown["why_not_ready"]) == (False, "the disk is full")

    async def test_the_configuration_has_no_secret_in_it(self, api: Api) -> None:
        secret = "s3cret-" * 6
        api = api.with_settings(jwt_secret=secret)
        settings = type(api.deps.settings).model_validate({"jwt_secret": secret, "port": 9000})
        api = replace(api, deps=replace(api.deps, settings=settings))
        async with api.client(**ADMIN) as client:
            response = await client.get("/system/config")
        assert secret not in response.text
        shown = {setting["name"]: setting for setting in response.json()}
        assert shown["JWT_SECRET"] == {
            "name": "JWT_SECRET", "value": "(hidden)", "is_default": False,
        }  # fmt: skip
        assert shown["PORT"] == {"name": "PORT", "value": 9000, "is_default": False}
        assert shown["REGISTRY_SECRET"] == {"name": "REGISTRY_SECRET", "is_default": True}
        assert shown["EGRESS_PORTS"]["value"] == "80,443"

    async def test_disk_usage_has_a_line_for_each_kind(self, api: Api) -> None:
        shown = await get(api, "/system/df")
        assert [usage["kind"] for usage in shown] == ["images", "registry"]
        assert shown[1]["reclaimable_bytes"] == 1024

    async def test_a_wish_is_passed_on(self, api: Api) -> None:
        api.fake.now = 2e9
        body = {"older_than_seconds": 60, "caches": True, "sources": True}
        async with api.client(**ADMIN) as client:
            response = await client.post("/system/prune", json=body)
        assert response.status_code == 200
        (wish,) = images_of(api).wishes
        assert (wish.before, wish.caches, wish.sources) == (2e9 - 60, True, True)
        assert (wish.images_only, wish.tenant) == (False, None)
