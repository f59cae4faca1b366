"""From BuildKit's progress to messages of the guest link. Pure.

`buildctl --progress=rawjson` writes JSON objects (client.SolveStatus), one per line, to standard
error, and behind the last of them what it would print for people: an excerpt of the Dockerfile, and
`error: …`. What a build prints is base64 inside that JSON, so no output of a build can pass for
either; it becomes `log` messages and nothing else. An error can quote anybody (a git server, a
frontend of the build's own), line breaks included: behind the first line for people, nothing is a
report.

Sequence numbers are given where the messages are sent: all of them are 0 here.
"""

from __future__ import annotations

import binascii
import json
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from agent import wire
from agent.failure import FailedStep
from agent.redact import RedactedStream, Redaction

MAX_LINE_BYTES = 32 << 20
"""A report holds at most one gRPC message (16 MiB) of output, a third longer as base64."""
MAX_TEXT_BYTES = 64 << 10
"""Of what `buildctl` writes besides progress, the last so many bytes are kept."""
MAX_NAME_CHARACTERS = 4_096
MAX_ERROR_CHARACTERS = 16_000
MAX_VERTICES = 10_000
"""The supervisor takes no more steps of one build either."""
MAX_FAILED_STEPS = 100
"""The first is to blame, or one soon after it; the others are cancelled with it."""
_TAIL_BYTES = 8 << 10
_EXPORTING = "exporting to image"
_INLINE = "[internal] preparing inline document"
_BESIDE_REPORTS = (b"time=", b"WARNING: ")
"""How what `buildctl` logs of its own begins; reports may follow it."""
_OF_A_STAGE = re.compile(r"\[(?:[^\]]* )?\d+/\d+\] ")
_FROM = re.compile(_OF_A_STAGE.pattern + r"FROM \S+@(sha256:[0-9a-f]{64})")


class Progress:
    """What one `buildctl` has reported so far."""

    def __init__(self, redaction: Redaction) -> None:
        self._redaction = redaction
        self._buffer = bytearray()
        self._scanned = 0
        self._is_skipping = False
        self._text = bytearray()
        self._is_over = False
        """Whether the reports are: what is left is for people."""
        self._steps: dict[str, wire.Step] = {}
        self._inputs: dict[str, list[str]] = {}
        self._names: dict[str, str] = {}
        self._streams: dict[tuple[str, int], RedactedStream] = {}
        self._tails: dict[str, bytes] = {}
        self._failed: dict[str, FailedStep] = {}
        self._time = 0.0
        self._is_exporting = False

    @property
    def text(self) -> str:
        """What `buildctl` wrote besides progress, secrets masked."""
        return self._redaction.text(self._text.decode(errors="replace"))

    @property
    def failed_steps(self) -> tuple[FailedStep, ...]:
        """The steps that ended with an error, in the order in which they did."""
        return tuple(self._failed.values())

    @property
    def base_image_digest(self) -> str:
        """The digest of the image that the final stage starts from, or empty if it is not known.

        The final operation is the one that no other has as its input. From there on, each is asked
        for the file system that it works on.
        """
        used = {digest for inputs in self._inputs.values() for digest in inputs}
        last = [digest for digest, inputs in self._inputs.items() if digest not in used]
        operations = [digest for digest in last if _OF_A_STAGE.match(self._names[digest])]
        if len(operations) != 1:
            return ""
        at, seen = operations[0], set[str]()
        while at not in seen:
            seen.add(at)
            if match := _FROM.fullmatch(self._names.get(at, "")):
                return match[1]
            # A text in the Dockerfile (`<<EOF`) is an input, and nothing to stand on.
            inputs = [i for i in self._inputs.get(at, ()) if self._names.get(i) != _INLINE]
            at = _works_on(self._names.get(at, ""), inputs)
        return ""

    def feed(self, data: bytes) -> Iterator[wire.Message]:
        """Take what `buildctl` wrote, and yield what it means."""
        self._buffer += data
        while (end := self._buffer.find(b"\n", self._scanned)) >= 0:
            line = bytes(self._buffer[: end + 1])
            del self._buffer[: end + 1]
            self._scanned = 0
            if self._is_skipping:
                self._is_skipping = False
            else:
                yield from self._line(line)
        self._scanned = len(self._buffer)
        if self._scanned > MAX_LINE_BYTES:
            self._buffer.clear()
            self._scanned = 0
            if not self._is_skipping:
                yield self._note(f"[a report of more than {MAX_LINE_BYTES} bytes is left out]\n")
            self._is_skipping = True

    def finish(self) -> Iterator[wire.Message]:
        """Yield what was held back: `buildctl` has ended."""
        if self._buffer and not self._is_skipping:
            yield from self._line(bytes(self._buffer))
        self._buffer.clear()
        for vertex, stream in list(self._streams):
            yield from self._show(vertex, stream, self._streams[vertex, stream].flush())
        self._streams.clear()

    def _line(self, line: bytes) -> Iterator[wire.Message]:
        report = None if self._is_over else _read_report(line)
        if report is None:
            self._is_over = self._is_over or not line.startswith(_BESIDE_REPORTS)
            self._text += line
            del self._text[:-MAX_TEXT_BYTES]
            return
        vertexes = _maps(report.get("vertexes"))
        # What a step printed comes before its end, as it happened.
        yield from self._vertexes(v for v in vertexes if not v.get("completed"))
        for log in _maps(report.get("logs")):
            yield from self._log(log)
        for warning in _maps(report.get("warnings")):
            yield from self._warning(warning)
        yield from self._vertexes(v for v in vertexes if v.get("completed"))

    def _vertexes(self, vertexes: Iterator[Mapping[str, Any]]) -> Iterator[wire.Message]:
        for vertex in vertexes:
            digest = _text(vertex.get("digest"))
            if not digest or (digest not in self._steps and len(self._steps) >= MAX_VERTICES):
                continue
            name = _text(vertex.get("name"))
            inputs = vertex.get("inputs")
            self._names[digest] = name
            self._inputs[digest] = [_text(i) for i in inputs] if isinstance(inputs, list) else []
            if vertex.get("completed"):
                yield from self._flush(digest)
            step = self._step(digest, name, vertex)
            if step != self._steps.get(digest):
                self._steps[digest] = step
                yield step
            if name == _EXPORTING and not self._is_exporting and step.started_at is not None:
                self._is_exporting = True
                yield wire.Status(seq=0, time=step.started_at, phase="pushing")

    def _step(self, digest: str, name: str, vertex: Mapping[str, Any]) -> wire.Step:
        """Return the vertex as a step. One may run in several goes: the first start counts."""
        before = self._steps.get(digest)
        started = before.started_at if before is not None else None
        error = self._redaction.text(_text(vertex.get("error")))
        if error and len(self._failed) < MAX_FAILED_STEPS:
            tail = self._tails.get(digest, b"").decode(errors="replace")
            self._failed.setdefault(digest, FailedStep(self._redaction.text(name), error, tail))
        if vertex.get("completed"):
            self._tails.pop(digest, None)
        return wire.Step(
            seq=0,
            digest=digest,
            name=_cut(self._redaction.text(name), MAX_NAME_CHARACTERS),
            started_at=started if started is not None else parse_time(vertex.get("started")),
            completed_at=parse_time(vertex.get("completed")),
            cached=vertex.get("cached") is True,
            error=_cut(error, MAX_ERROR_CHARACTERS),
        )

    def _log(self, log: Mapping[str, Any]) -> Iterator[wire.Message]:
        try:
            data = binascii.a2b_base64(_text(log.get("data")))
        except binascii.Error:
            return
        vertex = _text(log.get("vertex"))
        stream = 2 if log.get("stream") == 2 else 1
        self._time = parse_time(log.get("timestamp")) or self._time
        redacted = self._streams.get((vertex, stream))
        if redacted is None:
            redacted = self._streams[vertex, stream] = self._redaction.stream()
        yield from self._show(vertex, stream, redacted.feed(data))

    def _warning(self, warning: Mapping[str, Any]) -> Iterator[wire.Message]:
        try:
            short = binascii.a2b_base64(_text(warning.get("short")))
        except binascii.Error:
            return
        line = self._redaction.bytes(b"warning: " + short.rstrip(b"\n") + b"\n")
        yield from self._show(_text(warning.get("vertex")), 2, line)

    def _show(self, vertex: str, stream: int, data: bytes) -> Iterator[wire.Message]:
        if not data:
            return
        self._tails[vertex] = (self._tails.get(vertex, b"") + data[-_TAIL_BYTES:])[-_TAIL_BYTES:]
        for at in range(0, len(data), wire.MAX_LOG_DATA_BYTES):
            piece = data[at : at + wire.MAX_LOG_DATA_BYTES]
            yield wire.Log(seq=0, time=self._time, step=vertex, stream=stream, data=piece)

    def _flush(self, vertex: str) -> Iterator[wire.Message]:
        """Yield the end of a vertex's output."""
        for stream in (1, 2):
            if redacted := self._streams.pop((vertex, stream), None):
                yield from self._show(vertex, stream, redacted.flush())

    def _note(self, text: str) -> wire.Message:
        return wire.Log(seq=0, time=self._time, step="", stream=2, data=text.encode())


def parse_time(value: object) -> float | None:
    """Return Go's RFC 3339 time as Unix seconds, or None if there is none."""
    if not isinstance(value, str):
        return None
    try:
        # Nanoseconds are more digits than a datetime holds; Python cuts them.
        return datetime.fromisoformat(value).timestamp()
    except (ValueError, OverflowError):
        return None


def _works_on(name: str, inputs: list[str]) -> str:
    """Return the input that is the file system of an operation, or nothing if it may have none.

    That is the first one, if the stage does not start `FROM scratch`: then the first input is what
    is copied or mounted from another stage, on which nothing stands. So there have to be more
    inputs than come from elsewhere; at least as many as the operation could mean are counted.
    """
    text = " ".join(_OF_A_STAGE.sub("", name, count=1).lower().split())
    brought = text.count("from=") if text.startswith("run --") else 0
    if "--from=" in text and not text.startswith("run "):
        brought = 1
    return inputs[0] if len(inputs) > brought else ""


def _read_report(line: bytes) -> Mapping[str, Any] | None:
    if not line.startswith(b"{"):
        return None
    try:
        report = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    return report if isinstance(report, dict) else None


def _maps(value: object) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
