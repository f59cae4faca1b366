"""The small parts: problems, stopping, YAML."""

from __future__ import annotations

import errno
from typing import Any

import pytest
import trio
import yaml  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st
from loguru import logger
from werkzeug import exceptions

from supervisor import errors
from supervisor.api.problems import STATUS_OF_CODE, problem_of
from supervisor.api.stopping import Stopping
from supervisor.api.yamltext import to_yaml
from supervisor.errors import QueueFull, SupervisorError, UserError


def user_errors() -> list[type[SupervisorError]]:
    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    return [value for value in classes if issubclass(value, UserError) and value is not QueueFull]


@pytest.mark.parametrize("kind", user_errors())
def test_every_error_of_a_user_has_its_status(kind: type[SupervisorError]) -> None:
    problem = problem_of(kind("a sentence", details=["one", "two"]))
    assert problem.status == STATUS_OF_CODE[kind.code]
    assert 400 <= problem.status < 500
    assert problem.body().count(b"a sentence") == 1
    assert b'"details": ["one", "two"]' in problem.body()


def test_what_the_host_lacks_for_a_while_is_worth_trying_again() -> None:
    problem = problem_of(errors.DatabaseBusy("another program has held it for 10 s"))
    assert (problem.status, problem.code) == (503, "builder_not_ready")
    assert int(problem.headers["Retry-After"]) > 0


def test_a_damaged_record_is_told_as_such() -> None:
    incidents: list[str] = []
    sink = logger.add(lambda line: incidents.append(line.record["extra"]["incident"]))
    problem = problem_of(errors.RecordDamaged("what is stored of build 1 cannot be read"))
    logger.remove(sink)
    assert (problem.status, problem.code) == (500, "internal_error")
    why, _, incident = problem.message.partition("; the daemon's log has it as ")
    assert why == "what is stored of build 1 cannot be read"
    assert [incident] == incidents


def test_the_contracts_codes_have_the_contracts_statuses() -> None:
    assert STATUS_OF_CODE == {
        "unauthorized": 401,
        "forbidden": 403,
        "not_found": 404,
        "method_not_allowed": 405,
        "conflict": 409,
        "invalid_request": 400,
        "invalid_source": 400,
        "dockerfile_required": 400,
        "source_hash_mismatch": 400,
        "payload_too_large": 413,
        "queue_full": 429,
        "builder_not_ready": 503,
        "internal_error": 500,
    }


def test_a_full_queue_says_when_to_come_again() -> None:
    assert problem_of(QueueFull("full", retry_after_seconds=7)).headers == {"Retry-After": "7"}


@pytest.mark.parametrize(
    "error",
    [
        ZeroDivisionError("secret"),
        errors.HostError("secret"),
        errors.ToolFailed(["x"], 1, "secret", "secret"),
        exceptions.InternalServerError("secret"),
    ],
)
def test_what_is_ours_to_look_at_tells_the_client_an_id_only(error: Exception) -> None:
    problem = problem_of(error)
    assert (problem.status, problem.code) == (500, "internal_error")
    assert "secret" not in problem.message


def out_of_descriptors() -> OSError:
    return OSError(errno.EMFILE, "Too many open files")


def translated() -> errors.HostError:
    """What the layers below make of it."""
    error = errors.HostError("/secret: too many open files")
    error.__cause__ = out_of_descriptors()
    return error


@pytest.mark.parametrize(
    "error",
    [out_of_descriptors(), translated(), ExceptionGroup("of a stream", [translated()])],
    ids=["raw", "translated", "in an answer's nursery"],
)
def test_a_host_that_is_out_of_descriptors_is_worth_trying_again(error: Exception) -> None:
    problem = problem_of(error)
    assert (problem.status, problem.code) == (503, "builder_not_ready")
    assert "secret" not in problem.message


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (exceptions.NotFound(), 404, "not_found"),
        (exceptions.RequestEntityTooLarge(), 413, "payload_too_large"),
        (exceptions.RequestTimeout(), 400, "invalid_request"),
        (exceptions.UnsupportedMediaType(), 400, "invalid_request"),
    ],
)
def test_errors_of_the_http_machinery_have_our_codes(
    error: Exception, status: int, code: str
) -> None:
    problem = problem_of(error)
    assert (problem.status, problem.code) == (status, code)


class TestStopping:
    """`Stopping.interrupting`."""

    async def test_it_interrupts_waits_now_and_later(self) -> None:
        stopping = Stopping()
        scopes: list[trio.CancelScope] = []

        async def wait() -> None:
            with stopping.interrupting(1000) as scope:
                scopes.append(scope)
                await trio.Event().wait()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            stopping.set()
        await wait()
        assert [scope.cancelled_caught for scope in scopes] == [True] * 3

    async def test_otherwise_it_is_a_timeout(self, autojump_clock: trio.abc.Clock) -> None:
        stopping = Stopping()
        began = trio.current_time()
        with stopping.interrupting(15):
            await trio.Event().wait()
        assert trio.current_time() - began == 15
        assert not stopping.is_set


printable = st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]) | st.sampled_from("\n\t"))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | printable,
    lambda inner: st.lists(inner) | st.dictionaries(printable, inner),
    max_leaves=20,
)


@settings(max_examples=40, deadline=None)
@given(json_values)
def test_yaml_says_what_was_put_in(value: Any) -> None:
    assert yaml.safe_load(to_yaml(value)) == value
