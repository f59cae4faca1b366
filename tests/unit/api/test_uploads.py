"""An upload on a disk that refuses."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio

from supervisor.api.uploads import Upload
from supervisor.errors import ResourceExhausted
from supervisor.model.ids import BuildId
from supervisor.runtime.threads import Threads


async def test_a_disk_that_cannot_store_an_upload_is_told_as_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "build" / "source" / "source.tar.gz"
    upload = Upload(BuildId("0" * 24), path, 1000, Threads())
    await upload.write(b"an archive")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(ResourceExhausted, match="No space left"):
            await upload.finish()
    upload.abandon_sync()
    assert not await trio.Path(path).exists()


async def test_a_file_that_the_host_does_not_let_go_is_no_error_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    upload = Upload(BuildId("0" * 24), tmp_path / "source.tar.gz", 1000, Threads())
    await upload.write(b"an archive")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        upload.abandon_sync()
