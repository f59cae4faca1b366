"""Builds in the database: what goes in comes out, and filters hold whatever is asked."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor.errors import NotFound
from supervisor.model.build import (
    Build,
    BuildRequest,
    ErrorReason,
    NetworkMode,
    Phase,
    Policy,
    Reason,
    SecretRef,
    Status,
    Step,
)
from supervisor.model.ids import BuildId, Tenant
from supervisor.store import builds
from supervisor.store.builds import BuildFilter
from supervisor.store.database import Database, open_database
from tests.samples import DIGEST, POLICY, PROVENANCE, a_build, build_id


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    async with open_database(tmp_path / "hypeman.db") as opened:
        yield opened


def tagged(number: int, **tags: str) -> Build:
    return a_build(number, request=BuildRequest(POLICY, tags=tags))


async def stored(database: Database, *many: Build) -> None:
    for build in many:
        await database.run(builds.insert_build, build)


async def listed(database: Database, **wanted: object) -> list[BuildId]:
    found = await database.run(
        builds.list_builds,
        BuildFilter(**{"limit": 100, **wanted}),  # type: ignore[arg-type]
    )
    return [build.id for build in found]


FULL = a_build(
    request=BuildRequest(
        Policy(5, 512, 1, NetworkMode.ISOLATED, ("example.org",)),
        dockerfile="FROM scratch\n\u2028é\n",
        build_args={"A": '"', "": "x"},
        tags={"k": "v"},
        secrets=(SecretRef("a", "A"), SecretRef("b")),
        image_name="app:1",
        no_cache=True,
    ),
    status=Status.FAILED,
    attempt=2,
    started_at=5.5,
    completed_at=6.25,
    error_code=Reason.OUT_OF_MEMORY,
    error_reason=ErrorReason.GUEST_OUT_OF_MEMORY,
    error="no\nmemory",
    image_digest=DIGEST,
    provenance=PROVENANCE,
    phases={Phase.QUEUE: 0.1, Phase.BOOT: 2.0},
)


@pytest.mark.parametrize("build", [a_build(), FULL], ids=["least", "most"])
async def test_a_build_comes_out_as_it_went_in(database: Database, build: Build) -> None:
    await stored(database, build)
    assert await database.run(builds.get_build, build.id) == build


async def test_a_reason_that_a_newer_version_has_stored_damages_nothing(database: Database) -> None:
    await stored(database, FULL)

    def from_the_future(connection: sa.Connection) -> None:
        connection.exec_driver_sql("UPDATE builds SET error_reason = 'struck_by_lightning'")

    await database.run(from_the_future)
    assert await database.run(builds.get_build, FULL.id) == replace(FULL, error_reason=None)


async def test_what_is_not_stored_is_not_found(database: Database) -> None:
    with pytest.raises(NotFound, match=build_id(7)):
        await database.run(builds.get_build, build_id(7))


async def test_an_update_replaces_all_but_the_steps(database: Database) -> None:
    await stored(database, a_build())
    steps = (Step("d", "n", 1.0, 2.0, cached=True, error="e"), Step("d2", "n2"))
    await database.run(builds.set_steps, build_id(1), steps)
    await database.run(builds.update_build, FULL)
    assert await database.run(builds.get_build, build_id(1)) == replace(
        FULL, request=replace(FULL.request)
    )
    assert await database.run(builds.get_steps, build_id(1)) == steps


async def test_an_update_of_what_is_not_stored_is_a_bug(database: Database) -> None:
    with pytest.raises(AssertionError, match="not stored"):
        await database.run(builds.update_build, a_build())


async def test_a_wish_to_cancel_outlives_updates_by_those_who_do_not_know_it(
    database: Database,
) -> None:
    await stored(database, a_build())
    await database.run(builds.mark_cancel_requested, build_id(1))
    await database.run(builds.update_build, a_build(status=Status.PUSHING))
    after = await database.run(builds.get_build, build_id(1))
    assert (after.status, after.cancel_requested) == (Status.PUSHING, True)


async def test_the_newest_come_first_and_pages_join(database: Database) -> None:
    await stored(database, *(a_build(n) for n in (3, 1, 2)))
    assert await listed(database) == [build_id(n) for n in (3, 2, 1)]
    assert await listed(database, limit=2) == [build_id(3), build_id(2)]
    assert await listed(database, limit=2, before=build_id(2)) == [build_id(1)]
    assert await listed(database, before=build_id(1)) == []


async def test_filters_add_up(database: Database) -> None:
    await stored(
        database,
        a_build(1),
        a_build(2, tenant="other"),
        a_build(3, status=Status.READY),
        replace(tagged(4, a="1", b="2"), status=Status.READY),
    )
    assert await listed(database, tenant=Tenant("acme")) == [build_id(n) for n in (4, 3, 1)]
    assert await listed(database, status=Status.READY) == [build_id(4), build_id(3)]
    assert await listed(database, status=Status.READY, tags={"a": "1"}) == [build_id(4)]
    assert await listed(database, tags={"a": "1", "b": "2"}) == [build_id(4)]
    assert await listed(database, tags={"a": "1", "b": "1"}) == []
    assert await listed(database, tags={"a": "1"}, tenant=Tenant("other")) == []


HOSTILE = ['"', "'", "a.b", "[0]", "$", "$.tags", "", " ", "\\", '\\"', "a\0b", "%", "_", "*",
           ";", "' OR 1=1 --", '"] OR 1=1 --', "é", "🦀", "\u202e", "null", "1",
           "x" * 10_000]  # fmt: skip


async def test_a_tag_may_be_any_text_and_finds_exactly_itself(database: Database) -> None:
    for number, text in enumerate(HOSTILE):
        await stored(database, tagged(3 * number, **{text: "v"}))
        await stored(database, tagged(3 * number + 1, k=text))
        await stored(database, tagged(3 * number + 2, **{text + "x": "v"}))
    for number, text in enumerate(HOSTILE):
        assert await listed(database, tags={text: "v"}) == [build_id(3 * number)]
        assert await listed(database, tags={"k": text}) == [build_id(3 * number + 1)]


@settings(max_examples=10)
@given(st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3))
def test_no_tag_that_nobody_has_finds_anything(tags: dict[str, str]) -> None:
    async def main() -> None:
        async with open_database(Path(":memory:")) as database:
            await stored(database, tagged(1, **{"only one": "here"}))
            found = await listed(database, tags=tags)
            assert found == ([] if tags else [build_id(1)])

    trio.run(main)


async def test_unfinished_builds_are_those_without_a_final_status(database: Database) -> None:
    await stored(database, *(a_build(n, status=s) for n, s in enumerate(reversed(Status))))
    found = [await database.run(builds.get_build, id_) for id_ in await unfinished(database)]
    assert {build.status for build in found} == {s for s in Status if not s.is_final}
    assert await unfinished(database) == sorted(await unfinished(database))


async def unfinished(database: Database) -> list[BuildId]:
    return await database.run(builds.unfinished_ids)


async def test_lists_leave_out_what_may_be_large(database: Database) -> None:
    request = BuildRequest(POLICY, dockerfile="FROM scratch", build_args={"A": "1"}, target="t")
    await stored(database, replace(a_build(1), request=request))
    whole = await database.run(builds.get_build, build_id(1))
    assert whole.request == request
    (listed,) = await database.run(builds.list_builds, builds.BuildFilter(10))
    assert listed.request == replace(request, dockerfile=None, build_args={})
    assert await database.run(builds.get_tenant, build_id(1)) == whole.tenant
    assert await database.run(builds.get_tenant, build_id(2)) is None


async def test_of_many_names_those_that_are_no_stored_builds_are_told(database: Database) -> None:
    assert await database.run(builds.unstored, {build_id(3)}) == {build_id(3)}
    await stored(database, a_build(3), a_build(1200))
    names = {"lost+found", *(build_id(n) for n in range(1500))}
    assert await database.run(builds.unstored, names) == names - {build_id(3), build_id(1200)}
    assert await database.run(builds.unstored, set()) == set()


@pytest.mark.parametrize("damaged", ["X'00'", "X'FF2C'", "7", "'a,b'", "char(0)", "''"])
async def test_a_damaged_id_makes_no_other_build_an_unknown_one(
    database: Database, damaged: str
) -> None:
    numbers = range(1, 10)
    await stored(database, *map(a_build, numbers))

    def damage(connection: sa.Connection) -> None:
        whose = sa.update(builds.builds).where(builds.builds.c.id == build_id(5))
        connection.execute(whose.values(id=sa.literal_column(damaged)))

    await database.run(damage)
    names = {build_id(n) for n in numbers}
    assert await database.run(builds.unstored, names) == {build_id(5)}


async def test_a_deleted_build_takes_its_tags_along(database: Database) -> None:
    await stored(database, tagged(1, a="1"))
    await database.run(builds.delete_build, build_id(1))
    assert await listed(database) == []
    await stored(database, tagged(1, a="2"))
    assert await listed(database, tags={"a": "1"}) == []


async def test_the_steps_of_an_unknown_build_are_none(database: Database) -> None:
    assert await database.run(builds.get_steps, build_id(1)) == ()
