"""The listeners: TCP and the UNIX socket for users, one for each machine for its guest.

A listener is a task. Cancelling it is the graceful stop: it accepts no more at once, ends what is
idle and what follows a log, gives the rest its grace, and then is gone for sure.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio
from hypercorn.trio.worker_context import WorkerContext

from supervisor.api.app import make_app
from supervisor.api.connection import Connection, make_config
from supervisor.api.front import ASGIApp, Front
from supervisor.api.ports import ApiDeps
from supervisor.errors import ConfigError
from supervisor.runtime.accept import accept
from supervisor.runtime.activation import NONE_PASSED, PassedSockets
from supervisor.runtime.logs import log
from supervisor.tokens import LOCAL_ADMIN

SOCKET_NAME = "hypeman.sock"
SOCKET_MODE = 0o660
BACKLOG = 128
MAX_CONNECTIONS = 1024
"""Of one listener for users; more wait to be accepted."""
MAX_GUEST_CONNECTIONS = 64
USER_TIMEOUT_MS = 120_000
"""A TCP peer that acknowledges nothing for so long, or takes nothing, is given up."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the API can be reached."""

    tcp: tuple[str, int] | None
    unix: Path


async def serve_api(
    deps: ApiDeps,
    registry: ASGIApp,
    passed: PassedSockets = NONE_PASSED,
    *,
    task_status: trio.TaskStatus[Addresses] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve users on TCP and on the UNIX socket until cancelled.

    Both answer when `started` is called. Of each kind, sockets that were passed are taken instead
    of one made here. Without a JWT_SECRET there is no TCP listener. Raises ConfigError if an
    address cannot be had. Once cancelled it takes at most `http_grace` seconds.
    """
    api: ASGIApp = make_app(deps)  # type: ignore[assignment]
    serve = partial(
        serve_connections,
        grace_seconds=deps.settings.http_grace,
        max_connections=MAX_CONNECTIONS,
        on_stop=deps.stopping.set,
    )
    async with (
        _open_unix(deps, passed.unix) as unix,
        _open_tcp(deps, passed.tcp) as tcp,
        trio.open_nursery() as nursery,
    ):
        local = Front(api=api, registry=registry, caller=LOCAL_ADMIN)
        for listener in unix:
            nursery.start_soon(serve, listener, local, name="api:unix")
        for listener in tcp:
            remote = Front(api=api, registry=registry)
            nursery.start_soon(serve, listener, remote, name="api:tcp")
        address = tcp[0].socket.getsockname()[:2] if tcp else None
        task_status.started(Addresses(address, Path(unix[0].socket.getsockname())))


async def serve_registry_to_guest(
    listener: trio.abc.Listener[trio.abc.Stream], registry: ASGIApp
) -> None:
    """Serve `/v2`, and nothing else, to one machine until cancelled; then stop at once."""
    front = Front(api=None, registry=registry)
    await serve_connections(listener, front, grace_seconds=0, max_connections=MAX_GUEST_CONNECTIONS)


async def serve_connections(
    listener: trio.abc.Listener[trio.abc.Stream],
    front: Front,
    *,
    grace_seconds: float,
    max_connections: int,
    on_stop: Callable[[], None] = lambda: None,
) -> None:
    """Serve every connection that `listener` accepts, at most `max_connections` at once."""
    connections = _Connections(front, grace_seconds)
    slots = trio.Semaphore(max_connections)
    async with trio.open_nursery() as nursery:
        # Not `nursery.start`: cancelled at once, it would wait for a task nobody tells to stop.
        nursery.start_soon(connections.run)
        try:
            await connections.wait_open()
            while True:
                await slots.acquire()
                connections.serve(await accept(listener), slots)
        finally:
            on_stop()
            connections.stop()


class _Connections:
    """Owns the connections of one listener, also while they have their grace."""

    def __init__(self, front: Front, grace_seconds: float) -> None:
        self._front = front
        self._grace_seconds = grace_seconds
        self._context = WorkerContext(None)
        self._open = trio.Event()
        self._stopping = trio.Event()
        self._nursery: trio.Nursery

    async def run(self) -> None:
        """Keep the connections until `stop`, and for the grace at most from then on."""
        with trio.CancelScope(shield=True) as scope:
            async with trio.open_nursery() as self._nursery:
                self._open.set()
                await self._stopping.wait()  # set in a `finally`, so it will be
                scope.deadline = trio.current_time() + self._grace_seconds
                await self._context.terminated.set()

    async def wait_open(self) -> None:
        """Wait until connections can be served."""
        await self._open.wait()

    def serve(self, stream: trio.abc.Stream, slots: trio.Semaphore) -> None:
        """Serve a stream, close it and release its slot."""
        self._nursery.start_soon(_serve_one, self._front, self._context, stream, slots)

    def stop(self) -> None:
        """End what is idle, and let the rest have its grace."""
        self._stopping.set()


async def _serve_one(
    front: Front, context: WorkerContext, stream: trio.abc.Stream, slots: trio.Semaphore
) -> None:
    try:
        await Connection(front, make_config(), context, stream).run()
    except Exception as exc:
        # A bug of ours or of the protocol machinery costs this connection, not the daemon.
        log.opt(exception=exc).error("api.connection_failed")
    finally:
        slots.release()
        await trio.aclose_forcefully(stream)


@asynccontextmanager
async def _open_tcp(
    deps: ApiDeps, passed: Sequence[socket.socket]
) -> AsyncIterator[Sequence[trio.SocketListener]]:
    with ExitStack() as stack:
        listeners = [_adopt(sock, stack) for sock in passed] or await _listen_tcp(deps, stack)
        for listener in listeners:
            # Accepted sockets inherit it.
            listener.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)
        yield listeners


async def _listen_tcp(deps: ApiDeps, stack: ExitStack) -> Sequence[trio.SocketListener]:
    host, port = deps.settings.host, deps.settings.port
    if not host or deps.keys is None:
        return ()
    try:
        listeners = await trio.open_tcp_listeners(port, host=host)
    except OSError as exc:
        raise ConfigError(f"cannot listen on {host}:{port} (HOST, PORT): {exc.strerror}") from exc
    for listener in listeners:
        stack.callback(listener.socket.close)
    return listeners


@asynccontextmanager
async def _open_unix(
    deps: ApiDeps, passed: Sequence[socket.socket]
) -> AsyncIterator[Sequence[trio.SocketListener]]:
    with ExitStack() as stack:
        if passed:
            yield [_adopt(sock, stack) for sock in passed]  # its name is its maker's to remove
            return
        path = deps.settings.runtime_dir / SOCKET_NAME
        await _remove_stale_socket(path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        stack.callback(sock.close)
        stack.callback(_unlink_if_same_sync, path, _listen_sync(sock, path))
        yield [trio.SocketListener(trio.socket.from_stdlib_socket(sock))]


def _adopt(sock: socket.socket, stack: ExitStack) -> trio.SocketListener:
    stack.callback(sock.close)
    return trio.SocketListener(trio.socket.from_stdlib_socket(sock))


async def _remove_stale_socket(path: Path) -> None:
    """Make room for our socket. Raises ConfigError if somebody answers there."""
    try:
        if not _is_socket_sync(path):
            return
        with trio.fail_after(1):
            stream = await trio.open_unix_socket(path)
    except ConnectionRefusedError:
        _unlink_if_same_sync(path, None)
        return
    except (OSError, trio.TooSlowError) as exc:
        raise ConfigError(f"cannot tell whether a daemon listens on {path}: {exc}") from exc
    await trio.aclose_forcefully(stream)
    raise ConfigError(f"another daemon listens on {path}; stop it, or set another RUNTIME_DIR")


def _is_socket_sync(path: Path) -> bool:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return False
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"{path} is there and is no socket; remove it")
    return True


def _listen_sync(sock: socket.socket, path: Path) -> os.stat_result:
    # Before it has a name, so that there is no moment in which others may connect.
    os.fchmod(sock.fileno(), SOCKET_MODE)
    try:
        sock.bind(os.fspath(path))
    except OSError as exc:
        raise ConfigError(f"cannot listen on {path} (RUNTIME_DIR): {exc}") from exc
    path.chmod(SOCKET_MODE)
    sock.listen(BACKLOG)
    return path.stat()


def _unlink_if_same_sync(path: Path, identity: os.stat_result | None) -> None:
    """Remove the socket unless another one has taken its name."""
    with suppress(FileNotFoundError):
        if identity is None or os.path.samestat(path.lstat(), identity):
            path.unlink()
