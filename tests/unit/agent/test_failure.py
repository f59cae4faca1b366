"""BuildKit's messages, as v0.32 prints them, and the contract's reasons that they stand for."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.failure import Evidence, FailedStep, Failure, classify, failed

RUN = FailedStep(
    name="[2/2] RUN make -j2",
    error='process "/bin/sh -c make -j2" did not complete successfully: exit code: 2',
    tail="\n".join(f"line {n}" for n in range(1, 31)),
)


def text(error: str, line: str = "FROM busybox") -> str:
    rule = "-" * 20
    excerpt = f"Dockerfile:1\n{rule}\n   1 | >>> {line}\n   2 |     \n{rule}\n"
    return f"{excerpt}error: failed to solve: {error}\n"


def of_step(step: FailedStep, **more: object) -> Failure:
    return classify(Evidence(1, text(step.error), (step,), **more))  # type: ignore[arg-type]


NOT_FOUND = "docker.io/library/nosuch:1: not found"

MESSAGES = [
    tuple(line.split("\t"))
    for line in (Path(__file__).parent / "data" / "messages.tsv").read_text().splitlines()
    if not line.startswith("#")
]


@pytest.mark.parametrize(("code", "error"), MESSAGES)
def test_each_message_has_its_reason(code: str, error: str) -> None:
    failure = classify(Evidence(1, f"error: failed to solve: {error}\n"))
    assert failure.code == code
    assert error in failure.message


def test_a_failed_step_is_told_with_command_exit_code_and_last_lines() -> None:
    failure = of_step(RUN)
    assert failure.code == "build_failed"
    step = "step [2/2] RUN make -j2 failed: `/bin/sh -c make -j2` exited with code 2"
    assert failure.message.startswith(f"{step}; its last lines:\n")
    assert failure.message.endswith("line 29\nline 30")
    assert "line 10\n" not in failure.message


def test_a_command_with_quotes_is_shown_as_it_was_written() -> None:
    step = FailedStep(
        "RUN", r'process "sh -c echo \"a\\b\"" did not complete successfully: exit code: 1'
    )
    assert r'`sh -c echo "a\b"` exited with code 1' in of_step(step).message


def test_a_step_whose_user_does_not_exist_is_a_failed_build() -> None:
    why = "unable to find user nobodyhere: no matching entries in passwd file"
    failure = of_step(
        FailedStep("[2/2] RUN true", f'process "x" did not complete successfully: {why}')
    )
    assert failure == Failure("build_failed", f"step [2/2] RUN true failed: `x` failed: {why}")


def test_a_copy_of_a_file_that_is_not_there_is_a_failed_build() -> None:
    error = 'failed to calculate checksum of ref a::b: "/nofile": not found'
    step = FailedStep("[2/2] COPY nofile /x", error)
    failure = classify(Evidence(1, text(f"failed to compute cache key: {error}"), (step,)))
    assert failure == Failure("build_failed", f"step [2/2] COPY nofile /x failed: {error}")


def test_the_step_that_was_only_cancelled_is_not_blamed() -> None:
    cancelled = FailedStep("[a 1/1] RUN sleep 9", 'process "sleep 9": context canceled')
    failure = classify(Evidence(1, text(RUN.error), (cancelled, RUN)))
    assert "make" in failure.message


def test_a_cache_that_was_not_there_is_not_blamed() -> None:
    cache = FailedStep("importing cache manifest from c", "c: not found")
    failure = classify(Evidence(1, text("unterminated heredoc"), (cache,)))
    assert failure.code == "dockerfile_invalid"


def test_text_of_a_command_is_no_message_of_buildkit() -> None:
    for words in (
        "failed to push x",
        "dockerfile parse error on line 1",
        "no space left on device",
    ):
        step = FailedStep(
            f"[2/2] RUN echo {words}",
            f'process "/bin/sh -c echo {words}" did not complete successfully: exit code: 1',
            tail=words,
        )
        assert of_step(step).code == "build_failed"


def test_the_dockerfiles_line_is_shown_when_nothing_has_run() -> None:
    failure = classify(
        Evidence(1, text('failed to process "${X:?oops}": X: oops', "FROM ${X:?oops}"))
    )
    assert failure.code == "dockerfile_invalid"
    assert ">>> FROM ${X:?oops}" in failure.message


def test_a_base_that_is_missing_is_told_with_the_dockerfiles_line() -> None:
    error = (
        f"nosuch:1: failed to resolve source metadata for docker.io/library/nosuch:1: {NOT_FOUND}"
    )
    step = FailedStep("[internal] load metadata for docker.io/library/nosuch:1", NOT_FOUND)
    failure = classify(Evidence(1, text(error, "FROM nosuch:1"), (step,)))
    assert failure.code == "base_image_not_found"
    assert failure.message.startswith(error)
    assert ">>> FROM nosuch:1" in failure.message


def test_an_isolated_build_is_told_that_it_is() -> None:
    error = (
        "x: failed to resolve source metadata for x: proxyconnect tcp: dial tcp 10.102.0.1:3128:"
        " connect: connection refused"
    )
    assert "network_mode is isolated" in classify(Evidence(1, text(error))).message


def test_a_step_that_the_kernel_killed_for_memory_ran_out_of_memory() -> None:
    failure = of_step(RUN, oom_kills=1)
    assert failure.code == "out_of_memory"
    assert "(1 process killed)" in failure.message
    assert "make" in failure.message


def test_a_daemon_that_the_kernel_killed_for_memory_ran_out_of_memory() -> None:
    evidence = Evidence(1, "error: rpc", daemon_exit="buildkitd ended", oom_kills=2)
    assert classify(evidence).code == "out_of_memory"


def test_a_daemon_that_ended_by_itself_is_a_lost_builder() -> None:
    failure = classify(
        Evidence(1, "error: failed to receive status: EOF", daemon_exit="it panicked")
    )
    assert failure == Failure("builder_lost", "the builder itself failed: it panicked")


@pytest.mark.parametrize(
    "error",
    [
        'failed to list workers: Unavailable: connection error: desc = "transport: Error while'
        ' dialing: dial unix /x/buildkitd.sock: connect: connection refused"',
        "failed to receive status: rpc error: code = Unavailable desc = error reading from server",
    ],
)
def test_a_daemon_that_does_not_answer_is_a_lost_builder(error: str) -> None:
    assert classify(Evidence(1, f"error: {error}\n")).code == "builder_lost"


def test_a_program_that_found_the_disk_full_needs_the_disks_word() -> None:
    step = FailedStep(RUN.name, RUN.error, tail="dd: /f: No space left on device")
    assert of_step(step).code == "build_failed"
    assert of_step(step, is_disk_full=True).code == "out_of_disk"


def test_a_full_disk_alone_explains_no_other_failure() -> None:
    assert of_step(RUN, is_disk_full=True).code == "build_failed"


def test_silence_is_told_too() -> None:
    failure = classify(Evidence(9, ""))
    assert failure == Failure("build_failed", "buildctl ended with status 9 and said nothing")


def test_messages_are_bounded() -> None:
    step = FailedStep(
        "n" * 9_999,
        f'process "{"c" * 99_999}" did not complete successfully: exit code: 1',
        "l" * 99_999,
    )
    failure = classify(Evidence(1, text(step.error), (step,)))
    assert len(failure.message) <= 16_000
    assert "exited with code 1" in failure.message


def test_a_failure_becomes_a_result() -> None:
    result = failed(Failure("push_failed", "no"), "sha256:0")
    assert (result.ok, result.error_code, result.error) == (False, "push_failed", "no")
    assert result.base_image_digest == "sha256:0"
