"""Secrets are asked for once, and lie where only their reader can read them."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

import pytest
import trio
import trio.testing

from agent import wire
from agent.failure import Failure
from agent.secrets import fetch_secrets, write_file_sync, write_secrets_sync


async def ask(answer: bytes | None, ids: list[str]) -> Mapping[str, bytes] | Failure:
    ours, theirs = trio.testing.memory_stream_pair()
    results: list[Mapping[str, bytes] | Failure] = []

    async def supervisor() -> None:
        [question] = wire.FrameDecoder().feed(bytes(await theirs.receive_some()))
        assert question == wire.GetSecrets(tuple(ids))
        if answer is not None:
            await theirs.send_all(answer)
        await theirs.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(supervisor)
        results.append(await fetch_secrets(ours, ids))
    with pytest.raises(trio.ClosedResourceError):
        await ours.send_all(b"")
    return results[0]


async def test_every_secret_that_was_asked_for_is_returned() -> None:
    answer = wire.encode(wire.SecretsResponse({"a": b"1", "b": b"\x00\xff", "other": b"x"}))
    assert await ask(answer, ["a", "b"]) == {"a": b"1", "b": b"\x00\xff"}


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (wire.encode(wire.SecretsResponse({"a": b"1"})), "secret_not_found"),
        (wire.encode(wire.HostReady()), "builder_lost"),
        (b"\xff\xff\xff\xff", "builder_lost"),
        (b"\x00", "builder_lost"),
        (None, "builder_lost"),
    ],
)
async def test_any_other_answer_fails_the_build(answer: bytes | None, code: str) -> None:
    failure = await ask(answer, ["a", "b"])
    assert isinstance(failure, Failure)
    assert failure.code == code


def test_values_lie_in_numbered_files_that_only_their_owner_reads(tmp_path: Path) -> None:
    directory = tmp_path / "secrets"
    values = {"../../etc/passwd": b"one", "b": b"two\n"}
    files = write_secrets_sync(values, str(directory), os.getuid())
    assert files == {"../../etc/passwd": f"{directory}/0", "b": f"{directory}/1"}
    assert [Path(path).read_bytes() for path in files.values()] == [b"one", b"two\n"]
    assert stat.S_IMODE(directory.stat().st_mode) == 0o500
    for path in files.values():
        assert stat.S_IMODE(Path(path).stat().st_mode) == 0o400


def test_a_file_that_is_there_already_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        write_file_sync(str(path), b"x", mode=0o400, owner=os.getuid())
    assert not (tmp_path / "elsewhere").exists()
