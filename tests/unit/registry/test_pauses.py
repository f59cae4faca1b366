"""For how long which upstream is left alone."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from supervisor.registry.pauses import Pauses
from supervisor.registry.upstream_errors import failing, limited, refused, unreachable


async def test_a_limit_holds_for_the_upstream_until_it_ends(mock_clock: MockClock) -> None:
    pauses = Pauses()
    pauses.note("hub", "a", limited("hub", 30.0))
    mock_clock.jump(10)
    for repository in ("a", "b"):
        trouble = pauses.current("hub", repository)
        assert trouble is not None
        assert dict(trouble.headers)[b"retry-after"] == b"20"
    assert pauses.current("other", "a") is None
    mock_clock.jump(20)
    assert pauses.current("hub", "a") is None


async def test_a_broken_answer_holds_for_its_repository(mock_clock: MockClock) -> None:
    pauses = Pauses()
    pauses.note("hub", "a", failing("hub", "it lies"))
    assert pauses.current("hub", "a") is not None
    assert pauses.current("hub", "b") is None
    mock_clock.jump(10)
    assert pauses.current("hub", "a") is None


async def test_an_upstream_that_is_gone_is_asked_again_after_a_while(
    mock_clock: MockClock,
) -> None:
    pauses = Pauses()
    pauses.note("hub", "a", unreachable("hub", "refused"))
    assert pauses.current("hub", "b") is not None
    mock_clock.jump(60)
    assert pauses.current("hub", "b") is None


async def test_a_refusal_is_asked_again_at_once() -> None:
    pauses = Pauses()
    pauses.note("hub", "a", refused("hub", "no"))
    assert pauses.current("hub", "a") is None


async def test_many_troubled_names_cost_bounded_memory() -> None:
    pauses = Pauses()
    for number in range(10_000):
        pauses.note("hub", str(number), failing("hub", "it lies"))
        await trio.lowlevel.checkpoint()
    assert len(pauses._pauses) <= 4096
    assert pauses.current("hub", "9999") is not None
