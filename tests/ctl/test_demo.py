"""The demo around a daemon that is a stand-in: what it shows, and that it leaves nothing."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import trio

from supervisor.config import Settings, load_keys, load_settings
from supervisor.demo.place import prepare_place
from tests.ctl.conftest import DIGEST, Result
from tests.processes import find_processes

ROOT = Path(__file__).parents[2]
CODE = """
import os, sys
from functools import partial
from pathlib import Path
import trio
from supervisor.demo.demo import run_demo
from supervisor.runtime.logs import setup_logging
setup_logging("error")
outcome, source, *keep = sys.argv[1:]
daemon = [sys.executable, "-m", "tests.ctl.stub_daemon", outcome, os.environ["MARK"]]
raise SystemExit(
    trio.run(partial(run_demo, os.environ, Path(source), keep=bool(keep), daemon=daemon))
)
"""


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A directory whose name leaves room for a socket's, which pytest's own does not."""
    with tempfile.TemporaryDirectory(prefix="demo") as path:
        yield Path(path)


@pytest.fixture
def temporary(short_dir: Path) -> Iterator[Path]:
    """Where the demo's temporary directories go; afterwards there must be none."""
    path = short_dir / "tmp"
    path.mkdir()
    yield path
    assert not list(path.iterdir()), "the demo has left a directory"
    assert not find_processes(str(path)), "the demo has left a process"


def environment(temporary: Path) -> dict[str, str]:
    # A PATH without skopeo, whose question to the registry the stand-in could not answer.
    programs = temporary.with_name("bin")
    programs.mkdir(exist_ok=True)
    for name in ("setpriv",):
        link = programs / name
        if not link.exists():
            link.symlink_to(shutil.which(name) or name)
    return {
        "PATH": str(programs),
        "PYTHONPATH": str(ROOT),
        "TMPDIR": str(temporary),
        "MARK": str(temporary),
    }


def argv(outcome: str, source: Path, *more: str) -> list[str]:
    return [sys.executable, "-c", CODE, outcome, str(source), *more]


async def run(outcome: str, source: Path, temporary: Path, **env: str) -> Result:
    with trio.fail_after(60):
        done = await trio.run_process(
            argv(outcome, source),
            env={**environment(temporary), **env},
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
    return Result(done.returncode, done.stdout.decode(), done.stderr.decode())


async def test_it_shows_the_way_from_a_directory_to_an_image(
    context_dir: Path, temporary: Path
) -> None:
    result = await run("ready", context_dir, temporary)
    assert result.code == 0, result.out + result.err
    for line in (
        f"$ hypeman-ctl build --detach --quiet {context_dir}\n",
        "some output\n",
        "  status     ready\n",
        f"  digest     {DIGEST}\n",
        "--creds demo:eyJ",
        "--keep",
    ):
        assert line in result.out
    assert result.err == ""


async def test_its_exit_code_is_the_builds(context_dir: Path, temporary: Path) -> None:
    result = await run("failed", context_dir, temporary)
    assert result.code == 1
    assert "  reason     build_failed\n" in result.out
    assert "skopeo" not in result.out


async def test_a_named_data_directory_stays_with_the_way_to_start_on_it_again(
    context_dir: Path, temporary: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data dir"
    result = await run("ready", context_dir, temporary, DATA_DIR=str(data), PORT="34567")
    assert result.code == 0, result.out + result.err
    again = result.out.splitlines()[-1]
    assert again == (
        f"  JWT_SECRET_FILE='{data}/demo-jwt-secret' DATA_DIR='{data}' HOST=127.0.0.1 PORT=34567"
        " ./run up"
    )
    assert (data / "demo-jwt-secret").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        ("refuse", "the daemon ended: exit status 2\n"),
        # Which is noticed first, the end of the daemon or that of its connection, is chance.
        ("die", "The demo cannot go on:|the connection to .* broke:"),
    ],
)
async def test_a_daemon_that_ends_ends_the_demo(
    context_dir: Path, temporary: Path, outcome: str, words: str
) -> None:
    result = await run(outcome, context_dir, temporary)
    assert result.code == 3
    assert re.search(words, result.out), result.out
    assert "Traceback" not in result.out + result.err
    if outcome == "refuse":
        assert "The daemon's last words:\n  the configuration cannot be used" in result.out


@pytest.mark.parametrize(
    ("number", "moment"),
    [
        (signal.SIGTERM, b"Starting the daemon"),
        (signal.SIGHUP, b"is ready after"),
        (signal.SIGINT, b"still at it"),
        (signal.SIGINT, b"until you press"),
    ],
)
async def test_a_signal_at_any_moment_leaves_nothing(
    context_dir: Path, temporary: Path, number: signal.Signals, moment: bytes
) -> None:
    outcome = "ready" if moment == b"until you press" else "hang"
    async with trio.open_nursery() as nursery:
        process: trio.Process = await nursery.start(
            partial(
                trio.run_process,
                argv(outcome, context_dir, "--keep"),
                env=environment(temporary),
                stdout=-1,
                check=False,
            )
        )
        assert process.stdout is not None
        seen = b""
        with trio.fail_after(60):
            while moment not in seen:
                data = await process.stdout.receive_some()
                assert data, seen
                seen += data
            os.kill(process.pid, number)
            while data := await process.stdout.receive_some():
                seen += data
            assert await process.wait() == 130, seen


async def test_killed_it_takes_its_daemon_along(context_dir: Path, short_dir: Path) -> None:
    mark = short_dir / "killed"
    mark.mkdir()
    async with trio.open_nursery() as nursery:
        process: trio.Process = await nursery.start(
            partial(
                trio.run_process,
                argv("hang", context_dir),
                env=environment(mark),
                stdout=-1,
                check=False,
            )
        )
        assert process.stdout is not None
        seen = b""
        with trio.fail_after(60):
            while b"still at it" not in seen:
                data = await process.stdout.receive_some()
                assert data, seen
                seen += data
            process.kill()
            await process.wait()
            while find_processes(str(mark)):  # noqa: ASYNC110 - the kernel has no event
                await trio.sleep(0.01)


def test_what_the_user_sets_wins_and_the_rest_is_made_up(
    tmp_path: Path,
) -> None:
    given = {"DATA_DIR": str(tmp_path), "JWT_SECRET": "x" * 32, "POOL_SIZE": "3", "HOME": "/root"}
    with prepare_place(given) as place:
        assert (place.data_dir, place.is_temporary, place.key_file) == (tmp_path, False, None)
        assert place.settings["POOL_SIZE"] == "3"
        assert "HOME" not in place.settings
        runtime_dir = place.runtime_dir
        assert runtime_dir.is_dir()
    assert tmp_path.is_dir()
    assert not runtime_dir.exists()


def test_the_made_up_configuration_is_one_that_the_daemon_accepts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with prepare_place({}) as place:
        names = {name.upper() for name in Settings.model_fields}
        assert set(place.settings) <= names
        for name, text in place.settings.items():
            monkeypatch.setenv(name, text)
        settings = load_settings()
        assert load_keys(settings) is not None
        assert settings.host == "127.0.0.1"
        with prepare_place({"DATA_DIR": str(place.data_dir)}) as again:
            assert again.key_file == place.key_file  # the same key, so that tokens stay valid
