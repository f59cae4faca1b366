"""The gauges of the actors: what waits, what runs, and which machines there are."""

from __future__ import annotations

from supervisor.actors.pool import Pool
from supervisor.actors.queue import QueueHandle
from supervisor.actors.runner import BuildRunner
from supervisor.runtime.metrics import Metrics


def watch_actors(metrics: Metrics, queue: QueueHandle, runner: BuildRunner, pool: Pool) -> None:
    """Add the gauges of these actors."""
    metrics.watch("hypeman_build_queue_length", "Builds that wait.", lambda: queue.length)
    metrics.watch("hypeman_builds_active", "Builds that run.", lambda: len(runner.running))
    metrics.watch_each(
        "hypeman_machines",
        "Machines, those that wait in the pool and those that builds have.",
        "state",
        {
            "booting": lambda: pool.counts.booting,
            "idle": lambda: pool.counts.idle,
            "leased": lambda: pool.counts.leased,
        },
    )
