"""From inside a guest: a blob through the agent's forward and the registry, against a bare stream.

One machine. The bare stream is as many bytes over vsock, dropped on arrival: neither hashed, nor
stored, nor made durable, with no second program of the guest in between. Rounds alternate. Medians.
"""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import trio

from agent import wire
from benchmarks import guest_program
from benchmarks.results import Row, Size, at_least
from benchmarks.serve import open_registry
from benchmarks.servers import authorization
from supervisor.api.listeners import serve_registry_to_guest
from supervisor.config import Accelerator
from supervisor.model.ids import MachineId
from supervisor.vm.machine import Machine, MachineSpec, wait_connect
from supervisor.vm.qemu import QemuConfig, start_hypervisor
from tests.machines import image_running, path_with_tools

_BARE_PORT = 5003
_PIECE = bytes(1 << 20)
_NAMES = {
    "push": ("push from a guest", "sent"),
    "pull": ("pull into a guest", "received"),
}


def run(work: Path, size: Size) -> list[Row]:
    """Measure."""
    os.environ["PATH"] = path_with_tools()
    (work / "registry").mkdir()
    found = trio.run(_measure, work, size.pick(128, 1), size.pick(7, 1))
    return [
        at_least(what, found[act], "MiB/s", 0.8, found[bare])
        for act, (what, bare) in _NAMES.items()
    ]


async def _measure(work: Path, mib: int, times: int) -> dict[str, list[float]]:
    image = image_running(Path(guest_program.__file__), work)
    config = QemuConfig(
        runtime_dir=work,
        data_dir=work,
        image=image,
        accelerator=Accelerator.AUTO,
        stop_grace=2,
        probe_timeout=8,
    )
    hypervisor = await start_hypervisor(config, trio.CapacityLimiter(2))
    found: dict[str, list[float]] = {}
    async with open_registry(work / "registry") as registry, trio.open_nursery() as nursery:
        spec = MachineSpec(MachineId("guest-link"), cpus=2, memory_mb=1024)
        machine = await nursery.start(hypervisor.run_machine, spec)
        async with machine.listen(wire.REGISTRY_PORT) as served, machine.listen(_BARE_PORT) as bare:
            nursery.start_soon(serve_registry_to_guest, served, registry)
            order = partial(_order, machine, mib)
            for number in range(times + 1):
                spent = {}
                for act, sink in (("sent", _drop), ("received", _give)):
                    nursery.start_soon(_accept, bare, partial(sink, mib))
                    spent[act] = await order(act, port=_BARE_PORT)
                through = {
                    "host": wire.GUEST_ADDRESS,
                    "port": wire.REGISTRY_PORT,
                    "authorization": authorization(),
                    "repository": f"bench/guest{number}",
                }
                spent["push"] = await order("push", **through)
                spent["pull"] = await order("pull", **through, digest=spent["push"]["digest"])
                for act, answer in spent.items():
                    if number:  # the first round warms up
                        found.setdefault(act, []).append(mib / answer["seconds"])
            nursery.cancel_scope.cancel(reason="all is measured")
    return found


async def _order(machine: Machine, mib: int, act: str, **fields: Any) -> dict[str, Any]:
    stream = await wait_connect(machine, guest_program.COMMAND_PORT)
    async with stream:
        await stream.send_all(json.dumps({"act": act, "mib": mib, **fields}).encode() + b"\n")
        data = b""
        while not data.endswith(b"\n"):
            piece = await stream.receive_some(65536)
            assert piece, "the guest's program has failed"
            data += piece
    answer: dict[str, Any] = json.loads(data)
    return answer


async def _accept(listener: trio.abc.Listener[trio.abc.Stream], use: Any) -> None:
    async with await listener.accept() as stream:
        await use(stream)


async def _drop(mib: int, stream: trio.abc.Stream) -> None:
    left = mib * len(_PIECE)
    while left > 0:
        left -= len(await stream.receive_some(256 << 10))
    await stream.send_all(b"!")
    await stream.receive_some(1)  # until the guest closes


async def _give(mib: int, stream: trio.abc.Stream) -> None:
    await stream.receive_some(1)
    for _ in range(mib):
        await stream.send_all(_PIECE)
    await stream.receive_some(1)
