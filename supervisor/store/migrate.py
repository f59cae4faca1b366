"""The schema of the database, brought to the newest revision when it is opened.

Revisions are files `NNNN_what.py` in `migrations/versions`, in order. Alembic, with all that it
imports, is 15 MiB of memory and a quarter of a second, so it is loaded only if there is something
to migrate: at nearly every start there is nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import sqlalchemy as sa

MIGRATIONS = Path(__file__).parent / "migrations"


class UnknownRevision(Exception):
    """The schema is of a newer program. The text names its revision."""


def migrate_sync(engine: sa.Engine, before_new: Callable[[], None]) -> None:
    """Bring the schema to the newest revision; call `before_new` if there is none at all yet.

    Raises UnknownRevision, DBAPIError and what `before_new` raises, and then changes nothing.
    """
    with engine.begin() as connection:
        current = current_revision_sync(connection)
        if current is None:
            before_new()
        if current != newest_revision_sync():
            _upgrade_sync(connection)


def current_revision_sync(connection: sa.Connection) -> str | None:
    """Return the revision that the schema is at; None if the database is new."""
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
    return revision


def newest_revision_sync() -> str:
    """Return the newest revision that this program knows."""
    return max(path.name[:4] for path in (MIGRATIONS / "versions").glob("[0-9]*.py"))


def _upgrade_sync(connection: sa.Connection) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as exc:
        raise UnknownRevision(str(exc)) from exc
