"""What is said of an attempt that was lost."""

from __future__ import annotations

from supervisor.actors.loss import NOT_STARTED, Loss, explain_loss, render_evidence
from supervisor.errors import GuestLost, VmBootFailed
from supervisor.model.build import ErrorReason, Reason
from supervisor.model.lifecycle import Ended
from tests.samples import a_build


def test_a_guest_that_is_lost_without_more_words_broke_the_protocol() -> None:
    assert ErrorReason(GuestLost("it lied").reason) is ErrorReason.PROTOCOL_BROKEN


def test_the_tenant_is_told_the_end_of_the_console() -> None:
    loss = Loss("it ended", ErrorReason.VMM_EXITED, "x" * 5000 + "\nthe last words\n")
    assert loss.error.startswith("it ended\nxxx")
    assert loss.error.endswith("x\nthe last words")
    assert len(loss.error) < 1100
    assert Loss("it ended", ErrorReason.VMM_EXITED).error == "it ended"


async def test_why_a_machine_did_not_start_is_for_the_operator() -> None:
    refused = VmBootFailed("qemu was not found; install it, or fix PATH=/opt", evidence="its words")
    loss = await explain_loss(refused, None, None)
    assert loss.error == NOT_STARTED
    assert loss.reason is ErrorReason.BOOT_FAILED
    assert loss.host_said == f"{refused.message}\nits words"


def test_a_step_that_failed_leaves_no_evidence() -> None:
    verdict = Ended(Reason.BUILD_FAILED, "exit code 1", {})
    assert render_evidence(a_build(), verdict, None, None, "") is None


def test_a_timeout_and_a_vmm_that_did_not_start_leave_what_there_is() -> None:
    timeout = Ended(Reason.BUILD_TIMEOUT, "too slow", {})
    told = render_evidence(a_build(attempt=2), timeout, None, None, "")
    assert told == f"build {a_build().id}, attempt 2: build_timeout\ntoo slow\n"
    failed = Ended(Reason.BUILDER_LOST, "it cannot start", {}, ErrorReason.BOOT_FAILED)
    told = render_evidence(a_build(attempt=1), failed, None, None, "no such device")
    assert told is not None
    assert told.splitlines()[0].endswith("attempt 1: builder_lost, boot_failed")
    assert told.endswith("[VMM]\nno such device\n")
