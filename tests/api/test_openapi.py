"""The description of the API is true: checked by requests that are made from it."""

from __future__ import annotations

import hashlib
import json
import queue
import re
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx2
import jsonschema_rs
import pytest
import schemathesis
import trio
import yaml  # type: ignore[import-untyped]
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.internal.conjecture.providers import HypothesisProvider
from requests import Request
from schemathesis import GenerationMode
from schemathesis.core.parameters import ParameterLocation
from schemathesis.specs.openapi.checks import (
    negative_data_rejection,
    positive_data_acceptance,
    unsupported_method,
)

from supervisor.api.fields import BuildFields
from supervisor.api.openapi import build_spec
from supervisor.api.routes import ROUTES, Route
from supervisor.config import Keys, Settings
from supervisor.daemon import app
from supervisor.daemon.lock import prepare_directories
from supervisor.runtime.activation import PassedSockets
from supervisor.tokens import Permission
from tests.api.conftest import API_KEY, REGISTRY_KEY, SOURCE, Api, bearer, form
from tests.e2e.daemon import free_port
from tests.fakes.agent import agent, fail_step
from tests.fakes.hypervisor import FakeHypervisor

TOKEN = bearer("acme", *Permission)


class Background:
    """A whole daemon on a thread of its own, but for its machines: whoever asks is no trio program.

    The store, the registry and the actors are the real ones, since it is there that values which
    the API has let through would turn out to be trouble.
    """

    def __init__(self, directory: Path) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        self._settings = Settings(
            data_dir=directory / "data",
            runtime_dir=directory / "run",
            host="127.0.0.1",
            port=int(self.url.rpartition(":")[2]),
            metrics_address="none",
            pool_size=0,
        )
        self._running: queue.Queue[tuple[trio.lowlevel.TrioToken, trio.CancelScope]] = queue.Queue()
        self._thread = threading.Thread(target=trio.run, args=(self._main,))

    def start(self) -> None:
        prepare_directories(self._settings)
        self._thread.start()
        self._token, self._scope = self._running.get(timeout=30)
        with httpx2.Client(transport=httpx2.HTTPTransport(retries=100)) as client:
            assert client.get(f"{self.url}/ready").status_code == 200

    def stop(self) -> None:
        self._token.run_sync_soon(lambda: self._scope.cancel(reason="the tests are done"))
        self._thread.join(30)
        assert not self._thread.is_alive()

    async def _main(self) -> None:
        keys = Keys(api=API_KEY, registry=REGISTRY_KEY)
        with trio.CancelScope() as scope:
            self._running.put((trio.lowlevel.current_trio_token(), scope))
            await app._Daemon(self._settings, keys, PassedSockets()).run()


async def _start_fakes(*_: object) -> FakeHypervisor:
    await trio.lowlevel.checkpoint()
    hypervisor = FakeHypervisor(agent(fail_step))
    hypervisor.platform = "fake"  # type: ignore[attr-defined]
    return hypervisor


@pytest.fixture(scope="module")
def url(short_directory: Path) -> Iterator[str]:
    image = SimpleNamespace(digest="sha256:" + "cd" * 32, reference="builder:1", components={})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app, "start_hypervisor", _start_fakes)
        patch.setattr(app, "find_builder_image", lambda *_: image)
        daemon = Background(short_directory)
        daemon.start()
        yield daemon.url
        daemon.stop()


@pytest.fixture(scope="module")
def short_directory() -> Iterator[Path]:
    """A directory with a short name: sockets are made in it."""
    with tempfile.TemporaryDirectory(prefix="hm-", dir="/tmp") as name:
        yield Path(name)


@pytest.fixture(scope="module")
def known(url: str) -> Mapping[str, Mapping[str, str]]:
    """What there is, for each route that asks for something by its name."""
    names: dict[str, Mapping[str, str]] = {}
    with httpx2.Client(base_url=url, headers=TOKEN, timeout=30) as client:
        empty = b"{}"
        digest = f"sha256:{hashlib.sha256(empty).hexdigest()}"
        blob = {"mediaType": "application/vnd.oci.empty.v1+json", "digest": digest, "size": 2}
        kind = "application/vnd.oci.image.manifest.v1+json"
        manifest = {"schemaVersion": 2, "mediaType": kind, "config": blob, "layers": [blob]}
        for route in ROUTES:
            if "{id}" in route.path and not route.is_websocket:
                answer = client.post("/builds", files=form())
                build_id = answer.json()["id"]
                client.get(f"/builds/{build_id}/logs")  # to its end
                names[route.name] = {"id": build_id}
            elif "{name}" in route.path:
                name = f"acme/{route.name}"
                client.post(f"/v2/{name}/blobs/uploads/?digest={digest}", content=empty)
                headers = {"Content-Type": kind}
                answer = client.put(f"/v2/{name}/manifests/1", json=manifest, headers=headers)
                assert answer.status_code == 201, answer.text
                names[route.name] = {"name": f"{name}:1"}
    return names


POSITIVE, NEGATIVE = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
WITHOUT_INPUT = {
    *("health", "ready", "spec_json", "spec_yaml", "show_queue", "list_machines"),
    *("system_info", "system_config", "disk_usage"),
    *("get_image", "delete_image"),  # their input is a name, which is only found or not
}
TESTED = [
    pytest.param(route, mode, id=f"{route.name}-{mode.value}")
    for route in ROUTES
    for mode in (POSITIVE, NEGATIVE)
    # A websocket is no HTTP; where there is no input, none can be wrong.
    if not route.is_websocket and not (mode is NEGATIVE and route.name in WITHOUT_INPUT)
]
ABOUT_SOURCE = {"source_hash", "dockerfile_path", "allowed_domains"}
"""Parts of a form that random texts hardly ever get right."""
HARD_TO_DESCRIBE = {
    *("submit_build", "create_token", "retry_build", "get_image", "delete_image"),
    *("build_logs", "build_events"),
}
"""No schema says that bytes are an archive, that a subject alone must be a tenant's name, which
builds have ended, which images there are, or which events a build has had."""


@pytest.fixture(scope="module", autouse=True)
def _no_constants_of_the_program() -> Iterator[None]:
    """What is generated must not depend on which other modules this process has loaded: Hypothesis
    would draw the constants in their source.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HypothesisProvider, "_maybe_draw_constant", lambda *_, **__: None)
        yield


@pytest.fixture(scope="module")
def described(url: str) -> Any:
    return schemathesis.openapi.from_url(f"{url}/spec.json")


def is_wrong_as_sent(case: Any) -> bool:
    """Say whether a request that is meant to be wrong still is on the wire.

    A query parameter whose wrong value is null or an empty list is not sent at all; a tag with an
    object for its value is one with a strange name, `tags[a][b]`; and the wrong `Authorization` is
    replaced by ours.
    """
    prepared = Request(**case.as_transport_kwargs(headers=TOKEN)).prepare()
    query = urlsplit(prepared.url or "").query
    names = {name for name, _ in parse_qsl(query, keep_blank_values=True)}
    sent = {name for name in names if not re.fullmatch(r"tags\[.+\]", name, re.DOTALL)}
    unknown = sent - {parameter.name for parameter in case.operation.query}
    return any(
        mutation.parameter_location is not ParameterLocation.QUERY
        or mutation.parameter in sent
        or unknown
        for mutation in case.meta.phase.data.mutations
        if mutation.parameter != "Authorization"
    )


@pytest.mark.parametrize(("route", "mode"), TESTED)
def test_the_daemon_answers_as_described(
    described: Any, known: Mapping[str, Mapping[str, str]], route: Route, mode: GenerationMode
) -> None:
    # A HEAD belongs to every GET, though OpenAPI does not list it.
    excluded = [unsupported_method]
    if route.name in HARD_TO_DESCRIBE:
        excluded.append(positive_data_acceptance)
    if mode is POSITIVE:
        excluded.append(negative_data_rejection)  # it takes bytes for a part that is no text
    operation = described[route.path][route.method]

    @settings(
        max_examples=20,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode), is_known=st.booleans())
    def check(case: Any, is_known: bool) -> None:
        if mode is POSITIVE and is_known and route.name in known:
            case.path_parameters.update(known[route.name])
        if mode is POSITIVE and is_known and route.name == "submit_build":
            said = {name: part for name, part in case.body.items() if name not in ABOUT_SOURCE}
            case.body = {**said, "source": SOURCE}
        if case.path.endswith(("/logs", "/events")):
            case.query["follow"] = "false"  # what is followed does not end by itself
        if mode is NEGATIVE:
            assume(is_wrong_as_sent(case))
        case.call_and_validate(headers=TOKEN, excluded_checks=excluded)

    check()


def test_every_event_is_described(url: str, known: Mapping[str, Mapping[str, str]]) -> None:
    described = httpx2.get(f"{url}/spec.json").json()["components"]["schemas"]["Event"]
    answer = httpx2.get(f"{url}/builds/{known['build_events']['id']}/events", headers=TOKEN)
    events = [json.loads(data) for data in re.findall(r"(?m)^data: (.*)$", answer.text)]
    assert {event["type"] for event in events} == {"status", "step", "log"}
    for event in events:
        jsonschema_rs.validate(described, event)
        assert event.keys() <= described["properties"].keys()


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
