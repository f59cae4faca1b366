"""BuildKit's reports become messages; what a build prints stays output."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import progress as progress_module
from agent import wire
from agent.progress import Progress, parse_time
from agent.redact import Redaction

DATA = Path(__file__).parent / "data"
BASE = "sha256:8471c3c278a372590848706d52b4eb0115610804b9337349e3d0be41e216da88"
RUN = "sha256:" + "a" * 64
OTHER = "sha256:" + "b" * 64
EARLY, LATE = "2026-01-02T03:04:05.5Z", "2026-01-02T03:04:06.123456789Z"


def report(**parts: Any) -> bytes:
    return json.dumps(parts).encode() + b"\n"


def log(text: bytes, vertex: str = RUN, stream: int = 1) -> dict[str, Any]:
    data = base64.b64encode(text).decode()
    return {"vertex": vertex, "stream": stream, "data": data, "timestamp": LATE}


def vertex(name: str, digest: str = RUN, **more: Any) -> dict[str, Any]:
    return {"digest": digest, "name": name, **more}


def run(data: bytes, secrets: list[bytes] | None = None) -> tuple[Progress, list[wire.Message]]:
    progress = Progress(Redaction(secrets or []))
    return progress, [*progress.feed(data), *progress.finish()]


def shown(messages: list[wire.Message], vertex: str = RUN) -> bytes:
    return b"".join(m.data for m in messages if isinstance(m, wire.Log) and m.step == vertex)


def test_a_real_build_is_told_step_by_step() -> None:
    progress, messages = run((DATA / "multistage.ndjson").read_bytes())
    last = {m.digest: m for m in messages if isinstance(m, wire.Step)}
    assert [step.name for step in last.values() if "RUN" in step.name] == [
        "[build 3/3] RUN mkdir /out && seq 1 5 > /out/f",
        "[build 2/3] RUN echo hello; echo err >&2; printf 'no newline'",
    ]
    for step in last.values():
        assert step.started_at is not None
        assert step.completed_at is not None
        assert step.completed_at >= step.started_at
        assert not step.error
    output = [(m.stream, m.data) for m in messages if isinstance(m, wire.Log)]
    assert sorted(output) == [(1, b"hello\nno newline"), (2, b"err\n")]
    phases = [m.phase for m in messages if isinstance(m, wire.Status)]
    assert phases == ["pushing"]
    assert progress.failed_steps == ()
    assert progress.text == ""


def test_the_base_of_the_final_stage_is_found_in_the_graph() -> None:
    progress, _ = run((DATA / "multistage.ndjson").read_bytes())
    assert progress.base_image_digest == BASE


def test_steps_of_buildkits_own_are_no_end_of_the_graph() -> None:
    own = [
        "[auth] sharing credentials for 10.102.0.1:8083",
        "[internal] load build context",
        "exporting to image",
        "importing cache manifest from 10.102.0.1:8083/cache/a/b",
    ]
    steps = [vertex(name, f"sha256:{n}") for n, name in enumerate(own)]
    steps += [vertex("[2/2] RUN x", inputs=[OTHER]), vertex(f"[1/2] FROM a/b@{BASE}", OTHER)]
    progress, _ = run(report(vertexes=steps))
    assert progress.base_image_digest == BASE


def test_no_base_is_named_when_there_are_two_ends() -> None:
    steps = [vertex("[a 1/1] RUN x"), vertex("[b 1/1] RUN y", OTHER)]
    progress, _ = run(report(vertexes=steps))
    assert progress.base_image_digest == ""


def test_a_graph_that_goes_in_circles_has_no_base() -> None:
    third = "sha256:" + "c" * 64
    steps = [
        vertex("[1/3] RUN x", inputs=[OTHER]),
        vertex("[2/3] RUN y", OTHER, inputs=[third]),
        vertex("[3/3] RUN z", third, inputs=[OTHER]),
    ]
    progress, _ = run(report(vertexes=steps))
    assert progress.base_image_digest == ""


SOURCE, INLINE = "sha256:" + "e" * 64, "sha256:" + "f" * 64


@pytest.mark.parametrize(
    ("name", "inputs", "found"),
    [
        ("[stage-1 1/2] COPY --from=good / /", [OTHER], ""),
        ("[stage-1 1/2] COPY --chown=1  --from=good / /", [OTHER], ""),
        ("[stage-1 1/2] COPY --from=good a <<EOF /", [OTHER, INLINE], ""),
        ("[stage-1 1/2] RUN --mount=from=good,target=/bin <<EOF (#!x)", [OTHER, INLINE], ""),
        ("[stage-1 1/2] RUN --mount=from=tools,target=/bin <<EOF (x)", [OTHER, SOURCE], BASE),
        ("[stage-1 1/2] RUN --mount=type=bind,from=good,target=/bin [x]", [OTHER], ""),
        ("[stage-1 1/2] RUN   --mount=From=good,target=/a --mount=from=x ...", [OTHER, SOURCE], ""),
        ("[stage-1 1/2] COPY --from=tools / /", [OTHER, SOURCE], BASE),
        ("[stage-1 1/2] LINK COPY --from=tools / /", [OTHER, SOURCE], BASE),
        ("[stage-1 1/2] RUN --mount=type=cache,target=/root/.cache x", [OTHER], BASE),
        ("[stage-1 1/2] RUN --mount=from=tools,target=/t x", [OTHER, SOURCE], BASE),
        ("[stage-1 1/2] RUN fetch 'https://a.example/?from=x' --from=y", [OTHER], BASE),
        ("[stage-1 1/2] COPY a b /", [OTHER, SOURCE], BASE),
        ("[stage-1 1/2] COPY <<EOF /", [OTHER, INLINE], BASE),
        ("[stage-1 1/2] WORKDIR /x", [OTHER], BASE),
        ("[linux/amd64 stage-1  1/12] WORKDIR /x", [OTHER], BASE),
    ],
)
def test_a_stage_from_scratch_does_not_get_the_base_of_what_it_copies(
    name: str, inputs: list[str], found: str
) -> None:
    steps = [
        vertex(name, inputs=inputs),
        vertex(f"[good 1/1] FROM a/b@{BASE}", OTHER),
    ]
    if INLINE in inputs:
        steps.append(vertex("[internal] preparing inline document", INLINE))
    if SOURCE in inputs:
        steps.append(vertex(f"[tools 1/1] FROM tools@{SOURCE}", SOURCE))
    progress, _ = run(report(vertexes=steps))
    assert progress.base_image_digest == found


def test_a_failed_step_is_kept_with_the_last_of_its_output() -> None:
    progress, messages = run((DATA / "failing_run.txt").read_bytes())
    [failed] = progress.failed_steps
    assert failed.name == "[2/2] RUN echo some output; echo e2 >&2; exit 3"
    assert failed.error.endswith("did not complete successfully: exit code: 3")
    assert set(failed.tail.splitlines()) == {"some output", "e2"}
    assert progress.text.startswith("Dockerfile:2\n")
    assert "error: failed to solve: process" in progress.text
    [step] = [m for m in messages if isinstance(m, wire.Step) and m.error]
    assert step.error == failed.error


@given(sizes=st.lists(st.integers(1, 3000), max_size=40))
def test_reports_may_arrive_in_any_pieces(sizes: list[int]) -> None:
    data = (DATA / "failing_run.txt").read_bytes()
    whole_progress, whole = run(data)
    progress = Progress(Redaction())
    messages: list[wire.Message] = []
    for size in sizes:
        messages += progress.feed(data[:size])
        data = data[size:]
    messages += [*progress.feed(data), *progress.finish()]
    assert messages == whole
    assert progress.text == whole_progress.text


def test_a_step_that_runs_in_several_goes_starts_with_the_first() -> None:
    steps = report(vertexes=[vertex("x", started=EARLY, completed=EARLY)])
    steps += report(vertexes=[vertex("x", started=LATE)])
    _, messages = run(steps)
    assert [(m.started_at, m.completed_at) for m in messages if isinstance(m, wire.Step)] == [
        (parse_time(EARLY), parse_time(EARLY)),
        (parse_time(EARLY), None),
    ]


def test_a_report_that_changes_nothing_is_not_passed_on() -> None:
    _, messages = run(report(vertexes=[vertex("x", started=EARLY)]) * 3)
    assert len(messages) == 1


def test_output_comes_before_the_end_of_its_step() -> None:
    _, messages = run(
        report(vertexes=[vertex("x", started=EARLY, completed=LATE)], logs=[log(b"out")])
    )
    assert [type(m) for m in messages] == [wire.Log, wire.Step]


def test_what_a_build_prints_cannot_become_a_report() -> None:
    forged = report(vertexes=[vertex("exporting to image", OTHER, started=EARLY)])
    forged += b"error: failed to solve: forged\n"
    progress, messages = run(report(vertexes=[vertex("x")], logs=[log(forged)]))
    assert [type(m) for m in messages] == [wire.Step, wire.Log]
    assert shown(messages) == forged
    assert progress.text == ""


def test_what_an_error_quotes_cannot_become_a_report() -> None:
    # A git server chooses what it says in a `fatal: remote error: …`, line breaks included.
    forged = report(vertexes=[vertex("exporting to image", OTHER, started=EARLY)])
    forged += report(vertexes=[vertex(f"[1/1] FROM x@{BASE}", OTHER)], logs=[log(b"forged")])
    error = b"error: failed to solve: failed to fetch remote: git:\nfatal: remote error: no\n"
    progress, messages = run(report(vertexes=[vertex("[1/1] RUN x")]) + error + forged)
    assert [type(m) for m in messages] == [wire.Step]
    assert progress.base_image_digest == ""
    assert progress.text == (error + forged).decode()


def test_an_excerpt_of_the_dockerfile_ends_the_reports() -> None:
    excerpt = b"Dockerfile:2\n--------------------\n"
    _, messages = run(excerpt + report(vertexes=[vertex("x")]))
    assert messages == []


def test_what_the_client_logs_of_its_own_is_passed_over() -> None:
    noise = b'time="2026-01-02T03:04:05Z" level=warning msg="x"\nWARNING: Error loading config\n'
    _, messages = run(noise + report(vertexes=[vertex("x")]))
    assert [type(m) for m in messages] == [wire.Step]


def test_a_report_that_nests_without_end_is_text() -> None:
    progress, messages = run(b'{"vertexes":' + b"[" * 100_000 + b"\n")
    assert messages == []
    assert progress.text


def test_bytes_of_any_kind_pass_unchanged() -> None:
    data = bytes(range(256)) + "\x1b[31m\u2028\r\n".encode()
    _, messages = run(report(logs=[log(data)]))
    assert shown(messages) == data


def test_long_output_is_cut_into_pieces_that_fit_a_frame() -> None:
    data = b"x" * (2 * wire.MAX_LOG_DATA_BYTES + 1)
    _, messages = run(report(logs=[log(data)]))
    assert len(messages) == 3
    assert shown(messages) == data
    for message in messages:
        wire.encode(message)


def test_a_secret_split_over_two_reports_is_masked() -> None:
    data = report(logs=[log(b"token: s3c")]) + report(logs=[log(b"ret!\n")])
    _, messages = run(data, [b"s3cret"])
    assert shown(messages) == b"token: ***!\n"


def test_flows_of_two_steps_are_masked_apart() -> None:
    data = report(logs=[log(b"s3c"), log(b"ret", OTHER), log(b"s3c", RUN, 2), log(b"ret")])
    _, messages = run(data, [b"s3cret"])
    assert shown(messages, OTHER) == b"ret"
    assert shown(messages) in (b"***s3c", b"s3c***")


def test_what_was_held_back_is_shown_when_the_step_ends() -> None:
    progress = Progress(Redaction([b"s3cret"]))
    assert list(progress.feed(report(logs=[log(b"s3c")]))) == []
    messages = list(progress.feed(report(vertexes=[vertex("x", completed=LATE)])))
    assert [type(m) for m in messages] == [wire.Log, wire.Step]
    assert shown(messages) == b"s3c"


def test_secrets_are_masked_in_names_errors_and_text() -> None:
    data = report(vertexes=[vertex("RUN s3cret", error="s3cret failed", completed=LATE)])
    progress, [step] = run(data + b"error: s3cret\n", [b"s3cret"])
    assert isinstance(step, wire.Step)
    assert (step.name, step.error) == ("RUN ***", "*** failed")
    assert progress.text == "error: ***\n"


def test_only_steps_that_run_are_remembered_with_their_output() -> None:
    data = b"".join(
        report(
            vertexes=[vertex("x", f"sha256:{n}", completed=LATE)],
            logs=[log(b"y" * 9, f"sha256:{n}")],
        )
        for n in range(50)
    )
    progress, _ = run(data)
    assert not progress._tails
    assert not progress._streams


def test_failed_steps_are_bounded() -> None:
    steps = [vertex("x", f"sha256:{n}", error="canceled") for n in range(999)]
    progress, _ = run(report(vertexes=steps))
    assert len(progress.failed_steps) == progress_module.MAX_FAILED_STEPS


def test_warnings_become_output_of_their_step() -> None:
    short = base64.b64encode(b"FromAsCasing: 'as' and 'FROM' do not match").decode()
    _, messages = run(report(warnings=[{"vertex": RUN, "level": 1, "short": short}]))
    assert shown(messages) == b"warning: FromAsCasing: 'as' and 'FROM' do not match\n"


def test_nonsense_in_a_report_is_passed_over() -> None:
    nonsense: list[Any] = [None, 3, [], {"digest": 7}, {"digest": RUN, "started": "yesterday"}]
    logs: list[Any] = [{"data": "%%%"}, {"data": 5}, "x"]
    _, messages = run(report(vertexes=nonsense, logs=logs, warnings=5) + b"[1]\n{broken\n")
    assert [m for m in messages if isinstance(m, wire.Log)] == []
    assert len(messages) == 1


def test_names_and_errors_are_bounded() -> None:
    data = report(vertexes=[vertex("n" * 99_999, error="e" * 99_999)])
    _, [step] = run(data)
    assert isinstance(step, wire.Step)
    assert len(step.name) == progress_module.MAX_NAME_CHARACTERS
    assert len(step.error) == progress_module.MAX_ERROR_CHARACTERS


def test_the_number_of_steps_is_bounded(monkeypatch: Any) -> None:
    monkeypatch.setattr(progress_module, "MAX_VERTICES", 3)
    _, messages = run(report(vertexes=[vertex("x", f"sha256:{n}") for n in range(9)]))
    assert len(messages) == 3


def test_a_report_without_end_is_dropped_and_said_so(monkeypatch: Any) -> None:
    monkeypatch.setattr(progress_module, "MAX_LINE_BYTES", 100)
    progress = Progress(Redaction())
    messages = list(progress.feed(b"{" + b"x" * 90))
    assert messages == []
    messages = [m for _ in range(5) for m in progress.feed(b"x" * 90)]
    messages += progress.feed(b"rest\n" + report(vertexes=[vertex("x")]))
    assert [type(m) for m in messages] == [wire.Log, wire.Step]
    assert b"left out" in shown(messages, "")


def test_text_beside_reports_is_bounded() -> None:
    progress, _ = run(b"noise\n" * 100_000 + b"error: the end\n")
    assert len(progress.text) <= progress_module.MAX_TEXT_BYTES
    assert progress.text.endswith("error: the end\n")


def test_times_are_read_to_the_microsecond() -> None:
    assert parse_time("1970-01-01T00:00:01.500000999Z") == 1.5
    assert parse_time("1970-01-01T01:00:00+01:00") == 0.0
    assert parse_time("") is None
    assert parse_time(None) is None
    assert parse_time(7) is None
