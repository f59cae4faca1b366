"""A data directory whose database is gone is not taken for a new one.

The files that a database does not name are leftovers, which a start removes. With none at all that
would be everything: what a backup that was restored by halves has brought back.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from supervisor.errors import ConfigError
from supervisor.model.ids import parse_build_id
from supervisor.model.oci import parse_digest


def refuse_lost_database(data_dir: Path) -> None:
    """Raise ConfigError if there are builds or images: for a database that knows none of them.

    A schema is made before the first of them, so a daemon that was killed leaves no such directory.
    To be asked by the only daemon there: those of another that starts are none of a lost database.
    """
    for stored in _stored(data_dir):
        raise ConfigError(
            f"the database {data_dir}/hypeman.db is missing or empty, or was copied without its"
            f" hypeman.db-wal, and {stored} is there: restore all of it from a backup, or remove"
            f" {data_dir}/builds and {data_dir}/registry to begin anew"
        )


def _stored(data_dir: Path) -> Iterator[Path]:
    """Find what a start would remove; anything else, as `lost+found`, is not ours."""
    for path in data_dir.glob("builds/*"):
        if parse_build_id(path.name) and path.is_dir():
            yield path
    for path in data_dir.glob("registry/blobs/*/*"):
        if parse_digest(f"{path.parent.name}:{path.name}"):
            yield path
