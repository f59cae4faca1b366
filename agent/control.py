"""What the supervisor may say when, as a pure state machine.

    IDLE ──config──▸ CONFIGURED ──host_ready──▸ RUNNING ──(the build ends)──▸ DONE

`cancel` ends it from anywhere; what does not fit is answered with an `error` and changes nothing.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import Enum
from typing import assert_never

from agent import wire


class State(Enum):
    """Where the conversation stands."""

    IDLE = "idle"
    CONFIGURED = "configured"
    RUNNING = "running"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class Configure:
    """Take the build's configuration."""

    config: wire.Config


@dataclass(frozen=True, slots=True)
class Begin:
    """The host is ready: start the build."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop whatever there is, now."""

    reason: str


@dataclass(frozen=True, slots=True)
class TellStatus:
    """Answer with the present phase."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """Answer that the message is of no use."""

    why: str


Effect = Configure | Begin | Stop | TellStatus | Refuse


def step(state: State, message: wire.Message | wire.Unknown) -> tuple[State, Effect | None]:
    """Return the state after `message`, and what to do about it."""
    match message:
        case wire.Heartbeat() | wire.Error():
            return state, None
        case wire.GetStatus():
            return state, TellStatus()
        case wire.Cancel(reason=reason):
            return State.DONE, Stop(reason)
        case wire.Config() if state is State.IDLE:
            return State.CONFIGURED, Configure(message)
        case wire.HostReady() if state is State.CONFIGURED:
            return State.RUNNING, Begin()
        case wire.Config() | wire.HostReady():
            return state, Refuse(f"{message.TYPE} does not fit here: the agent is {state.value}")
        case wire.Unknown(type=name):
            return state, Refuse(f"unknown message type {name!r}")
        case (
            wire.Hello()
            | wire.GetSecrets()
            | wire.SecretsResponse()
            | wire.SourceHeader()
            | wire.Step()
            | wire.Log()
            | wire.Status()
            | wire.BuildResult()
        ):
            return state, Refuse(f"a {message.TYPE} is not for this end")
        case _ as unreachable:
            assert_never(unreachable)


def status(phase: str) -> wire.Status:
    """Return the message that names a phase, now."""
    return wire.Status(seq=0, time=time.time(), phase=phase)
