"""A database that is gone costs nothing that only it can name."""

from __future__ import annotations

from pathlib import Path

import pytest

from supervisor.daemon.intact import refuse_lost_database
from supervisor.errors import ConfigError


@pytest.mark.parametrize("stored", ["builds/0/metadata.json", "registry/blobs/sha256/ab"])
@pytest.mark.parametrize("content", [None, b""], ids=["missing", "empty"])
def test_without_its_database_a_data_directory_is_refused(
    tmp_path: Path, stored: str, content: bytes | None
) -> None:
    (tmp_path / stored).parent.mkdir(parents=True)
    (tmp_path / stored).touch()
    if content is not None:
        (tmp_path / "hypeman.db").write_bytes(content)
    with pytest.raises(ConfigError, match=r"hypeman\.db is missing or empty.*restore"):
        refuse_lost_database(tmp_path)
    (tmp_path / "hypeman.db").write_bytes(b"SQLite format 3\0")
    refuse_lost_database(tmp_path)


def test_a_new_data_directory_is_none(tmp_path: Path) -> None:
    (tmp_path / "registry/blobs/sha256").mkdir(parents=True)
    (tmp_path / "builds").mkdir()
    refuse_lost_database(tmp_path)
