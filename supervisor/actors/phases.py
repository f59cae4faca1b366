"""How long an attempt is in each of its phases."""

from __future__ import annotations

import trio

from supervisor.model.build import Phase


class PhaseClock:
    """Measures how long an attempt is in each phase, on the monotonic clock."""

    def __init__(self, first: Phase) -> None:
        self._spent: dict[Phase, float] = {}
        self._phase: Phase | None = first
        self._since = trio.current_time()

    def enter(self, phase: Phase) -> None:
        """Leave the present phase for `phase`; entering the same one again changes nothing."""
        if phase is not self._phase:
            self.stop()
            self._phase = phase

    def stop(self) -> None:
        """Leave the present phase."""
        now = trio.current_time()
        if self._phase is not None:
            self._spent[self._phase] = self.spent(self._phase) + now - self._since
        self._phase, self._since = None, now

    def spent(self, phase: Phase) -> float:
        """Return the seconds spent in a phase that has been left."""
        return self._spent.get(phase, 0.0)

    @property
    def phases(self) -> dict[Phase, float]:
        """The seconds spent in every phase that has been left."""
        return dict(self._spent)
