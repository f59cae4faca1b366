"""What the control program's tests share: the real API on a fake build service, and the program."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import trio

from supervisor.api.listeners import Addresses, serve_api
from supervisor.api.ports import ApiDeps
from supervisor.config import Keys, Settings
from supervisor.ctl.client import Client, open_client
from supervisor.ctl.connection import Endpoint
from supervisor.model.build import Reason, Status, Step
from supervisor.model.events import step_event
from supervisor.model.ids import BuildId
from supervisor.model.times import rfc3339
from supervisor.runtime.threads import Threads
from tests.ctl.starts import Result, Starter, starter
from tests.fakes.build_service import FakeBuilds
from tests.fakes.operations import FakeImages, FakeOperator

API_KEY = b"a" * 32
DIGEST = f"sha256:{'d' * 64}"


async def no_registry(scope: Any, receive: Any, send: Any) -> None:
    await trio.lowlevel.checkpoint()
    raise AssertionError("nothing here asks the registry")


@dataclass
class Daemon:
    """The API on a fake build service, on real sockets."""

    deps: ApiDeps
    fake: FakeBuilds
    addresses: Addresses

    @property
    def socket(self) -> Path:
        return self.addresses.unix

    @property
    def url(self) -> str:
        assert self.addresses.tcp is not None
        host, port = self.addresses.tcp
        return f"http://{host}:{port}"

    async def run_ctl(
        self, *args: str, stdin: bytes = b"", env: dict[str, str] | None = None
    ) -> Result:
        """Run `hypeman-ctl` against this daemon, through pipes."""
        return await run_ctl("--socket", str(self.socket), *args, stdin=stdin, env=env)

    def client(self) -> Any:
        return open_client(Endpoint(socket=self.socket))

    async def wait_submitted(self) -> BuildId:
        """Wait until a build has been taken in, and return its id."""
        with trio.fail_after(30):
            while not self.fake.builds:  # noqa: ASYNC110 - the fake has no event for it
                await trio.sleep(0.01)
        return max(self.fake.builds)

    def play(self, build_id: BuildId, status: Status = Status.READY, *lines: str) -> None:
        """Have a build run one step that prints `lines`, and end."""
        fake = self.fake
        fake.start(build_id)
        running = Step("sha256:" + "1" * 64, "[1/1] RUN make", started_at=fake.now)
        self.put_event(build_id, step_event(rfc3339(fake.now), running))
        fake.log(build_id, *lines)
        done = replace(running, completed_at=fake.now + 1.5)
        self.put_event(build_id, step_event(rfc3339(fake.now + 1.5), done))
        fake.steps_of[build_id] = (done,)
        build = fake.builds[build_id]
        if status is Status.READY:
            build = replace(build, image_digest=DIGEST)
        elif status is Status.FAILED:
            build = replace(
                build, error_code=Reason.BUILD_FAILED, error="RUN make: exit code 2\nlast line"
            )
        fake.change(build)
        fake.finish(build_id, status)

    def put_event(self, build_id: BuildId, event: bytes) -> None:
        self.fake._append(build_id, event)


_STARTERS: list[Starter] = []


@pytest.fixture(scope="session", autouse=True)
def _starter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with starter(tmp_path_factory.mktemp("starter"), ctl_env()) as started:
        _STARTERS.append(started)
        yield


async def run_ctl(
    *args: str, stdin: bytes = b"", env: dict[str, str] | None = None, cwd: Path | None = None
) -> Result:
    """Run `hypeman-ctl` through pipes and return how it ended.

    Where the start itself is the subject, or signals and streams of another kind, `ctl_argv` is
    what to run.
    """
    with trio.fail_after(60):
        return await _STARTERS[-1].run(args, stdin=stdin, env=ctl_env(env), cwd=cwd)


def ctl_argv(*args: str) -> Sequence[str]:
    return [sys.executable, "-m", "supervisor.ctl", *args]


def ctl_env(more: dict[str, str] | None = None) -> dict[str, str]:
    """Nothing of the surroundings but what Python needs."""
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    return {**kept, "LANG": "C.UTF-8", "COLUMNS": "100", **(more or {})}


@pytest.fixture
def deps(tmp_path: Path) -> ApiDeps:
    builds_dir = tmp_path / "builds"
    builds_dir.mkdir()
    fake = FakeBuilds(builds_dir)
    return ApiDeps(
        builds=fake,
        images=FakeImages(),
        operator=FakeOperator(fake),
        settings=Settings(
            data_dir=tmp_path, runtime_dir=tmp_path, host="127.0.0.1", port=0, http_grace=0.1
        ),
        keys=Keys(api=API_KEY, registry=b"r" * 32),
        threads=Threads(),
        name_registry=lambda: "registry.example:5000",
    )


@asynccontextmanager
async def serving(deps: ApiDeps) -> AsyncIterator[Daemon]:
    """Serve the API while the block lasts."""
    async with trio.open_nursery() as nursery:
        addresses = await nursery.start(serve_api, deps, no_registry)
        assert isinstance(deps.builds, FakeBuilds)
        yield Daemon(deps, deps.builds, addresses)
        nursery.cancel_scope.cancel(reason="the test is over")


@pytest.fixture
async def daemon(deps: ApiDeps) -> AsyncIterator[Daemon]:
    async with serving(deps) as daemon:
        yield daemon


@pytest.fixture
async def client(daemon: Daemon) -> AsyncIterator[Client]:
    async with daemon.client() as client:
        yield client


@pytest.fixture
def context_dir(tmp_path: Path) -> Path:
    """A directory that can be built."""
    path = tmp_path / "context"
    path.mkdir()
    (path / "Dockerfile").write_text("FROM scratch\nCOPY . /\n")
    (path / "hello.txt").write_text("hello\n")
    return path
