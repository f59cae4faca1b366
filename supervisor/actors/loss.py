"""What is found out about an attempt that was lost: which kind of loss it was, and the evidence.

The tenant is told the kind, a sentence, and the last that its own guest printed. What the host's
programs said is for the operator: it may name files of the host.
"""

from __future__ import annotations

from dataclasses import dataclass

import trio

from supervisor.errors import GuestLost, VmBootFailed
from supervisor.guest.link import GuestLink
from supervisor.model.build import Build, ErrorReason, Reason
from supervisor.model.lifecycle import Ended
from supervisor.vm.machine import Machine

REAP_SECONDS = 5.0
"""The link breaks a moment before the VMM is reaped."""
SHOWN_CHARACTERS = 1000
"""Of the console, in the sentence for the tenant; the rest is in the evidence."""

NOT_STARTED = (
    "the machine did not start; the operator finds why in the build's evidence and the daemon's log"
)

_OF_GUEST = {
    Reason.OUT_OF_MEMORY: ErrorReason.GUEST_OUT_OF_MEMORY,
    Reason.OUT_OF_DISK: ErrorReason.GUEST_OUT_OF_DISK,
    Reason.BUILDER_LOST: ErrorReason.BUILDKIT_FAILED,
}


@dataclass(frozen=True, slots=True)
class Loss:
    """How a machine was lost."""

    message: str
    reason: ErrorReason
    console: str = ""
    """The guest's last words, as the tenant may see them."""
    host_said: str = ""
    """Why the machine did not start, for the operator: it may name files of the host."""

    @property
    def error(self) -> str:
        """What the tenant is told."""
        tail = self.console.strip()[-SHOWN_CHARACTERS:]
        return f"{self.message}\n{tail}" if tail else self.message


async def explain_loss(
    exc: GuestLost | VmBootFailed, machine: Machine | None, link: GuestLink | None
) -> Loss:
    """Say how the guest was lost, how its VMM ended if it did, and with what last words.

    `machine` is None for one that did not start, `link` for one whose agent has not said hello.
    """
    if machine is None or isinstance(exc, VmBootFailed):
        evidence = exc.evidence if isinstance(exc, VmBootFailed) else ""
        said = f"{exc.message}\n{evidence}".strip()
        return Loss(NOT_STARTED, ErrorReason.BOOT_FAILED, host_said=said)
    message = exc.message
    reason = ErrorReason(exc.reason)
    end = None
    with trio.move_on_after(REAP_SECONDS):
        end = await machine.wait_exit()
    if end is not None:
        if end.description not in message:
            message = f"{message}; {end.description}"
        if reason is not ErrorReason.PROTOCOL_BROKEN:
            reason = end.reason
        if link is None and reason is ErrorReason.GUEST_STOPPED:
            reason = ErrorReason.BOOT_FAILED
    elif reason is ErrorReason.GUEST_SILENT and not await machine.is_answering():
        reason = ErrorReason.VMM_UNRESPONSIVE
        message = f"{message}; its VMM does not answer, either"
    return Loss(message, reason, machine.evidence().console)


def reason_of_guest(reason: Reason) -> ErrorReason | None:
    """Return what a failure means that the guest itself has reported, if it needs more words."""
    return _OF_GUEST.get(reason)


def render_evidence(
    build: Build, verdict: Ended, machine: Machine | None, link: GuestLink | None, boot: str
) -> str | None:
    """Return what the operator may want to see of an attempt that ended so; None if nothing.

    `boot` is why the machine did not start; see `Loss.host_said`.
    """
    if verdict.detail is None and verdict.reason is not Reason.BUILD_TIMEOUT:
        return None
    code = verdict.reason if verdict.detail is None else f"{verdict.reason}, {verdict.detail}"
    parts = [f"build {build.id}, attempt {build.attempt}: {code}\n{verdict.message}"]
    if boot:
        parts.append(f"[VMM]\n{boot}")
    if machine is not None:
        seen = machine.evidence()
        parts += [seen.console, seen.host]
    if link is not None:
        parts.append(f"[messages]\n{link.recent_frames()}")
    return "\n\n".join(part for part in parts if part) + "\n"
