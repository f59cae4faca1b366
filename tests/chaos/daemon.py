"""The real daemon on fake machines, again and again: `python -m tests.chaos.daemon`.

Reads orders from standard input, one JSON object a line; for each, forks a child that is a daemon
of its own and differs from `hypeman-supervisor run` in its hypervisor and in the faults that were
ordered. Answers with the child's id, and with its status when it has ended. Everything is imported
before, so that a daemon starts in a moment; this process runs no threads.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import supervisor.daemon.app as app
from supervisor.daemon import cli
from supervisor.model.image import BuilderImage
from tests.chaos.faults import Fault, Journal, Points
from tests.chaos.guest import chaotic_guest
from tests.chaos.machines import BodiedHypervisor
from tests.chaos.vitals import report_on_request

_PR_SET_PDEATHSIG = 1


@dataclasses.dataclass
class Order:
    """What one daemon is to be."""

    life: int
    environment: dict[str, str]
    log: str
    journal: str
    passed: str = ""
    """Where to write, at a graceful end, how often each point was passed."""
    vitals: str = ""
    """Where to write what the process is made of, on SIGUSR1."""
    calls: bool = False
    """Whether the system calls that write are points, too."""
    faults: list[dict[str, Any]] = dataclasses.field(default_factory=list)


def main() -> None:
    """Obey orders until there are no more."""
    for line in sys.stdin:
        order = Order(**json.loads(line))
        pid = os.fork()
        if pid == 0:
            _be_a_daemon(order)
        _answer(pid=pid)
        _, status = os.waitpid(pid, 0)
        _answer(status=os.waitstatus_to_exitcode(status))


def _answer(**facts: int) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def _be_a_daemon(order: Order) -> None:
    status = 1
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        os.setsid()
        log = os.open(order.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.clear()
        os.environ.update(order.environment)
        journal = Journal(Path(order.journal), order.life)
        points = Points([Fault(**fault) for fault in order.faults], journal)
        points.install()
        if order.calls:
            points.install_calls(Path(order.environment["DATA_DIR"]))
        _replace_machines(journal, points)
        if order.vitals:
            report_on_request(Path(order.vitals))
        status = _exit_status(lambda: cli.run(None))
        if order.passed:
            Path(order.passed).write_text(json.dumps(points.passed))
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)


def _exit_status(run: Callable[[], None]) -> int:
    try:
        run()
    except SystemExit as exc:
        return exc.code if isinstance(exc.code, int) else 1
    return 0


def _replace_machines(journal: Journal, points: Points) -> None:
    def find_image(images_dir: Path, reference: str) -> BuilderImage:
        file = images_dir / "template"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"a scratch disk")
        return BuilderImage(reference, "sha256:" + "cd" * 32, file, "", file, file, file, "")

    async def start(config: Any, *_: object, **__: object) -> BodiedHypervisor:
        hypervisor = BodiedHypervisor(
            chaotic_guest(journal),
            runtime_dir=config.runtime_dir,
            data_dir=config.data_dir,
            template=config.image.scratch,
            points=points,
        )
        await hypervisor.sweep()
        return hypervisor

    app.find_builder_image = find_image
    app.start_hypervisor = start  # type: ignore[assignment]


if __name__ == "__main__":
    main()
