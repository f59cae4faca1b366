"""The agent as its machine's service: BuildKit from the start, and one supervisor after another
until one of them has had its build. Then the machine's work is done.
"""

from __future__ import annotations

import socket
import sys

import trio

from agent import rootless, vitals, vsock, wire
from agent.build import run_build
from agent.buildkit import Daemon
from agent.forward import forward
from agent.session import Build, Send, Session
from agent.source import start_unpacking
from agent.warmup import WarmUp

CONTACT_SECONDS = 300.0
"""A machine that no supervisor wants for so long ends itself."""


def run(listener: int, greeted: int | None, hello: wire.Hello, started: rootless.Started) -> None:
    """Serve until the machine's work is done. Takes over the descriptors of the listening socket
    and of a connection that has been told a hello already, and the daemon that was started.
    """
    vitals.stay_able()
    trio.run(serve, listener, greeted, hello, started)


async def serve(
    listener: int, greeted: int | None, hello: wire.Hello, started: rootless.Started
) -> None:
    """Own BuildKit, and talk to one supervisor at a time until the machine's work is done."""
    daemon = Daemon()
    warm_up = WarmUp()
    unpacking = start_unpacking()

    async def build(config: wire.Config, send: Send) -> wire.BuildResult:
        warm_up.stop()
        return await run_build(
            config, send, daemon=daemon, connect=vsock.connect, unpacking=unpacking
        )

    async with trio.open_nursery() as nursery:
        nursery.start_soon(daemon.run, started)
        nursery.start_soon(_warm_up, warm_up, daemon, nursery.cancel_scope)
        # Every build needs it. Until there is one, nobody listens at its other end.
        port = wire.REGISTRY_PORT
        await nursery.start(forward, wire.GUEST_ADDRESS, port, vsock.connect, port)
        with _trio_socket(listener) as accepting:
            session: Session | None
            if greeted is not None:
                stream = trio.SocketStream(_trio_socket(greeted))
                session = Session(stream, build, None, warm_up.done)
            else:
                session = await _next_session(accepting, build, hello, warm_up.done)
            while session is not None:
                say(await session.run())
                if session.is_over:
                    break
                session = await _next_session(accepting, build, hello, warm_up.done)
        nursery.cancel_scope.cancel(reason="the machine's work is done")


async def _warm_up(warm_up: WarmUp, daemon: Daemon, machine: trio.CancelScope) -> None:
    if why := await warm_up.run(daemon):
        say(f"this machine cannot build: {why}")
        machine.cancel(reason="the warm-up has failed")


async def _next_session(
    listener: trio.socket.SocketType, build: Build, hello: wire.Hello, warm: trio.Event
) -> Session | None:
    with trio.move_on_after(CONTACT_SECONDS):
        connection, _ = await listener.accept()
        return Session(trio.SocketStream(connection), build, hello, warm)
    say(f"no supervisor came for {CONTACT_SECONDS:g} s")
    return None


def _trio_socket(fd: int) -> trio.socket.SocketType:
    return trio.socket.from_stdlib_socket(socket.socket(fileno=fd))


def say(text: str) -> None:
    """Write a line to the machine's console."""
    sys.stderr.write(f"builder-agent: {text}\n")
    sys.stderr.flush()
