"""The guest link against hostile guests: whatever they send is messages, or the loss of the guest.

Nothing else may come out of the link and the session behind it, and what they keep is bounded.
"""

from __future__ import annotations

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from agent import wire
from supervisor.errors import GuestLost
from supervisor.guest.link import GuestLink
from supervisor.guest.session import MAX_OUTPUT_LINES, Output, Session
from tests.unit.wire.corpus import Case, cases
from tests.unit.wire.test_fuzz import grown

Heard = list[wire.Message | wire.Unknown]
SILENCE = 60.0


async def hear(data: bytes, *, then_closes: bool) -> tuple[Heard, str]:
    """Return what a link hears of a guest that sends `data`, and how the guest was lost."""
    near, far = trio.testing.memory_stream_pair()
    link = GuestLink(near, silence_seconds=SILENCE)
    heard: Heard = []
    await far.send_all(data)
    if then_closes:
        await far.aclose()
    try:
        while True:
            heard.append(await link.receive())
    except GuestLost as exc:
        return heard, exc.message


def listen(data: bytes, *, then_closes: bool) -> tuple[Heard, str]:
    clock = trio.testing.MockClock(autojump_threshold=0)

    async def main() -> tuple[Heard, str]:
        return await hear(data, then_closes=then_closes)

    return trio.run(main, clock=clock)


@pytest.mark.parametrize("then_closes", [True, False], ids=["closed", "half-open"])
@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_a_guest_of_the_corpus_is_lost_for_what_it_did(case: Case, then_closes: bool) -> None:
    heard, why = listen(case.data, then_closes=then_closes)
    if case.why is not None:
        assert "broke the protocol" in why
        assert case.why in why
    else:
        assert len(heard) == (case.messages if case.messages is not None else 0)
        cut = " in the middle of a message" if case.name.startswith("cut_") else ""
        assert why == (
            f"the guest closed its connection{cut}"
            if then_closes
            else f"the guest said nothing for {SILENCE:g} s"
        )


@given(grown())
def test_whatever_a_guest_sends_is_messages_or_its_loss(data: bytes) -> None:
    heard, why = listen(data, then_closes=True)
    assert why
    session = Session()
    try:
        for message in heard:
            for action in session.receive(message):
                assert not isinstance(action, Output) or len(action.lines) <= MAX_OUTPUT_LINES
    except GuestLost:
        return


_TEXTS = st.text(max_size=20)
_NUMBERS = st.integers(-(2**64), 2**64 - 1)
_TIMES = st.floats(allow_nan=False, allow_infinity=False)
MESSAGES: st.SearchStrategy[wire.Message] = st.one_of(
    st.builds(wire.Log, st.integers(0, 50), _TIMES, _TEXTS, _NUMBERS, st.binary(max_size=300)),
    st.builds(
        wire.Step, st.integers(0, 50), st.sampled_from("abc"), _TEXTS,
        st.none() | _TIMES, st.none() | _TIMES, st.booleans(), _TEXTS,
    ),
    st.builds(wire.Status, _NUMBERS, _TIMES, st.sampled_from(["pushing", "done", "x", ""])),
    st.builds(
        wire.BuildResult, st.integers(0, 50), st.booleans(), _TEXTS, _TEXTS, _TEXTS, _TEXTS,
        st.dictionaries(_TEXTS, _TEXTS, max_size=3),
    ),
    st.builds(wire.Heartbeat, _TIMES),
    st.builds(wire.Hello, _NUMBERS, _TEXTS),
    st.builds(wire.Cancel, _TEXTS),
    st.builds(wire.SecretsResponse, st.dictionaries(_TEXTS, st.binary(), max_size=2)),
)  # fmt: skip


@given(st.lists(MESSAGES, max_size=30))
def test_any_order_of_messages_is_actions_or_the_loss_of_the_guest(
    messages: list[wire.Message],
) -> None:
    session = Session()
    written = sum(len(m.data) for m in messages if isinstance(m, wire.Log))
    shown = 0
    try:
        for message in messages:
            for action in session.receive(message):
                if isinstance(action, Output):
                    shown += sum(len(line.content) for line in action.lines)
    except GuestLost:
        pass
    shown += sum(len(line.content) for line in session.finish())
    assert shown <= written
    assert len(session.steps) <= 3
