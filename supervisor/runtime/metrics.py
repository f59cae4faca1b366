"""What the daemon counts, in the names of the contract (Prometheus).

Gauges ask whoever knows at the moment they are read, so they cannot drift.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from supervisor.model.build import Build, Status

_DURATIONS = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200)
_PHASES = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800)
_FINAL = [status for status in Status if status.is_final]


class Metrics:
    """All metrics of one daemon, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._ended = Counter(
            "hypeman_builds_total", "Builds that have ended.", ["status"], registry=self.registry
        )
        self._durations = Histogram(
            "hypeman_build_duration_seconds",
            "From the first start of a build to its end.",
            ["status"],
            buckets=_DURATIONS,
            registry=self.registry,
        )
        self._phases = Histogram(
            "hypeman_build_phase_seconds",
            "Time that ended builds spent in each phase.",
            ["phase"],
            buckets=_PHASES,
            registry=self.registry,
        )
        self._registry_bytes = Counter(
            "hypeman_registry_bytes_total",
            "Bytes of blobs and manifests that the registry has taken in and sent out.",
            ["direction"],
            registry=self.registry,
        )
        for direction in ("in", "out"):
            self._registry_bytes.labels(direction)
        for status in _FINAL:  # a counter that is absent until its first event has no rate
            self._ended.labels(status.value)

    def count_end(self, build: Build) -> None:
        """Count a build that has just got its final status."""
        assert build.completed_at is not None, f"build {build.id} has not ended"
        self._ended.labels(build.status.value).inc()
        if build.started_at is not None:
            took = max(0.0, build.completed_at - build.started_at)
            self._durations.labels(build.status.value).observe(took)
        for phase, seconds in build.phases.items():
            self._phases.labels(phase.value).observe(seconds)

    def count_registry_bytes(self, direction: str, count: int) -> None:
        """Count bytes that have just gone through the registry, `in` or `out`."""
        self._registry_bytes.labels(direction).inc(count)

    def watch(self, name: str, about: str, read: Callable[[], float]) -> None:
        """Add a gauge that shows what `read` returns."""
        Gauge(name, about, registry=self.registry).set_function(read)

    def watch_each(
        self, name: str, about: str, label: str, reads: Mapping[str, Callable[[], float]]
    ) -> None:
        """Add a gauge with a label that shows, for each value, what its function returns."""
        gauge = Gauge(name, about, [label], registry=self.registry)
        for value, read in reads.items():
            gauge.labels(value).set_function(read)
