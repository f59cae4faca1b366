"""Traces of builds, for an OpenTelemetry collector if the operator has one.

A build's trace is made when the build has ended, of what is stored of it: so there is exactly one,
also of a build that several runs of the daemon have worked on, and nothing of it is lost with one.
Nobody waits for a collector. Spans wait for it in a bounded queue, a thread of their own sends
them, and those that find no room or no collector are lost, which is logged.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING

import trio

from supervisor.model.build import Build, Status
from supervisor.model.timeline import timeline
from supervisor.runtime.logs import log

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

MAX_WAITING_SPANS = 2048
"""Some three hundred builds; with a collector that is away, the oldest go first. About 3 MiB."""
SPANS_AT_ONCE = 512
SEND_EVERY_SECONDS = 5.0
ATTEMPT_SECONDS = 10.0
"""For sending once, retries included; then these spans are lost."""
FLUSH_SECONDS = 3.0
"""For sending what waits when the daemon stops."""

ROOT = "hypeman.build"
"""The span of a whole build; those in it are named after their phases."""

_LATEST = (1 << 63) - 1
"""In the year 2262."""

TellEnd = Callable[[Build], None]
"""Told of each build that has just ended. Returns at once."""


@asynccontextmanager
async def open_tracing(endpoint: str | None) -> AsyncIterator[TellEnd]:
    """Trace the builds that end while the block lasts; without an `endpoint`, none.

    Leaving it sends what waits, for some seconds at most.
    """
    if endpoint is None:
        yield _tell_nobody
        return
    traces = _Traces(endpoint)
    log.info("tracing.on", endpoint=endpoint)
    try:
        yield traces.tell
    finally:
        with trio.move_on_after(FLUSH_SECONDS, shield=True) as flushing:
            # The thread ends by itself, or with the process: nothing depends on it.
            await trio.to_thread.run_sync(traces.close_sync, abandon_on_cancel=True)
        if flushing.cancelled_caught:
            log.warning("tracing.spans_lost", why="the collector did not take them in time")


def _tell_nobody(build: Build) -> None:
    """There is no collector."""


class _Traces:
    """Makes a trace of each build. Made only if there is a collector: the library is large."""

    def __init__(self, endpoint: str) -> None:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        # Its messages are a line for each try; `_Reported` says the same once.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        exporter = OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces", timeout=ATTEMPT_SECONDS)
        identity = {
            "service.name": "hypeman",
            "service.version": version("hypeman"),
            "host.name": socket.gethostname(),
        }
        # Not at exit: that would wait for the collector once more.
        self._provider: TracerProvider = TracerProvider(
            resource=Resource.create(identity), shutdown_on_exit=False
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(
                _reported(exporter),
                max_queue_size=MAX_WAITING_SPANS,
                schedule_delay_millis=SEND_EVERY_SECONDS * 1000,
                max_export_batch_size=SPANS_AT_ONCE,
            )
        )
        self._tracer = self._provider.get_tracer("hypeman")
        self._trace = trace

    def tell(self, build: Build) -> None:
        """Hand over the trace of a build that has ended.

        Nothing that a user or a guest has written is in it: such text may hold a secret.
        """
        assert build.completed_at is not None, f"build {build.id} has not ended"
        trace = self._trace
        attributes = {
            "hypeman.build.id": build.id,
            "hypeman.build.tenant": build.tenant,
            "hypeman.build.status": build.status.value,
            "hypeman.build.attempts": build.attempt,
            "hypeman.build.cpus": build.request.policy.cpus,
            "hypeman.build.memory_mb": build.request.policy.memory_mb,
            "hypeman.build.network_mode": build.request.policy.network_mode.value,
            "hypeman.source.size_bytes": build.source.size_bytes,
        }
        if build.image_digest is not None:
            attributes["hypeman.image.digest"] = build.image_digest
        if build.error_code is not None:
            attributes["error.type"] = build.error_code.value
        whole = self._tracer.start_span(
            ROOT, attributes=attributes, start_time=_nanoseconds(build.created_at)
        )
        if build.status is Status.FAILED:
            whole.set_status(trace.StatusCode.ERROR, build.error_code)
        inside = trace.set_span_in_context(whole)
        for stretch in timeline(build):
            start = _nanoseconds(stretch.start)
            part = self._tracer.start_span(stretch.name, context=inside, start_time=start)
            part.end(max(start, _nanoseconds(stretch.end)))
        # A clock that was set back may have the build end before it was made.
        whole.end(_nanoseconds(max(build.created_at, build.completed_at)))

    def close_sync(self) -> None:
        """Send what waits. Blocks for as long as the collector likes, within half a minute."""
        self._provider.shutdown()


def _reported(exporter: SpanExporter) -> SpanExporter:
    """Return `exporter`, made to log the first loss of each series."""
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

    class Reported(SpanExporter):
        """Used by the thread that sends, one batch after the other."""

        def __init__(self) -> None:
            self._is_losing = False

        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            result = exporter.export(spans)
            is_lost = result is not SpanExportResult.SUCCESS
            if is_lost and not self._is_losing:
                why = "the collector did not take them; this is said once until it takes some"
                log.warning("tracing.spans_lost", spans=len(spans), why=why)
            elif self._is_losing and not is_lost:
                log.info("tracing.works_again")
            self._is_losing = is_lost
            return result

        def shutdown(self) -> None:
            exporter.shutdown()

    return Reported()


def _nanoseconds(unix_seconds: float) -> int:
    # A time that does not fit would cost the others of its batch as well. A damaged record may even
    # hold one that is infinite, or no number.
    if not unix_seconds > 0:
        return 0
    nanoseconds = unix_seconds * 1e9
    return round(nanoseconds) if nanoseconds < _LATEST else _LATEST
