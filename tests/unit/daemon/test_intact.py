"""A database that is gone costs nothing that only it can name."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import pytest
from trio.testing import MockClock

from supervisor.config import load_settings
from supervisor.daemon.app import run_daemon
from supervisor.daemon.intact import refuse_lost_database
from supervisor.daemon.lock import hold_lock
from supervisor.errors import ConfigError
from supervisor.store.database import open_database
from tests.samples import build_id

STORED = [f"builds/{build_id(1)}/source", f"registry/blobs/sha256/{64 * 'a'}"]


async def start(data_dir: Path) -> None:
    """Open the database as the daemon does."""
    refuse = partial(refuse_lost_database, data_dir)
    async with open_database(data_dir / "hypeman.db", before_new=refuse):
        pass


async def copy_without_its_log(data_dir: Path) -> None:
    """Have a database that was copied by its main file alone: all of it is in the log yet."""
    elsewhere = data_dir / "elsewhere.db"
    async with open_database(elsewhere):
        shutil.copy(elsewhere, data_dir / "hypeman.db")
    assert (data_dir / "hypeman.db").read_bytes().startswith(b"SQLite format 3\0")


async def make_empty(data_dir: Path) -> None:
    (data_dir / "hypeman.db").touch()


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("lose", [None, make_empty, copy_without_its_log])
async def test_without_its_database_a_data_directory_is_refused(
    tmp_path: Path, stored: str, lose: object
) -> None:
    (tmp_path / stored).mkdir(parents=True)
    if callable(lose):
        await lose(tmp_path)
    for _ in range(2):  # what the first has left is no database, either
        with pytest.raises(ConfigError, match=r"hypeman\.db is missing or empty.*-wal.*restore"):
            await start(tmp_path)


async def test_with_its_database_a_data_directory_is_taken_up(tmp_path: Path) -> None:
    await start(tmp_path)
    for stored in STORED:
        (tmp_path / stored).mkdir(parents=True)
    await start(tmp_path)


async def test_a_new_data_directory_is_none_whatever_else_is_there(tmp_path: Path) -> None:
    for name in ("builds/lost+found", "registry/blobs/sha256/lost+found", "registry/blobs/.x/y"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "builds" / build_id(1)).touch()  # a file: the sweep leaves it alone
    await start(tmp_path)


async def test_a_data_directory_that_another_daemon_is_filling_is_not_called_lost(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    settings = load_settings(data_dir=tmp_path, runtime_dir=tmp_path / "run", host="none")
    (tmp_path / STORED[0]).mkdir(parents=True)
    async with hold_lock(tmp_path, "DATA_DIR"):
        with pytest.raises(ConfigError, match="another daemon"):
            await run_daemon(settings)
    lost = pytest.RaisesExc(ConfigError, match="missing or empty")
    with pytest.RaisesGroup(lost, flatten_subgroups=True):
        await run_daemon(settings)
