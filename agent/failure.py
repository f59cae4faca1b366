"""Why a build failed: from what BuildKit says to the contract's reasons. Pure.

`classify` looks at the evidence in the order of what it proves: lost machinery, then exhausted
memory and disk, then the step that failed, then what the frontend said. Each rule of `RULES` names
the BuildKit message that it stands for; the tests hold the messages as BuildKit v0.32 prints them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from agent import wire
from agent.rootless import REGISTRY

BUILD_FAILED = "build_failed"
DOCKERFILE_INVALID = "dockerfile_invalid"
BASE_IMAGE_NOT_FOUND = "base_image_not_found"
BASE_IMAGE_MISMATCH = "base_image_mismatch"
SECRET_NOT_FOUND = "secret_not_found"
OUT_OF_MEMORY = "out_of_memory"
OUT_OF_DISK = "out_of_disk"
PUSH_FAILED = "push_failed"
BUILDER_LOST = "builder_lost"
CANCELLED = "cancelled"

MAX_MESSAGE_CHARACTERS = 16_000
_MAX_COMMAND_CHARACTERS = 1_000
_LAST_LINES = 20


@dataclass(frozen=True, slots=True)
class Failure:
    """A reason of the contract, and a sentence (or a few lines) for people."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class FailedStep:
    """A vertex that ended with an error, as BuildKit words it, and the last of its output."""

    name: str
    error: str
    tail: str = ""


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything known about a `buildctl` that did not succeed."""

    exit_status: int
    text: str
    """What `buildctl` wrote besides progress: an excerpt of the Dockerfile, and `error: …`."""
    failed_steps: Sequence[FailedStep] = ()
    oom_kills: int = 0
    """Processes that the kernel killed for want of memory while the build ran."""
    is_disk_full: bool = False
    """The scratch disk was (nearly) full at some moment of the build."""
    daemon_exit: str = ""
    """Not empty: `buildkitd` ended by itself, and how."""


# What BuildKit says, once the error of a failed step is dealt with. First match wins.
RULES: Sequence[tuple[str, re.Pattern[str]]] = (
    # The host's registry, which is never down while a build runs, did not answer.
    (
        BUILDER_LOST,
        re.compile(rf'failed to do request: \w+ "http://{re.escape(REGISTRY)}/[^"]*": '),
    ),
    # The registry, a mirror or an upstream has no such image, refuses it, or cannot be reached.
    (BASE_IMAGE_NOT_FOUND, re.compile(r"failed to resolve source metadata for ")),
    # Found, but a layer or a config of it could not be fetched.
    (BASE_IMAGE_NOT_FOUND, re.compile(r"failed to copy: .*(?:not found|40[134])")),
    (PUSH_FAILED, re.compile(r"^failed to push ")),
    (PUSH_FAILED, re.compile(r"^error writing (?:layer blob|manifest blob|config blob)")),
    (DOCKERFILE_INVALID, re.compile(r"dockerfile parse error on line \d+")),
    (DOCKERFILE_INVALID, re.compile(r"failed to read dockerfile: ")),
    (DOCKERFILE_INVALID, re.compile(r"the Dockerfile cannot be empty")),
    (DOCKERFILE_INVALID, re.compile(r"file with no instructions")),
    (DOCKERFILE_INVALID, re.compile(r"no build stage in current context")),
    (DOCKERFILE_INVALID, re.compile(r"^failed to parse stage name ")),
    (DOCKERFILE_INVALID, re.compile(r"^base name \(.*\) should not be blank")),
    (DOCKERFILE_INVALID, re.compile(r"^target stage .* could not be found")),
    (DOCKERFILE_INVALID, re.compile(r"^invalid stage index ")),
    (DOCKERFILE_INVALID, re.compile(r"^circular dependency detected on stage")),
    (DOCKERFILE_INVALID, re.compile(r"^unterminated heredoc")),
    (DOCKERFILE_INVALID, re.compile(r"^failed to load LLB: .* is not allowed")),
    (DOCKERFILE_INVALID, re.compile(r"failed to read dockerignore patterns")),
)

_ERROR = re.compile(r"^error: (.*)", re.MULTILINE | re.DOTALL)
_SOLVE = "failed to solve: "
_EXCERPT = re.compile(r"^\S.*:\d+\n-{5,}\n(.*?)^-{5,}$", re.MULTILINE | re.DOTALL)
_PROCESS = re.compile(r'process "(.*)" did not complete successfully: (.*)', re.DOTALL)
_EXIT_CODE = re.compile(r"exit code: (\d+)")
_NO_SPACE = re.compile(r"no space left on device", re.IGNORECASE)
_LOST_DAEMON = re.compile(r"buildkitd\.sock|^failed to receive status: |error reading from server")
_NO_PROXY = re.compile(r"proxyconnect tcp: dial tcp [0-9.]+:\d+: connect: connection refused")


def failed(failure: Failure, base_image_digest: str = "") -> wire.BuildResult:
    """Return the result that tells of a failure."""
    return wire.BuildResult(
        seq=0,
        ok=False,
        error_code=failure.code,
        error=failure.message,
        base_image_digest=base_image_digest,
    )


def classify(evidence: Evidence) -> Failure:
    """Return the reason that the evidence shows, and the sentence that tells it."""
    error = _error_of(evidence)
    step = _step_of(evidence, error)
    code = _code(evidence, error, step)
    return Failure(code, _cut(_message(evidence, code, error, step), MAX_MESSAGE_CHARACTERS))


def _code(evidence: Evidence, error: str, step: FailedStep | None) -> str:
    if evidence.oom_kills:
        return OUT_OF_MEMORY
    if evidence.daemon_exit:
        return BUILDER_LOST
    process = _PROCESS.search(step.error) if step is not None else None
    if process is not None:
        assert step is not None
        # A program's own words prove nothing alone: /dev/full says the same.
        is_full = evidence.is_disk_full and _NO_SPACE.search(step.tail)
        return OUT_OF_DISK if is_full or _NO_SPACE.search(process[2]) else BUILD_FAILED
    if _NO_SPACE.search(error):
        return OUT_OF_DISK
    for code, pattern in RULES:
        if pattern.search(error):
            return code
    if step is None and _EXCERPT.search(evidence.text):
        return DOCKERFILE_INVALID  # the frontend points at a line, and nothing has run
    if step is None and _LOST_DAEMON.search(error):
        return BUILDER_LOST
    return BUILD_FAILED


def _error_of(evidence: Evidence) -> str:
    """Return BuildKit's final error without what every error starts with."""
    match = _ERROR.search(evidence.text)
    return (match[1] if match else evidence.text).strip().removeprefix(_SOLVE)


def _step_of(evidence: Evidence, error: str) -> FailedStep | None:
    """Return the step whose error is the final one: others were only cancelled with it, or were
    of no consequence, like a cache that could not be imported.
    """
    for step in evidence.failed_steps:
        if step.error in error:
            return step
    return None


def _message(evidence: Evidence, code: str, error: str, step: FailedStep | None) -> str:
    if code == BUILDER_LOST:
        return f"the builder itself failed: {evidence.daemon_exit or error}"
    if code == BASE_IMAGE_NOT_FOUND:
        step = None  # the error names the image, and the Dockerfile's line says more than the step
    text = _step_message(step) if step is not None else ""
    if not text:
        text = error or f"buildctl ended with status {evidence.exit_status} and said nothing"
    if code == OUT_OF_MEMORY:
        killed = evidence.oom_kills
        text = (
            f"the machine ran out of memory ({killed} {'process' if killed == 1 else 'processes'}"
            f" killed); raise memory_mb. {text}"
        )
    elif code == OUT_OF_DISK:
        text = f"the machine's disk is full: {text}"
    if _NO_PROXY.search(error):
        text += "\nThis build has no way out to the network: its network_mode is isolated."
    if step is None and (excerpt := _EXCERPT.search(evidence.text)):
        text += "\n" + excerpt[1].rstrip()
    return text


def _step_message(step: FailedStep) -> str:
    process = _PROCESS.search(step.error)
    if process is None:
        return f"step {_cut(step.name, _MAX_COMMAND_CHARACTERS)} failed: {step.error}"
    command = _cut(_unquote(process[1]), _MAX_COMMAND_CHARACTERS)
    exit_code = _EXIT_CODE.search(process[2])
    how = f"exited with code {exit_code[1]}" if exit_code else f"failed: {process[2]}"
    text = f"step {_cut(step.name, _MAX_COMMAND_CHARACTERS)} failed: `{command}` {how}"
    lines = step.tail.splitlines()[-_LAST_LINES:]
    if lines:
        text += "; its last lines:\n" + "\n".join(lines)
    return text


def _unquote(text: str) -> str:
    """Undo Go's quoting, as far as it is JSON's too; the rest is readable as it is."""
    try:
        return str(json.loads(f'"{text}"', strict=False))
    except ValueError:
        return text


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
