"""Stands in for `hypeman-supervisor run`: the real API, and builds that end as they are told."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import trio

from supervisor.api.listeners import serve_api
from supervisor.api.ports import ApiDeps
from supervisor.config import load_keys, load_settings
from supervisor.model.build import Status
from supervisor.runtime.threads import Threads
from tests.ctl.conftest import Daemon, no_registry
from tests.fakes.build_service import FakeBuilds
from tests.fakes.operations import FakeImages, FakeOperator


async def main(outcome: str) -> None:
    """Serve until SIGTERM."""
    settings = load_settings()
    directory = Path(os.environ["DATA_DIR"]) / "builds"
    directory.mkdir(exist_ok=True)
    fake = FakeBuilds(directory)
    deps = ApiDeps(
        builds=fake,
        images=FakeImages(),
        operator=FakeOperator(fake),
        settings=settings,
        keys=load_keys(settings),
        threads=Threads(),
        name_registry=lambda: f"localhost:{settings.port}",
    )
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            addresses = await nursery.start(serve_api, deps, no_registry)
            daemon = Daemon(deps, fake, addresses)
            nursery.start_soon(play, daemon, outcome)
            async for _ in signals:
                break
            nursery.cancel_scope.cancel(reason="SIGTERM")


async def play(daemon: Daemon, outcome: str) -> None:
    build_id = await daemon.wait_submitted()
    if outcome == "hang":
        daemon.fake.start(build_id)
        daemon.fake.log(build_id, "still at it")
    elif outcome == "die":
        os._exit(9)
    else:
        daemon.play(build_id, Status(outcome), "some output")


if __name__ == "__main__":
    if sys.argv[1] == "refuse":
        sys.stderr.write("the configuration cannot be used: no images\n")
        raise SystemExit(2)
    trio.run(main, sys.argv[1])
