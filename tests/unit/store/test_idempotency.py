"""A key answers with the build that it made: for a day, one tenant, and the same request."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from supervisor.errors import Conflict
from supervisor.model.ids import BuildId, Tenant
from supervisor.store.builds import delete_build
from supervisor.store.database import Database, open_database
from supervisor.store.idempotency import IdempotencyKey, find_made_by, insert_build, is_key_known
from tests.samples import CREATED_AT, a_build

HOUR = 3600.0
KEY = IdempotencyKey("k", "one")
ACME = Tenant("acme")


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    async with open_database(tmp_path / "hypeman.db") as opened:
        await opened.run(insert_build, a_build(1), KEY)
        yield opened


async def made_by(
    database: Database, key: IdempotencyKey = KEY, tenant: Tenant = ACME, hours: float = 0.0
) -> BuildId | None:
    build = await database.run(find_made_by, key, tenant, CREATED_AT + hours * HOUR)
    known = await database.run(is_key_known, tenant, key.key, CREATED_AT + hours * HOUR)
    assert known is (build is not None)
    return None if build is None else build.id


@pytest.mark.parametrize("hours", [0, 1, 23.999])
async def test_within_a_day_it_answers_with_the_first_build(
    database: Database, hours: float
) -> None:
    assert await made_by(database, hours=hours) == a_build(1).id


async def test_after_a_day_it_makes_another_one(database: Database) -> None:
    assert await made_by(database, hours=24) is None
    later = replace(a_build(2), created_at=CREATED_AT + 24 * HOUR)
    await database.run(insert_build, later, IdempotencyKey("k", "two"))
    assert await made_by(database, IdempotencyKey("k", "two"), hours=25) == later.id


async def test_another_request_under_it_is_a_conflict_for_a_day(database: Database) -> None:
    with pytest.raises(Conflict, match=f"has made build {a_build(1).id} from a different request"):
        await made_by(database, IdempotencyKey("k", "two"), hours=23.999)
    assert await made_by(database, IdempotencyKey("k", "two"), hours=24) is None


async def test_it_is_the_tenants_own(database: Database) -> None:
    assert await made_by(database, tenant=Tenant("rival")) is None


async def test_it_goes_with_its_build(database: Database) -> None:
    await database.run(delete_build, a_build(1).id)
    assert await made_by(database, IdempotencyKey("k", "two")) is None
