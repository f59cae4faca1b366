"""The database: all or nothing, durable, and the schema that the migrations make."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
import trio
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from supervisor.errors import DatabaseBusy, HostError, ResourceExhausted
from supervisor.store import database as database_module
from supervisor.store import registry_tables
from supervisor.store.database import Database, open_database
from supervisor.store.migrate import MIGRATIONS, newest_revision_sync
from supervisor.store.tables import metadata
from tests.kit import cancel_at_every_checkpoint


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    async with open_database(tmp_path / "hypeman.db") as opened:
        await opened.run(make_table)
        yield opened


def make_table(connection: sa.Connection) -> None:
    connection.exec_driver_sql("CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT)")


def add(connection: sa.Connection, name: str, value: str = "") -> None:
    connection.exec_driver_sql("INSERT INTO facts VALUES (?, ?)", (name, value))


def names(connection: sa.Connection) -> list[str]:
    rows = connection.exec_driver_sql("SELECT name FROM facts ORDER BY name")
    return [row[0] for row in rows]


async def test_the_migrations_make_exactly_the_tables(tmp_path: Path) -> None:
    assert registry_tables.blobs.metadata is metadata

    def differences(connection: sa.Connection) -> list[object]:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return list(compare_metadata(context, metadata))

    async with open_database(tmp_path / "hypeman.db") as database:
        assert await database.run(differences) == []


def test_the_newest_revision_is_the_one_that_alembic_finds() -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    assert ScriptDirectory.from_config(config).get_current_head() == newest_revision_sync()


def test_opening_a_database_that_is_up_to_date_does_not_load_alembic(tmp_path: Path) -> None:
    program = f"""
import sys, trio
from pathlib import Path
from supervisor.store.database import open_database

async def main():
    async with open_database(Path({str(tmp_path / "hypeman.db")!r})):
        print("alembic" in sys.modules)

trio.run(main)
"""
    said = [
        subprocess.run(
            [sys.executable, "-c", program], check=True, capture_output=True, text=True
        ).stdout.strip()
        for _ in range(2)
    ]
    assert said == ["True", "False"]


async def test_an_old_database_is_opened_again_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "hypeman.db"
    async with open_database(path) as database:
        await database.run(make_table)
        await database.run(add, "a")
    async with open_database(path) as database:
        assert await database.run(names) == ["a"]


async def test_a_database_of_a_newer_program_is_refused_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "hypeman.db"
    async with open_database(path):
        pass
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(HostError, match="newer"):
        async with open_database(path):
            pass


async def test_a_file_that_is_no_database_is_refused_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "hypeman.db"
    path.write_bytes(b"no database at all" * 1000)
    with pytest.raises(HostError, match=r"hypeman\.db"):
        async with open_database(path):
            pass


async def test_a_directory_that_is_not_there_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"hypeman\.db"):
        async with open_database(tmp_path / "absent" / "hypeman.db"):
            pass


async def test_a_unit_that_raises_changes_nothing(database: Database) -> None:
    def add_and_fail(connection: sa.Connection) -> None:
        add(connection, "half")
        raise KeyError("no")

    with pytest.raises(KeyError, match="no"):
        await database.run(add_and_fail)
    assert await database.run(names) == []
    await database.run(add, "whole")
    assert await database.run(names) == ["whole"]


async def test_also_a_change_of_the_schema_is_taken_back(database: Database) -> None:
    def make_and_fail(connection: sa.Connection) -> None:
        connection.exec_driver_sql("CREATE TABLE half (x)")
        raise KeyError("no")

    with pytest.raises(KeyError):
        await database.run(make_and_fail)

    def tables(connection: sa.Connection) -> list[str]:
        return sa.inspect(connection).get_table_names()

    assert "half" not in await database.run(tables)


async def test_a_refused_statement_is_a_bug_and_changes_nothing(database: Database) -> None:
    def add_twice(connection: sa.Connection) -> None:
        add(connection, "a")
        add(connection, "a")

    with pytest.raises(AssertionError, match="refused"):
        await database.run(add_twice)
    assert await database.run(names) == []


async def test_a_full_disk_is_told_as_such_and_the_next_unit_works(database: Database) -> None:
    def limit(connection: sa.Connection, pages: int) -> None:
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

    await database.run(limit, 1)
    with pytest.raises(ResourceExhausted, match="full"):
        await database.run(add, "large", "x" * 1_000_000)
    await database.run(limit, 1_000_000)
    await database.run(add, "large", "x" * 1_000_000)
    assert await database.run(names) == ["large"]


async def test_a_database_that_another_program_holds_is_told_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "_BUSY_TIMEOUT_SECONDS", 0.01)
    path = tmp_path / "hypeman.db"
    async with open_database(path) as database:
        await database.run(make_table)
        with held(path), pytest.raises(DatabaseBusy, match="another program has held it"):
            await database.run(add, "refused")
        await database.run(add, "taken")
        assert await database.run(names) == ["taken"]
    with held(path), pytest.raises(DatabaseBusy, match=r"hypeman\.db cannot be opened.*fuser"):
        async with open_database(path):
            pass


async def test_what_is_held_for_long_is_waited_for_once_and_not_by_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "_BUSY_TIMEOUT_SECONDS", 0.05)
    monkeypatch.setattr(database_module, "_HELD_TIMEOUT_SECONDS", 0.002)

    def patience_ms(connection: sa.Connection) -> object:
        return connection.exec_driver_sql("PRAGMA busy_timeout").scalar()

    path = tmp_path / "hypeman.db"
    async with open_database(path) as database:
        assert await database.run(patience_ms) == 50
        with held(path):
            for _ in range(3):
                with pytest.raises(DatabaseBusy):
                    await database.run(patience_ms)
        assert await database.run(patience_ms) == 2, "as patient as the ones before it"
        assert await database.run(patience_ms) == 50


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold the database as another program may."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield
        other.execute("ROLLBACK")


async def test_units_run_one_after_the_other(database: Database) -> None:
    inside = 0

    def count(connection: sa.Connection, name: str) -> None:
        nonlocal inside
        inside += 1
        assert inside == 1
        add(connection, name)
        assert len(names(connection)) >= 1
        inside -= 1

    async with trio.open_nursery() as nursery:
        for number in range(30):
            nursery.start_soon(database.run, count, str(number))
    assert len(await database.run(names)) == 30


async def test_what_has_returned_is_durable_and_foreign_keys_hold(database: Database) -> None:
    def pragmas(connection: sa.Connection) -> list[object]:
        asked = ("journal_mode", "synchronous", "foreign_keys")
        return [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in asked]

    assert await database.run(pragmas) == ["wal", 2, 1]


async def test_cancelled_anywhere_a_unit_is_done_or_not_done(database: Database) -> None:
    round_ = returned = 0

    async def work() -> None:
        nonlocal returned
        for number in range(3):
            await database.run(add, f"{round_}-{number}")
            returned += 1

    async def check(_: int) -> None:
        nonlocal round_, returned
        done = [name for name in await database.run(names) if name.startswith(f"{round_}-")]
        assert len(done) == returned
        round_, returned = round_ + 1, 0

    assert await cancel_at_every_checkpoint(work, check) >= 3
