"""The description of the API is true: checked by requests that are made from it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import schemathesis
import trio
import yaml  # type: ignore[import-untyped]
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance, unsupported_method

from supervisor.api.fields import BuildFields
from supervisor.api.openapi import build_spec
from supervisor.api.ports import ApiDeps
from supervisor.api.routes import ROUTES, Route
from supervisor.config import Keys, Settings
from supervisor.model.build import Status
from supervisor.runtime.threads import Threads
from supervisor.tokens import Permission
from tests.api.conftest import API_KEY, REGISTRY_KEY, Api, bearer, serving
from tests.fakes.build_service import FakeBuilds
from tests.fakes.operations import FakeImages, FakeOperator

TOKEN = bearer("acme", *Permission)


Said = tuple[str, trio.lowlevel.TrioToken, trio.CancelScope]


class Background:
    """A server on a thread of its own: the client that tests it is not a trio program."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._said: queue.Queue[tuple[str, trio.lowlevel.TrioToken, trio.CancelScope]] = (
            queue.Queue()
        )
        self._thread = threading.Thread(target=trio.run, args=(self._main,))

    def start(self) -> str:
        self._thread.start()
        url, self._token, self._scope = self._said.get(timeout=30)
        return url

    def stop(self) -> None:
        self._token.run_sync_soon(lambda: self._scope.cancel(reason="the tests are done"))
        self._thread.join(30)
        assert not self._thread.is_alive()

    async def _main(self) -> None:
        fake = FakeBuilds(self._directory)
        deps = ApiDeps(
            builds=fake,
            images=FakeImages(),
            operator=FakeOperator(fake),
            settings=Settings(
                data_dir=self._directory, runtime_dir=self._directory, host="127.0.0.1", port=0
            ),
            keys=Keys(api=API_KEY, registry=REGISTRY_KEY),
            threads=Threads(),
            name_registry=lambda: "registry.example:5000",
        )
        api = Api(deps, fake)
        for status in (Status.READY, Status.FAILED):
            await api.submit_finished("line", status=status)
        with trio.CancelScope() as scope:
            async with serving(api) as server:
                self._said.put((server.url, trio.lowlevel.current_trio_token(), scope))
                await trio.sleep_forever()


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = Background(tmp_path_factory.mktemp("openapi"))
    yield server.start()
    server.stop()


POSITIVE, NEGATIVE = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
WITHOUT_INPUT = {"health", "ready", "spec_json", "spec_yaml"}
TESTED = [
    pytest.param(route, mode, id=f"{route.name}-{mode.value}")
    for route in ROUTES
    for mode in (POSITIVE, NEGATIVE)
    # A websocket is no HTTP; where there is no input, none can be wrong.
    if not route.is_websocket and not (mode is NEGATIVE and route.name in WITHOUT_INPUT)
]
HARD_TO_DESCRIBE = {"submit_build", "create_token", "retry_build", "get_image", "delete_image"}
"""No schema says that bytes are an archive, that a subject alone must be a tenant's name, or which
builds have ended and which images there are."""


@pytest.fixture(scope="module")
def described(url: str) -> Any:
    return schemathesis.openapi.from_url(f"{url}/spec.json")


@pytest.mark.parametrize(("route", "mode"), TESTED)
def test_the_daemon_answers_as_described(
    described: Any, route: Route, mode: GenerationMode
) -> None:
    # A HEAD belongs to every GET, though OpenAPI does not list it.
    excluded = [unsupported_method]
    if route.name in HARD_TO_DESCRIBE:
        excluded.append(positive_data_acceptance)
    operation = described[route.path][route.method]

    @settings(
        max_examples=20,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case: Any) -> None:
        if case.path.endswith(("/logs", "/events")):
            case.query["follow"] = "false"  # what is followed does not end by itself
        case.call_and_validate(headers=TOKEN, excluded_checks=excluded)

    check()


def test_every_route_is_described(url: str) -> None:
    spec = httpx2.get(f"{url}/spec.json").json()
    described = {(method.upper(), path) for path, item in spec["paths"].items() for method in item}
    assert described == {(route.method, route.path) for route in ROUTES}


def test_both_notations_say_the_same(url: str) -> None:
    text = httpx2.get(f"{url}/spec.yaml").text
    assert yaml.safe_load(text) == httpx2.get(f"{url}/spec.json").json()


async def test_every_part_is_described(api: Api) -> None:
    operation = build_spec(api.deps)["paths"]["/builds"]["post"]
    body = operation["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert set(body["properties"]) == {"source", *BuildFields.model_fields}
    assert body["properties"]["timeout_seconds"]["maximum"] == 7200
    assert body["properties"]["runtime"]["deprecated"] is True
    assert body["required"] == ["source"]
