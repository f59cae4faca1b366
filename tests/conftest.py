"""What holds for every suite."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# A busy machine is no failure of a test: how long an example takes is not asserted.
settings.register_profile("hypeman", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("hypeman")
