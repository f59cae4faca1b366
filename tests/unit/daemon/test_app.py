"""The daemon from its start to its end, as its service manager sees it; the machines are fakes."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
import trio
import trio.testing

from supervisor.api.listeners import Addresses
from supervisor.config import Settings
from supervisor.daemon import app, tracing
from supervisor.errors import ConfigError
from supervisor.model.build import Build
from supervisor.runtime.activation import PassedSockets
from supervisor.runtime.logs import log
from supervisor.runtime.metrics import Metrics
from tests.api.conftest import SOURCE
from tests.fakes.agent import Talk, agent
from tests.fakes.collector import collecting
from tests.fakes.hypervisor import FakeHypervisor

LONGEST_SECONDS = 30


class Manager:
    """The service manager: hears what the daemon says, in order."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._trio = trio.socket.from_stdlib_socket(self._socket)
        self._more = trio.Event()
        self.heard: list[str] = []

    async def listen(self) -> None:
        """Take in what is said, for ever: who speaks to a full queue waits."""
        while True:
            self.heard += (await self._trio.recv(4096)).decode().split("\n")
            self._more.set()
            self._more = trio.Event()

    async def wait(self, assignment: str) -> None:
        """Wait until `assignment` was said."""
        with trio.fail_after(LONGEST_SECONDS):
            while assignment not in self.heard:
                await self._more.wait()

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def root() -> Iterator[Path]:
    """A directory with a short name: sockets are made in it."""
    with tempfile.TemporaryDirectory(prefix="hm-", dir="/tmp") as name:
        yield Path(name)


@pytest.fixture
async def manager(root: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Manager]:
    monkeypatch.setenv("NOTIFY_SOCKET", str(root / "notify"))
    manager = Manager(root / "notify")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(manager.listen)
        yield manager
        nursery.cancel_scope.cancel(reason="the test is over")
    manager.close()


class SlowToRecover(FakeHypervisor):
    """Sweeps when it is told to."""

    platform = "fake"

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.may_sweep = trio.Event()

    async def sweep(self) -> int:
        await self.may_sweep.wait()
        return await super().sweep()


async def busy(talk: Talk) -> None:
    """A build that does not end by itself."""
    await talk.greet()
    await trio.sleep_forever()


@pytest.fixture
def hypervisor(monkeypatch: pytest.MonkeyPatch) -> SlowToRecover:
    hypervisor = SlowToRecover(agent(busy))
    hypervisor.may_sweep.set()

    async def start(*_: object) -> FakeHypervisor:
        await trio.lowlevel.checkpoint()
        return hypervisor

    monkeypatch.setattr(app, "start_hypervisor", start)
    image = SimpleNamespace(
        digest="sha256:" + "cd" * 32, reference="hypeman/builder:latest", components={}
    )
    monkeypatch.setattr(app, "find_builder_image", lambda *_: image)
    return hypervisor


def settings(root: Path, **changes: Any) -> Settings:
    values = {"data_dir": root / "data", "runtime_dir": root / "run", "host": "none"}
    return Settings(**{**values, "metrics_address": "none", "http_grace": 0.1, **changes})


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


def client(root: Path) -> httpx2.AsyncClient:
    transport = httpx2.AsyncHTTPTransport(uds=str(root / "run" / "hypeman.sock"))
    return httpx2.AsyncClient(transport=transport, base_url="http://local", timeout=30)


async def submit(root: Path) -> str:
    async with client(root) as http:
        files = {"source": ("source.tar.gz", SOURCE, "application/gzip")}
        answer = await http.post("/builds", files=files)
    assert answer.status_code == 202, answer.text
    build_id: str = answer.json()["id"]
    return build_id


async def wait_building(root: Path, build_id: str) -> None:
    async with await trio.open_unix_socket(root / "run" / "hypeman.sock") as stream:
        request = f"GET /builds/{build_id}/logs HTTP/1.1\r\nHost: x\r\n\r\n"
        await stream.send_all(request.encode())
        seen = b""
        while b'"building"' not in seen:
            data = await stream.receive_some()
            assert data, seen
            seen += data


async def end_a_build(root: Path) -> Any:
    """Submit a build, cancel it while it runs, and return what is shown of it then."""
    build_id = await submit(root)
    await wait_building(root, build_id)
    async with client(root) as http:
        assert (await http.delete(f"/builds/{build_id}")).status_code == 204
        await http.get(f"/builds/{build_id}/logs")  # to its end
        return (await http.get(f"/builds/{build_id}")).json()


@pytest.mark.usefixtures("hypervisor")
async def test_it_says_that_it_is_ready_and_that_it_stops(root: Path, manager: Manager) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(app.run_daemon, settings(root))
        await manager.wait("READY=1")
        async with client(root) as http:
            assert (await http.get("/ready")).status_code == 200
        send(signal.SIGTERM)
        await manager.wait("STOPPING=1")
    told = [line for line in manager.heard if not line.startswith("STATUS=")]
    assert told == ["READY=1", "STOPPING=1"]


async def test_it_is_not_ready_before_it_has_recovered(
    root: Path, manager: Manager, hypervisor: SlowToRecover
) -> None:
    hypervisor.may_sweep = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(app.run_daemon, settings(root))
        await trio.testing.wait_all_tasks_blocked(0.2)
        await manager.wait("STATUS=Starting: recovering what an earlier run has left.")
        assert "READY=1" not in manager.heard
        assert not (root / "run" / "hypeman.sock").exists(), "nobody can connect yet"
        hypervisor.may_sweep.set()
        await manager.wait("READY=1")
        send(signal.SIGTERM)


async def test_the_watchdog_is_fed_before_it_is_ready_and_until_it_has_stopped(
    root: Path, manager: Manager, hypervisor: SlowToRecover, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "20000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    hypervisor.may_sweep = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(app.run_daemon, settings(root, drain_grace=600))
        await manager.wait("WATCHDOG=1")
        hypervisor.may_sweep.set()
        await manager.wait("READY=1")
        await wait_building(root, await submit(root))
        send(signal.SIGTERM)
        await manager.wait("STOPPING=1")
        manager.heard.clear()
        await manager.wait("WATCHDOG=1")
        send(signal.SIGTERM)


@pytest.mark.usefixtures("hypervisor")
async def test_the_first_signal_lets_builds_finish_and_the_second_does_not(
    root: Path, manager: Manager
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(app.run_daemon, settings(root, drain_grace=600))
        await manager.wait("READY=1")
        build_id = await submit(root)
        await wait_building(root, build_id)
        send(signal.SIGTERM)
        await manager.wait("STOPPING=1")
        async with client(root) as http:
            assert (await http.get(f"/builds/{build_id}")).json()["status"] == "building"
        with trio.fail_after(LONGEST_SECONDS):  # and not after the grace of ten minutes
            send(signal.SIGTERM)
            await manager.wait("STATUS=Stopping: running builds are put back into the queue.")
            while nursery.child_tasks:  # noqa: ASYNC110 - the daemon's end has no other sign
                await trio.sleep(0.01)
    metadata = (root / "data" / "builds" / build_id / "metadata.json").read_text()
    assert '"status": "queued"' in metadata


async def test_a_signal_before_it_is_up_ends_it(
    root: Path, manager: Manager, hypervisor: SlowToRecover
) -> None:
    hypervisor.may_sweep = trio.Event()
    with trio.fail_after(LONGEST_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(app.run_daemon, settings(root))
            await manager.wait("STATUS=Starting: recovering what an earlier run has left.")
            send(signal.SIGTERM)
    await manager.wait("STOPPING=1")
    assert "READY=1" not in manager.heard


@pytest.mark.usefixtures("hypervisor")
async def test_a_client_that_never_reads_does_not_hold_up_the_end(
    root: Path, manager: Manager
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(app.run_daemon, settings(root))
        await manager.wait("READY=1")
        async with await trio.open_unix_socket(root / "run" / "hypeman.sock") as stream:
            # Answers without end, until both buffers are full and the daemon waits in its write.
            await stream.send_all(b"GET /spec.json HTTP/1.1\r\nHost: x\r\n\r\n" * 200)
            await trio.testing.wait_all_tasks_blocked(0.1)
            with trio.fail_after(LONGEST_SECONDS):
                send(signal.SIGTERM)
                while nursery.child_tasks:  # noqa: ASYNC110 - the daemon's end has no other sign
                    await trio.sleep(0.01)


@pytest.mark.usefixtures("hypervisor")
async def test_a_tcp_socket_from_the_manager_needs_a_key(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JWT_SECRET", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as sock:
        monkeypatch.setattr(app, "take_sockets", lambda: PassedSockets(tcp=(sock,)))
        with pytest.raises(ConfigError, match="JWT_SECRET is not set"):
            await app.run_daemon(settings(root))


@pytest.mark.usefixtures("hypervisor")
async def test_with_port_0_the_registry_is_named_by_the_port_that_it_has(
    root: Path, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JWT_SECRET", "s" * 32)
    metrics, ports = Metrics(), []
    monkeypatch.setattr(app, "Metrics", lambda: metrics)
    serve_api = app.serve_api

    async def serve(*arguments: Any, task_status: trio.TaskStatus[Addresses]) -> None:
        async with trio.open_nursery() as nursery:
            addresses = await nursery.start(serve_api, *arguments)
            assert addresses.tcp is not None
            ports.append(addresses.tcp[1])
            task_status.started(addresses)

    monkeypatch.setattr(app, "serve_api", serve)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(app.run_daemon, settings(root, host="127.0.0.1", port=0))
        await manager.wait("READY=1")
        assert ports[0] != 0
        async with client(root) as http:
            info = (await http.get("/system/info")).json()
            assert info["registry_address"] == f"localhost:{ports[0]}"
            assert await http.post("/v2/acme/app/blobs/uploads/?digest=x", content=b"12345")
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{ports[0]}") as http:
            answer = await http.get("/v2/", headers={"Host": "not a host"})
            assert f"http://localhost:{ports[0]}/" in answer.headers["WWW-Authenticate"]
        read = metrics.registry.get_sample_value
        assert read("hypeman_registry_bytes_total", {"direction": "in"}) == 5
        assert read("hypeman_log_readers") == 0
        assert read("hypeman_tasks") == trio.lowlevel.current_statistics().tasks_living
        assert read("hypeman_machines", {"state": "leased"}) == 0
        send(signal.SIGTERM)


@pytest.mark.usefixtures("hypervisor")
async def test_a_build_that_ends_is_counted_and_its_trace_sent_at_the_latest_at_the_end(
    root: Path, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = Metrics()
    monkeypatch.setattr(app, "Metrics", lambda: metrics)
    monkeypatch.setattr(tracing, "FLUSH_SECONDS", float(LONGEST_SECONDS))
    monkeypatch.setattr(tracing, "SEND_EVERY_SECONDS", 3600.0)
    with collecting() as collector:
        traced = settings(root, otel_exporter_otlp_endpoint=collector.url)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(app.run_daemon, traced)
            await manager.wait("READY=1")
            await end_a_build(root)
            assert not collector.bodies
            send(signal.SIGTERM)
    assert metrics.registry.get_sample_value("hypeman_builds_total", {"status": "cancelled"}) == 1
    assert {tracing.ROOT, "queue", "lease"} <= {span.name for span in collector.spans()}
    assert len({span.trace_id for span in collector.spans()}) == 1


@pytest.mark.usefixtures("hypervisor")
async def test_a_trace_that_cannot_be_made_costs_neither_the_build_nor_the_daemon(
    root: Path, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    @asynccontextmanager
    async def broken(_: str | None) -> AsyncIterator[tracing.TellEnd]:
        def fail(build: Build) -> None:
            raise OverflowError("cannot convert float infinity to integer")

        yield fail

    said: list[tuple[str, str]] = []

    def note(message: Any) -> None:
        record = message.record
        said.append((record["message"], record["extra"].get("build_id", "")))

    monkeypatch.setattr(app, "open_tracing", broken)
    sink = log.add(note, level="ERROR")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(app.run_daemon, settings(root))
        await manager.wait("READY=1")
        shown = await end_a_build(root)
        send(signal.SIGTERM)
    log.remove(sink)
    assert shown["status"] == "cancelled"
    assert said == [("tracing.failed", shown["id"])]
