"""The registry against the distribution's `docker-registry`: same run, same disk, same client.

Pushes are POST and PUT, as BuildKit does them, or in chunks, as docker does, and durable on both
sides when they are answered. Ours checks a token on each request, the peer none. A blob is pulled
as soon as it was pushed, and then again. Rounds alternate, and what a round has stored is removed
after it, so that both find memory that is in use already. Medians.
"""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.results import Row, Size, at_least, at_most
from benchmarks.servers import Server, our_registry, peer_registry

_KIND = "application/vnd.oci.image.manifest.v1+json"
_MIB = 1 << 20
_LARGE_BYTES = 4 << 20


def run(work: Path, size: Size) -> list[Row]:
    """Measure."""
    found: dict[tuple[str, str], list[float]] = {}
    with ExitStack() as stack:
        servers = {
            "ours": stack.enter_context(our_registry(work / "ours")),
            "peer": stack.enter_context(peer_registry(work / "peer")),
        }
        for server in servers.values():
            load(server, act="manifest", repository="bench/m")
        before = servers["ours"].rss_bytes
        for number in range(size.pick(5, 1)):
            for name, server in servers.items():
                for what, value in _round(server, size, number).items():
                    found.setdefault((what, name), []).append(value)
                _remove_large(work / name)
        growth = (servers["ours"].rss_bytes - before) / _MIB

    def pair(what: str) -> tuple[list[float], list[float]]:
        return found[what, "ours"], found[what, "peer"]

    rows = []
    for what, aim in (
        ("push", 2.0),
        ("chunked", 2.0),
        ("pull", 1.0),
        ("again", 1.0),
        ("parallel", 1.5),
    ):
        ours, peers = pair(what)
        rows.append(at_least(_NAMES[what], ours, "MiB/s", aim, peers))
    ours, peers = pair("rate")
    rows.append(at_least("manifest GET, 64 connections", ours, "1/s", 1.5, peers))
    ours, peers = pair("p99")
    rows.append(at_most("manifest GET, p99", ours, "ms", 200))
    rows.append(Row("manifest GET, p99 of the peer", sorted(peers)[len(peers) // 2], "ms"))
    rows.append(at_most("growth of resident memory", [growth], "MiB", 128))
    return rows


_NAMES = {
    "push": "push of one 512 MiB blob",
    "chunked": "the same in chunks",
    "pull": "first pull of one 512 MiB blob",
    "again": "the next pull",
    "parallel": "32 parallel pushes of 16 MiB",
}


def _round(server: Server, size: Size, number: int) -> dict[str, float]:
    large, small, many = size.pick(512, 2) * _MIB, size.pick(16, 1) * _MIB, size.pick(32, 2)
    found = {}
    answer = load(server, act="push", repository=f"bench/a{number}", size=large, parallel=1)
    found["push"] = large / _MIB / answer["seconds"]
    digest = answer["digests"][0]
    answer = load(server, act="pull", repository=f"bench/a{number}0", digest=digest)
    found["pull"] = large / _MIB / answer["seconds"]
    answer = load(server, act="pull", repository=f"bench/a{number}0", digest=digest)
    found["again"] = large / _MIB / answer["seconds"]
    answer = load(
        server, act="push", repository=f"bench/c{number}", size=large, parallel=1, chunked=True
    )
    found["chunked"] = large / _MIB / answer["seconds"]
    answer = load(server, act="push", repository=f"bench/b{number}", size=small, parallel=many)
    found["parallel"] = small * many / _MIB / answer["seconds"]
    answer = load(
        server,
        act="get",
        target="/v2/bench/m0/manifests/latest",
        connections=size.pick(64, 4),
        seconds=size.pick(30, 1) / 10,
        accept=_KIND,
    )
    found["rate"] = answer["rate"]
    found["p99"] = answer["p99"] * 1000
    return found


def load(server: Server, **spec: Any) -> dict[str, Any]:
    """Have the client do something, and return what it says."""
    spec = {"port": server.port, "authorization": server.authorization, **spec}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.load"],
        input=json.dumps(spec),
        text=True,
        stdout=subprocess.PIPE,
        check=True,
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _remove_large(directory: Path) -> None:
    for path in directory.rglob("*"):
        if path.is_file() and path.stat().st_size >= _LARGE_BYTES:
            path.unlink()
