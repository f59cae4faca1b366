"""A data directory whose database is gone is not taken for a new one.

The files that a database does not name are leftovers, which a start removes. With none at all that
would be everything: what a backup that was restored by halves has brought back.
"""

from __future__ import annotations

from pathlib import Path

from supervisor.errors import ConfigError


def refuse_lost_database(data_dir: Path) -> None:
    """Raise ConfigError if there are builds or images, and no database that could know them.

    It is made before the first of them, so a daemon that was killed leaves no such directory.
    """
    database = data_dir / "hypeman.db"
    if database.exists() and database.stat().st_size:
        return
    for stored in (*data_dir.glob("builds/*"), *data_dir.glob("registry/blobs/*/*")):
        raise ConfigError(
            f"the database {database} is missing or empty, and {stored} is there: restore it from a"
            f" backup, or remove {data_dir}/builds and {data_dir}/registry to begin anew"
        )
