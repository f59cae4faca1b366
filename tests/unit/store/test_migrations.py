"""Upgrades: a database of every earlier schema, with rows in each table, is opened as it is."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext

from supervisor.errors import HostError
from supervisor.model.build import Phase, Status
from supervisor.model.oci import RepositoryName
from supervisor.store import builds, registry
from supervisor.store.builds import BuildFilter
from supervisor.store.database import open_database
from supervisor.store.migrate import MIGRATIONS, newest_revision_sync
from supervisor.store.tables import metadata

REVISIONS = sorted(path.name[:4] for path in (MIGRATIONS / "versions").glob("[0-9]*.py"))
OLDEST, LAST_BUT_ONE = REVISIONS[0], REVISIONS[-2]

A_TIME = 1_700_000_000.0
SHA = "ab" * 32
IMAGE, LAYER = "sha256:" + "cd" * 32, "sha256:" + "ef" * 32
BUILDER = "sha256:" + "12" * 32
READY, WAITING, LOST = "1" * 24, "2" * 24, "3" * 24
REPOSITORY = f"builds/{READY}"

# As the first version wrote them: what later ones have added has to have a default.
REQUEST = {
    "policy": {
        "timeout_seconds": 600,
        "memory_mb": 2048,
        "cpus": 2,
        "network_mode": "egress",
        "allowed_domains": ["example.org"],
    },
    "dockerfile_path": "Dockerfile",
    "target": None,
    "tags": {"team": "red"},
    "secrets": [{"id": "npm", "env_var": "NPM_TOKEN"}],
    "base_image_digest": None,
    "cache_scope": "main",
    "global_cache_key": None,
    "export_global_cache": False,
    "no_cache": False,
    "image_name": "hello:1",
}
PROVENANCE = {
    "source_hash": f"sha256:{SHA}",
    "builder_image_digest": BUILDER,
    "timestamp": A_TIME,
    "base_image_digest": None,
    "lockfile_hashes": {"go.sum": SHA},
    "buildkit_version": "v0.32",
    "toolchain_version": None,
}
STEP = {
    "digest": LAYER,
    "name": "[1/1] RUN make",
    "started_at": A_TIME,
    "completed_at": A_TIME + 1,
    "cached": False,
    "error": None,
}


def a_row(build_id: str, status: str, **changes: object) -> dict[str, object]:
    """Return the row of a build; its columns are those of the newest schema."""
    return {
        "id": build_id,
        "tenant": "acme",
        "status": status,
        "attempt": 1,
        "lost_attempts": 1,
        "request": json.dumps(REQUEST),
        "dockerfile": "FROM scratch\n",
        "build_args": '{"A": "1"}',
        "source_sha256": SHA,
        "source_size_bytes": 5_000_000_000,
        "created_at": A_TIME,
        "queued_at": A_TIME,
        "started_at": A_TIME + 1,
        "completed_at": None,
        "cancel_requested": 0,
        "error_code": None,
        "error_reason": None,
        "error": None,
        "image_digest": None,
        "provenance": None,
        "phases": '{"queue": 1.0}',
        "steps": json.dumps([STEP]),
        **changes,
    }


# In an order in which each row finds what it refers to.
ROWS: Mapping[str, list[dict[str, object]]] = {
    "builds": [
        a_row(
            READY,
            "ready",
            completed_at=A_TIME + 9,
            image_digest=IMAGE,
            provenance=json.dumps(PROVENANCE),
        ),
        a_row(WAITING, "queued", started_at=None, attempt=0, lost_attempts=0, cancel_requested=1),
        a_row(
            LOST,
            "failed",
            completed_at=A_TIME + 9,
            error_code="builder_lost",
            error_reason="vmm_exited",
            error="the machine ended",
        ),
    ],
    "build_tags": [{"build_id": READY, "key": "team", "value": "red"}],
    "idempotency_keys": [
        {
            "tenant": "acme",
            "key": "k",
            "request_hash": SHA,
            "build_id": READY,
            "created_at": A_TIME,
        }
    ],
    "registry_repositories": [{"name": REPOSITORY, "created_at": A_TIME}],
    "registry_blobs": [
        {"digest": IMAGE, "size_bytes": 500},
        {"digest": LAYER, "size_bytes": 6_000_000_000},
    ],
    "registry_links": [
        {"repository": REPOSITORY, "digest": digest, "used_at": A_TIME} for digest in (IMAGE, LAYER)
    ],
    "registry_manifests": [
        {
            "repository": REPOSITORY,
            "digest": IMAGE,
            "media_type": "application/vnd.oci.image.manifest.v1+json",
            "artifact_type": None,
            "subject": None,
            "annotations": "{}",
            "pushed_at": A_TIME,
        }
    ],
    "registry_references": [{"repository": REPOSITORY, "manifest": IMAGE, "digest": LAYER}],
    "registry_tags": [
        {
            "repository": REPOSITORY,
            "name": "latest",
            "digest": IMAGE,
            "updated_at": A_TIME,
            "checked_at": A_TIME,
        }
    ],
    "registry_uploads": [{"id": "0" * 32, "repository": REPOSITORY, "started_at": A_TIME}],
}


@contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA foreign_keys=ON")
        yield connection
        connection.commit()


def make_database(path: Path, revision: str) -> dict[str, list[dict[str, Any]]]:
    """Make a database as the program of `revision` has left it; return its rows by table."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    engine = sa.create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    engine.dispose()
    with opened(path) as database:
        columns = {table: columns_of(database, table) for table in tables_of(database)}
        assert columns.keys() <= ROWS.keys(), "a table without a sample: add it to ROWS"
        for table, rows in ROWS.items():
            for row in rows if table in columns else []:
                known = {name: value for name, value in row.items() if name in columns[table]}
                names, marks = ", ".join(known), ", ".join("?" * len(known))
                insert = f"INSERT INTO {table} ({names}) VALUES ({marks})"  # noqa: S608
                database.execute(insert, list(known.values()))
    return rows_of(path)


def tables_of(database: sqlite3.Connection) -> list[str]:
    found = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
    return [row["name"] for row in found if row["name"] != "alembic_version"]


def columns_of(database: sqlite3.Connection, table: str) -> list[str]:
    return [row["name"] for row in database.execute(f"PRAGMA table_info({table})")]


def rows_of(path: Path) -> dict[str, list[dict[str, Any]]]:
    with opened(path) as database:
        return {
            table: [dict(row) for row in database.execute(f"SELECT * FROM {table} ORDER BY 1, 2")]  # noqa: S608
            for table in tables_of(database)
        }


def differences(connection: sa.Connection) -> list[object]:
    context = MigrationContext.configure(connection, opts={"compare_type": True})
    return list(compare_metadata(context, metadata))


@pytest.mark.parametrize("revision", REVISIONS)
async def test_no_row_of_an_earlier_database_is_lost_or_changed(
    tmp_path: Path, revision: str
) -> None:
    path = tmp_path / "hypeman.db"
    before = make_database(path, revision)
    async with open_database(path) as database:
        assert await database.run(differences) == []
    after = rows_of(path)
    for table, rows in before.items():
        kept = [{name: row[name] for name in rows[0]} for row in after[table]]
        assert kept == rows, table
    with opened(path) as raw:
        assert raw.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        assert raw.execute("PRAGMA foreign_key_check").fetchall() == []
        assert raw.execute("SELECT version_num FROM alembic_version").fetchone()[0] == (
            newest_revision_sync()
        )


@pytest.mark.parametrize("revision", REVISIONS)
async def test_builds_of_an_earlier_database_mean_what_they_meant(
    tmp_path: Path, revision: str
) -> None:
    path = tmp_path / "hypeman.db"
    make_database(path, revision)
    async with open_database(path) as database:
        ready = await database.run(builds.get_build, READY)
        assert ready.status is Status.READY
        assert ready.request.image_name == "hello:1"
        assert ready.request.build_args == {"A": "1"}
        assert ready.request.policy.allowed_domains == ("example.org",)
        assert ready.provenance is not None
        assert ready.provenance.lockfile_hashes == {"go.sum": SHA}
        assert ready.phases == {Phase.QUEUE: 1.0}
        assert ready.error_reason is None
        lost = await database.run(builds.get_build, LOST)
        assert lost.lost_attempts == (1 if revision >= "0004" else 0)
        assert [step.name for step in await database.run(builds.get_steps, READY)] == [STEP["name"]]
        assert await database.run(builds.unfinished_ids) == [WAITING]
        tagged = BuildFilter(limit=10, tags={"team": "red"})
        assert [build.id for build in await database.run(builds.list_builds, tagged)] == [READY]
        if revision >= "0002":
            assert await database.run(registry.holds_image, RepositoryName(REPOSITORY), IMAGE)


@pytest.mark.parametrize("revision", [OLDEST, LAST_BUT_ONE])
async def test_an_upgrade_that_fails_at_its_end_leaves_the_database_as_it_was(
    tmp_path: Path, revision: str
) -> None:
    path = tmp_path / "hypeman.db"
    before = make_database(path, revision)
    with opened(path) as raw:
        raw.execute(
            "CREATE TRIGGER refusal BEFORE UPDATE ON alembic_version"
            f" WHEN NEW.version_num = '{newest_revision_sync()}'"
            " BEGIN SELECT RAISE(ABORT, 'refused by the test'); END"
        )
    with pytest.raises(HostError, match="refused by the test"):
        async with open_database(path):
            pass
    assert rows_of(path) == before
    with opened(path) as raw:
        raw.execute("DROP TRIGGER refusal")
    async with open_database(path) as database:
        assert await database.run(differences) == []
