"""SQLite behind one worker thread: the truth about builds and the registry's facts.

Every unit of work is a function of a connection that runs in one transaction in that thread, so
units never interleave and nothing waits for a lock. A unit that has returned is durable (WAL with
`synchronous=FULL`); a unit that raised changed nothing. Written with SQLAlchemy Core, so that the
same units run on PostgreSQL later.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import sqlalchemy as sa
import trio
from sqlalchemy.exc import DBAPIError, OperationalError

from supervisor.errors import DatabaseBusy, HostError, ResourceExhausted
from supervisor.store.migrate import UnknownRevision, migrate_sync

P = ParamSpec("P")
T = TypeVar("T")

_BUSY_TIMEOUT_SECONDS = 10
_HELD_TIMEOUT_SECONDS = 1
"""What holds it for longer is waited for once, not once by each of those that have queued up."""
_BUSY = (
    f"another program has held it for {_BUSY_TIMEOUT_SECONDS} s; end what has opened it (`fuser`"
    " names it), or try again"
)
DAMAGED = object()
"""Stands in a row for JSON that cannot be read, so that one bad row does not hide the others."""


class Database:
    """The handle through which everybody reads and writes durable facts."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        # One at a time: the order of calls is the order of transactions.
        self._limiter = trio.CapacityLimiter(1)
        self._is_held = False
        """Whether another program had it at the last try."""

    async def run(
        self, unit: Callable[Concatenate[sa.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run `unit(connection, *args, **kwargs)` in a transaction and return its result.

        When this returns, what was written is durable. If `unit` raises, nothing was written. A
        cancellation that arrives while the unit runs is delivered after it: known to be done or
        not. Raises ResourceExhausted if the disk is full, DatabaseBusy if another program holds the
        database, and HostError for whatever else the host refuses.
        """
        return await trio.to_thread.run_sync(
            lambda: self.run_sync(unit, *args, **kwargs), limiter=self._limiter
        )

    def run_sync(
        self, unit: Callable[Concatenate[sa.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Do the same in the calling thread: for start-up and tests."""
        try:
            with self._engine.begin() as connection:
                result = unit(connection, *args, **kwargs)
        except OperationalError as exc:
            if "full" in str(exc.orig):
                raise ResourceExhausted("the database cannot be written: the disk is full") from exc
            if _is_locked(exc):
                self._note_held(True)
                raise DatabaseBusy(_BUSY) from exc
            raise HostError(f"the database failed: {exc.orig}") from exc
        except DBAPIError as exc:
            raise AssertionError(f"the database refused a statement: {exc.orig}") from exc
        self._note_held(False)
        return result

    def _note_held(self, is_held: bool) -> None:
        """Wait for a shorter time while another program holds the database."""
        if is_held is self._is_held:
            return
        self._is_held = is_held
        seconds = _HELD_TIMEOUT_SECONDS if is_held else _BUSY_TIMEOUT_SECONDS
        with closing(self._engine.raw_connection()) as connection:
            connection.cursor().execute(f"PRAGMA busy_timeout = {round(seconds * 1000)}")


@asynccontextmanager
async def open_database(
    path: Path, before_new: Callable[[], None] = lambda: None
) -> AsyncIterator[Database]:
    """Open the database at `path`, made or migrated as needed, for the length of the block.

    Raises HostError if it cannot be opened, or is of a newer program; DatabaseBusy if another
    program holds it; and what `before_new` raises, which is called in a thread before a schema is
    made where there is none.
    """
    engine = _open_engine(path)
    try:
        try:
            await trio.to_thread.run_sync(migrate_sync, engine, before_new)
        except DBAPIError as exc:
            if _is_locked(exc):
                raise DatabaseBusy(f"the database {path} cannot be opened: {_BUSY}") from exc
            raise HostError(f"the database {path} cannot be opened: {exc.orig}") from exc
        except UnknownRevision as exc:
            raise HostError(f"the database {path} is of a newer program: {exc}") from exc
        yield Database(engine)
    finally:
        engine.dispose()


def _open_engine(path: Path) -> sa.Engine:
    engine = sa.create_engine(
        sa.URL.create("sqlite", database=str(path)),
        # The limiter admits one thread at a time; which one of trio's threads it is may change.
        connect_args={"check_same_thread": False, "timeout": _BUSY_TIMEOUT_SECONDS},
        poolclass=sa.pool.StaticPool,
        json_deserializer=_parse_json,
    )

    @sa.event.listens_for(engine, "connect")
    def _on_connect(connection: object, _record: object) -> None:
        cursor = connection.cursor()  # type: ignore[attr-defined]
        # The driver's own transaction handling commits before some statements; we say BEGIN
        # ourselves.
        connection.isolation_level = None  # type: ignore[attr-defined]
        connection.text_factory = _text  # type: ignore[attr-defined]
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @sa.event.listens_for(engine, "begin")
    def _on_begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _text(raw: bytes) -> str:
    """Return stored text, also if it is damaged: who reads it checks what it means."""
    return raw.decode(errors="replace")


def _parse_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return DAMAGED


def _is_locked(error: DBAPIError) -> bool:
    return "locked" in str(error.orig)
