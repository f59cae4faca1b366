"""The warm-up: given up for a build or when it hangs; a machine that fails at it is of no use."""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio
import trio.testing

from agent import paths, rootless, warmup
from agent.warmup import WarmUp, exit_program, write_context_sync


class Ready:
    """A BuildKit that is ready when it is told to be, or has ended."""

    def __init__(self, ended: str = "") -> None:
        self.may_be_ready = trio.Event()
        self._ended = ended

    async def wait_ready(self, mirrors: Sequence[str]) -> str:
        assert tuple(mirrors) == rootless.DEFAULT_MIRRORS
        await self.may_be_ready.wait()
        return self._ended


async def run(warm_up: WarmUp, daemon: Ready, said: list[str]) -> None:
    said.append(await warm_up.run(daemon))  # type: ignore[arg-type]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is run instead of buildctl."""
    found = ["true"]

    async def run_child(argv: object, sink: object, **_: object) -> int:
        if found == ["hang"]:
            await trio.sleep_forever()
        sink(b"its last words\n")  # type: ignore[operator]
        return 0 if found == ["true"] else 1

    monkeypatch.setattr(paths, "WARMUP_DIR", str(tmp_path / "warmup"))
    monkeypatch.setattr(warmup, "run_child", run_child)
    return found


async def test_it_waits_for_buildkit_and_is_done(nursery: trio.Nursery, command: list[str]) -> None:
    warm_up, daemon = WarmUp(), Ready()
    said: list[str] = []
    nursery.start_soon(run, warm_up, daemon, said)
    await trio.testing.wait_all_tasks_blocked()
    assert not warm_up.done.is_set()
    daemon.may_be_ready.set()
    await warm_up.done.wait()
    assert said == [""]


async def test_a_machine_that_cannot_build_is_never_warm(
    nursery: trio.Nursery, command: list[str]
) -> None:
    command[:] = ["false"]
    warm_up, daemon = WarmUp(), Ready()
    daemon.may_be_ready.set()
    said: list[str] = []
    await run(warm_up, daemon, said)
    assert not warm_up.done.is_set()
    assert said == ["exit status 1: its last words"]


@pytest.mark.parametrize("what", ["its rehearsal", "its context", "its program"])
async def test_one_that_cannot_be_started_says_why(
    what: str, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async def run_child(*_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    async def refuse_to_rehearse() -> None:
        refuse()

    if what == "its rehearsal":
        monkeypatch.setattr(warmup, "_rehearse", refuse_to_rehearse)
    elif what == "its context":
        monkeypatch.setattr(warmup, "write_context_sync", refuse)
    else:
        monkeypatch.setattr(warmup, "run_child", run_child)
    warm_up, daemon = WarmUp(), Ready()
    daemon.may_be_ready.set()
    said: list[str] = []
    await run(warm_up, daemon, said)
    assert not warm_up.done.is_set()
    assert said == ["the warm-up could not be started: [Errno 28] No space left on device"]


async def test_a_buildkit_that_has_ended_is_not_waited_for(command: list[str]) -> None:
    warm_up, daemon = WarmUp(), Ready(ended="buildkitd ended")
    daemon.may_be_ready.set()
    said: list[str] = []
    await run(warm_up, daemon, said)
    assert warm_up.done.is_set()
    assert said == [""], "what has ended is told by the build"


@pytest.mark.parametrize("is_ready", [False, True])
async def test_a_build_ends_it(nursery: trio.Nursery, command: list[str], is_ready: bool) -> None:
    command[:] = ["hang"]
    warm_up, daemon = WarmUp(), Ready()
    if is_ready:
        daemon.may_be_ready.set()
    said: list[str] = []
    nursery.start_soon(run, warm_up, daemon, said)
    await trio.testing.wait_all_tasks_blocked()
    warm_up.stop()
    await warm_up.done.wait()
    assert said == [""]


async def test_a_build_that_came_first_has_none_beside_it(command: list[str]) -> None:
    command[:] = ["hang"]
    warm_up, daemon = WarmUp(), Ready()
    warm_up.stop()
    said: list[str] = []
    await run(warm_up, daemon, said)
    assert said == [""]
    assert not await trio.Path(paths.WARMUP_DIR).exists()


async def test_what_hangs_is_given_up(
    autojump_clock: trio.testing.MockClock, command: list[str]
) -> None:
    command[:] = ["hang"]
    warm_up, daemon = WarmUp(), Ready()
    daemon.may_be_ready.set()
    said: list[str] = []
    await run(warm_up, daemon, said)
    assert warm_up.done.is_set()
    assert said == [""]


def test_its_program_runs_and_the_dockerfile_runs_it(tmp_path: Path) -> None:
    write_context_sync(tmp_path / "context", "abc")
    program = tmp_path / "context" / "abc"
    assert program.read_bytes() == exit_program()
    assert subprocess.run([program], check=False).returncode == 0
    assert 'RUN ["/abc"]' in (tmp_path / "context" / "Dockerfile").read_text()


def test_nothing_of_it_has_a_name_that_a_build_uses() -> None:
    command = warmup.argv("/directory")
    assert [word for word in command if word.startswith(("context=", "dockerfile="))] == []
    assert "push=false" in command[-1]
