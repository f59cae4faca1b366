"""A token that was verified a moment ago is not verified again, and never outlives itself."""

from __future__ import annotations

import pytest

from supervisor.config import Keys
from supervisor.errors import Unauthorized
from supervisor.model.ids import Tenant
from supervisor.registry.authentication import Authenticator
from supervisor.tokens import ALL_BUT_ADMIN, Caller


class Verifying:
    """An authenticator with a clock of its own, and a count of its verifications."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, expires_at: float) -> None:
        self.now = 0.0
        self.count = 0
        self._expires_at = expires_at
        self.authenticator = Authenticator(Keys(b"a" * 32, b"r" * 32), lambda: self.now, "x")
        monkeypatch.setattr(self.authenticator, "_parse", self._parse)

    def at(self, now: float) -> int:
        """Show the token at a time; return how often one was verified up to now."""
        self.now = now
        self.authenticator.verify("token")
        return self.count

    def _parse(self, token: str) -> Caller:
        self.count += 1
        if self.now >= self._expires_at:
            raise Unauthorized("the token has expired")
        return Caller("sub", Tenant("acme"), ALL_BUT_ADMIN, self._expires_at)


def test_a_burst_costs_one_verification(monkeypatch: pytest.MonkeyPatch) -> None:
    verifying = Verifying(monkeypatch, expires_at=100)
    assert [verifying.at(now) for now in (10, 10.2, 10.9, 11.1)] == [1, 1, 1, 2]


def test_a_token_is_not_remembered_past_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    verifying = Verifying(monkeypatch, expires_at=100)
    assert verifying.at(99.9) == 1
    with pytest.raises(Unauthorized, match="expired"):
        verifying.at(100)


def test_a_clock_that_was_put_back_forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    verifying = Verifying(monkeypatch, expires_at=100)
    assert [verifying.at(now) for now in (50, 40)] == [1, 2]
