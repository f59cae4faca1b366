"""The API on the real actors: what a tenant's share of the host means to those who submit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from supervisor.actors.operator import OperatorService
from supervisor.actors.queue import QueueLimits
from supervisor.actors.schedule import Capacity
from supervisor.model.build import Status
from supervisor.model.cache import SCOPE_PATTERN
from supervisor.model.host import HostFacts
from supervisor.model.ids import BuildId
from tests.actors.world import open_world
from tests.api.conftest import ADMIN, Api, bearer
from tests.fakes.agent import Working, agent
from tests.fakes.hypervisor import FakeHypervisor

FACTS = HostFacts(0.0, "qemu", "q35/tcg", "builder:latest", f"sha256:{'b' * 64}", {})


async def get(api: Api, path: str, headers: dict[str, str]) -> Any:
    async with api.client(**headers) as client:
        response = await client.get(path)
    assert response.status_code == 200, response.text
    return response.json()


async def test_a_tenant_with_its_share_waits_while_another_one_starts(
    api: Api, tmp_path: Path
) -> None:
    working, directory = Working(), tmp_path / "world"
    directory.mkdir()
    async with open_world(
        directory,
        hypervisor=FakeHypervisor(agent(working)),
        max_concurrent_source_builds=3,
        max_concurrent_builds_per_tenant=1,
    ) as world:
        operator = OperatorService(
            world.ledger,
            world.queue,
            world.runner,
            QueueLimits(Capacity(3, 1), 10),
            world.pool,
            FACTS,
            world.settings,
        )
        api = replace(api, deps=replace(api.deps, builds=world.builds, operator=operator))
        first, second = await api.submit("acme"), await api.submit("acme")
        other = await api.submit("rival")
        for each in (first, other):
            await world.wait_status(each, Status.BUILDING)
        shown = await get(api, f"/builds/{second}", bearer("acme"))
        assert (shown["status"], shown["queue_position"]) == ("queued", 1)
        queue = await get(api, "/queue", ADMIN)
        assert (queue["capacity"], queue["capacity_per_tenant"]) == (3, 1)
        assert {BuildId(build["id"]) for build in queue["running"]} == {first, other}
        assert [build["id"] for build in queue["waiting"]] == [second]
        rivals = await get(api, "/queue", bearer("rival"))
        assert ([build["id"] for build in rivals["running"]], rivals["waiting"]) == ([other], [])
        working.may_finish.set()
        await world.wait_end(second)
        assert (await get(api, f"/builds/{second}", bearer("acme")))["status"] == "ready"


async def test_the_description_has_the_grammar_of_a_scope(api: Api) -> None:
    text = str(await get(api, "/spec.json", {}))
    assert SCOPE_PATTERN in text
