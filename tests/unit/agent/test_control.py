"""What the supervisor may say when: every state, every message."""

from __future__ import annotations

import pytest

from agent import wire
from agent.control import (
    Begin,
    Configure,
    Effect,
    Refuse,
    State,
    Stop,
    TellStatus,
    status,
    step,
)

CONFIG = wire.Config(
    build_id="b",
    registry="r",
    registry_token="t",
    repository="builds/b",
    source_sha256="0" * 64,
    source_size=1,
    timeout_seconds=1,
)
IDLE, CONFIGURED, RUNNING, DONE = State
OURS = (
    wire.Hello(1, "x"),
    wire.GetSecrets(()),
    wire.SecretsResponse({}),
    wire.SourceHeader(1, "0"),
    wire.Step(1, "d", "n"),
    wire.Log(1, 0.0, "", 1, b""),
    wire.Status(1, 0.0, "idle"),
    wire.BuildResult(1, ok=True),
)


@pytest.mark.parametrize(
    ("state", "message", "after", "effect"),
    [
        (IDLE, CONFIG, CONFIGURED, Configure(CONFIG)),
        (CONFIGURED, wire.HostReady(), RUNNING, Begin()),
        *((state, wire.Cancel("why"), DONE, Stop("why")) for state in State),
        *((state, wire.GetStatus(), state, TellStatus()) for state in State),
        *((state, wire.Heartbeat(1.0), state, None) for state in State),
        *((state, wire.Error("what?"), state, None) for state in State),
    ],
)
def test_what_is_allowed(
    state: State, message: wire.Message, after: State, effect: Effect | None
) -> None:
    assert step(state, message) == (after, effect)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        *((state, CONFIG) for state in (CONFIGURED, RUNNING, DONE)),
        *((state, wire.HostReady()) for state in (IDLE, RUNNING, DONE)),
        *((state, wire.Unknown("news")) for state in State),
        *((state, message) for state in State for message in OURS),
    ],
)
def test_what_is_refused_changes_nothing(
    state: State, message: wire.Message | wire.Unknown
) -> None:
    after, effect = step(state, message)
    assert after is state
    assert isinstance(effect, Refuse)


def test_a_status_names_its_phase() -> None:
    assert status("source").phase == "source"
