"""The parts of a build that need no machine."""

from __future__ import annotations

import base64
import json
import os
import stat
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from agent import paths, wire
from agent.build import (
    _run_buildctl,
    is_clock_wrong,
    read_image_digest_sync,
    run_build,
    settle_sync,
)
from agent.buildkit import Daemon
from agent.redact import Redaction
from agent.rootless import REGISTRY
from agent.spawn import Spawned
from tests.unit.agent.test_control import CONFIG

DIGEST = "sha256:" + "a" * 64


@pytest.fixture
def guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that stands for the guest's root; files belong to who runs the tests."""
    for name in ("BUILD_JSON", "CA_CERTIFICATES", "DOCKER_DIR", "DOCKERFILE_DIR"):
        path = tmp_path / getattr(paths, name).lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        monkeypatch.setattr(paths, name, str(path))
    monkeypatch.setattr(paths, "BUILDER_UID", os.getuid())
    return tmp_path


def test_the_configuration_is_kept_without_the_token(guest: Path) -> None:
    settle_sync(replace(CONFIG, registry_token="s3cret-token", build_args={"A": "1"}))
    path = guest / "config/build.json"
    kept = json.loads(path.read_text())
    assert kept["build_args"] == {"A": "1"}
    assert kept["registry_token"] is None
    assert "s3cret-token" not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(("told", "kept"), [("", "public\n"), ("OURS", "public\n\nOURS\n")])
def test_whom_the_operator_trusts_is_added_to_the_public_authorities(
    guest: Path, told: str, kept: str
) -> None:
    path = guest / "etc/ssl/certs/ca-certificates.crt"
    path.write_text("public\n")
    settle_sync(replace(CONFIG, ca_certificates=told))
    assert path.read_text() == kept


def test_the_token_is_where_buildctl_looks_for_it(guest: Path) -> None:
    settle_sync(replace(CONFIG, registry="10.102.0.1:8083", registry_token="token"))
    path = guest / "run/hypeman/docker/config.json"
    [(registry, credentials)] = json.loads(path.read_text())["auths"].items()
    assert registry == "10.102.0.1:8083"
    assert credentials["registrytoken"] == "token"
    assert base64.b64decode(credentials["auth"]) == b"builder:token"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_requests_dockerfile_lies_beside_the_context(guest: Path) -> None:
    settle_sync(replace(CONFIG, dockerfile="FROM scratch\n# é\n"))
    path = guest / "run/hypeman/dockerfile/Dockerfile"
    assert path.read_text(encoding="utf-8") == "FROM scratch\n# é\n"
    assert [p.name for p in path.parent.iterdir()] == ["Dockerfile"]


@pytest.mark.parametrize(
    ("host", "guest_time", "is_wrong"),
    [
        (0.0, 1000.0, False),  # the host does not say
        (1000.0, 1000.0, False),
        (1000.0, 1020.0, False),  # the host's word may have waited
        (1000.0, 998.0, True),
        (1000.0, 2000.0, True),
        (1000.0, 0.0, True),
    ],
)
def test_a_clock_is_set_only_if_it_is_wrong(host: float, guest_time: float, is_wrong: bool) -> None:
    assert is_clock_wrong(host, guest_time) is is_wrong


@pytest.mark.parametrize(
    ("text", "digest"),
    [
        (json.dumps({"containerimage.digest": DIGEST}), DIGEST),
        (json.dumps({"containerimage.digest": "sha256:short"}), ""),
        (json.dumps({"containerimage.digest": [DIGEST]}), ""),
        (json.dumps([DIGEST]), ""),
        ("{}", ""),
        ("{", ""),
        ('{"a":' * 100_000, ""),
        (None, ""),
    ],
)
def test_the_digest_is_read_from_buildkits_metadata(
    tmp_path: Path, text: str | None, digest: str
) -> None:
    path = tmp_path / "metadata.json"
    if text is not None:
        path.write_text(text)
    assert read_image_digest_sync(str(path)) == digest


# What buildctl reports of `FROM busybox` with one step, up to the moment at which it has built all
# that there is to push.
BASE = "sha256:" + "b" * 64
BUILT = [
    {"digest": "sha256:from", "name": f"[1/2] FROM docker.io/library/busybox:latest@{BASE}"},
    {"digest": "sha256:run", "name": "[2/2] RUN true", "inputs": ["sha256:from"]},
    {
        "digest": "sha256:export",
        "name": "exporting to image",
        "started": "2026-11-21T01:45:29.188486609Z",
    },
]


async def run_buildctl(guest: Path, expected_base: str, then: str) -> tuple[wire.BuildResult, str]:
    """Run something that reports like buildctl, and then does `then`; return also the phases."""
    said: list[wire.Message] = []

    async def send(messages: Iterable[wire.Message]) -> None:
        said.extend(messages)

    reports = guest / "reports"
    reports.write_text(json.dumps({"vertexes": BUILT}) + "\n")
    command = ["sh", "-c", f"cat {reports} >&2; {then}"]
    config = replace(CONFIG, base_image_digest=expected_base)
    with trio.fail_after(30):
        result = await _run_buildctl(command, config, Redaction(), Daemon(), send)
    return result, " ".join(m.phase for m in said if isinstance(m, wire.Status))


@pytest.fixture
def state(guest: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(paths, "STATE_DIR", str(guest))
    monkeypatch.setattr(paths, "METADATA_JSON", str(guest / "metadata.json"))
    (guest / "metadata.json").write_text(json.dumps({"containerimage.digest": DIGEST}))
    return guest


async def test_another_base_ends_buildctl_before_it_pushes(state: Path) -> None:
    pushed = state / "pushed"
    # It would push when the process that never ends has ended.
    result, phases = await run_buildctl(state, DIGEST, f"sleep 1000; touch {pushed}")
    assert (result.ok, result.error_code) == (False, "base_image_mismatch")
    assert result.error == f"the final stage's base is {BASE} instead of {DIGEST}"
    assert result.base_image_digest == BASE
    assert phases == ""
    assert not pushed.exists()


@pytest.mark.parametrize("expected", ["", BASE])
async def test_the_expected_base_is_pushed(state: Path, expected: str) -> None:
    result, phases = await run_buildctl(state, expected, "true")
    assert (result.ok, result.image_digest) == (True, DIGEST)
    assert result.base_image_digest == BASE
    assert phases == "pushing"


async def build_that_unpacks_nothing(
    config: wire.Config, send: Any, connect: Any
) -> wire.BuildResult:
    unused: Any = Spawned(pid=-1, stderr=-1, stdin=-1)
    return await run_build(config, send, daemon=Daemon(), connect=connect, unpacking=unused)


async def test_a_configuration_that_cannot_be_built_is_refused_before_anything(
    guest: Path,
) -> None:
    async def connect(port: int) -> None:
        raise AssertionError("nothing is fetched")

    async def send(messages: object) -> None:
        raise AssertionError("nothing is said")

    config = replace(CONFIG, registry=REGISTRY, repository="Builds/x,push=false")
    result = await build_that_unpacks_nothing(config, send, connect)
    assert (result.ok, result.error_code) == (False, "build_failed")
    assert not (guest / "config/build.json").exists()


async def test_a_supervisor_whose_source_port_does_not_answer_has_lost_its_builder(
    guest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "SECRETS_DIR", str(guest / "secrets"))
    said: list[wire.Message] = []

    async def connect(port: int) -> None:
        raise ConnectionResetError("reset")

    async def send(messages: list[wire.Message]) -> None:
        said.extend(messages)

    config = replace(CONFIG, registry=REGISTRY)
    result = await build_that_unpacks_nothing(config, send, connect)
    assert result.error_code == "builder_lost"
    assert "5003" in result.error
    assert [m.phase for m in said if isinstance(m, wire.Status)] == ["source"]
