"""The command line of buildctl: whatever a user writes stays where it belongs."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import buildctl, wire

CONFIG = wire.Config(
    build_id="0" * 24,
    registry="10.102.0.1:8083",
    registry_token="token",
    repository="builds/abc",
    source_sha256="0" * 64,
    source_size=1,
    timeout_seconds=600,
)
text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=60)
names = text.filter(lambda name: name and "=" not in name)
ATTESTED = {"attest:provenance": "mode=min"}


def options(command: list[str], name: str) -> list[str]:
    """Read the command as buildctl does: an option's value is the next argument, whole."""
    return [command[at + 1] for at, argument in enumerate(command) if argument == name]


def attributes(line: str) -> dict[str, str]:
    """Read a line of CSV as buildctl does."""
    [fields] = csv.reader(io.StringIO(line), strict=True)
    return dict(field.split("=", 1) for field in fields)


def parse(command: list[str]) -> dict[str, str]:
    return dict(value.split("=", 1) for value in options(command, "--opt"))


def test_an_ordinary_build() -> None:
    config = replace(CONFIG, target="app", build_args={"A": "1"}, no_cache=True)
    assert buildctl.check(config) is None
    assert buildctl.argv(config, {"npm": "/run/hypeman/secrets/0"}) == [
        "buildctl", "--addr", "unix:///home/builder/.local/share/buildkit/buildkitd.sock",
        "build",
        "--progress", "rawjson",
        "--metadata-file", "/run/hypeman/work/metadata.json",
        "--frontend", "dockerfile.v0",
        "--local", "context=/src",
        "--local", "dockerfile=/src",
        "--opt", "filename=Dockerfile",
        "--opt", "target=app",
        "--opt", "build-arg:A=1",
        "--opt", "attest:provenance=mode=min",
        "--no-cache",
        "--secret", "id=npm,src=/run/hypeman/secrets/0",
        "--output", "type=image,name=10.102.0.1:8083/builds/abc:latest,push=true,"
        "oci-mediatypes=true,compression=gzip",
    ]  # fmt: skip


def test_the_requests_own_dockerfile_is_taken_from_beside_the_context() -> None:
    config = replace(CONFIG, dockerfile="FROM scratch", dockerfile_path="sub/Other")
    command = buildctl.argv(config, {})
    assert options(command, "--local") == ["context=/src", "dockerfile=/run/hypeman/dockerfile"]
    assert parse(command) == {"filename": "Dockerfile", **ATTESTED}


def test_the_cache_is_written_whole_and_its_failure_ignored() -> None:
    config = replace(
        CONFIG, cache_import=("cache/t/a:latest", "cache/global/k"), cache_export="cache/t/a:latest"
    )
    command = buildctl.argv(config, {})
    assert options(command, "--import-cache") == [
        "type=registry,ref=10.102.0.1:8083/cache/t/a:latest",
        "type=registry,ref=10.102.0.1:8083/cache/global/k",
    ]
    [line] = options(command, "--export-cache")
    assert attributes(line) == {
        "type": "registry",
        "ref": "10.102.0.1:8083/cache/t/a:latest",
        "mode": "max",
        "image-manifest": "true",
        "oci-mediatypes": "true",
        "ignore-error": "true",
    }


def test_with_egress_steps_are_told_of_the_proxy() -> None:
    assert parse(buildctl.argv(replace(CONFIG, egress=True), {})) == {
        "filename": "Dockerfile",
        "build-arg:http_proxy": "http://10.102.0.1:3128",
        "build-arg:https_proxy": "http://10.102.0.1:3128",
        "build-arg:no_proxy": "10.102.0.1,localhost,127.0.0.1",
        **ATTESTED,
    }
    assert "build-arg:http_proxy" not in parse(buildctl.argv(CONFIG, {}))


@given(arguments=st.dictionaries(names, text, max_size=4), target=text, path=text.filter(bool))
def test_no_text_of_a_user_leaves_its_place(
    arguments: dict[str, str], target: str, path: str
) -> None:
    config = replace(CONFIG, build_args=arguments, target=target, dockerfile_path=path)
    assert buildctl.check(config) is None
    command = buildctl.argv(config, {})
    expected = {"filename": path, **({"target": target} if target else {}), **ATTESTED}
    expected |= {f"build-arg:{name}": value for name, value in arguments.items()}
    assert parse(command) == expected
    # The rest of the command is what it is without them.
    bare = buildctl.argv(CONFIG, {})
    kept = [a for at, a in enumerate(command) if a != "--opt" and command[at - 1] != "--opt"]
    assert kept == [a for at, a in enumerate(bare) if a != "--opt" and bare[at - 1] != "--opt"]


@given(st.dictionaries(st.sampled_from(["id", "src", "name"]), text, min_size=1))
def test_a_value_in_a_line_of_csv_is_one_field(values: dict[str, str]) -> None:
    line = buildctl.csv(**values)
    assert attributes(line) == values


@pytest.mark.parametrize(
    "changes",
    [
        {"registry": "10.102.0.1:8083,push=false"},
        {"registry": ""},
        {"repository": "builds/x,push=false"},
        {"repository": "builds/../x"},
        {"repository": "builds/x:tag"},
        {"repository": "builds/x\n"},
        {"cache_import": ("cache/x,mode=max",)},
        {"cache_import": ("cache/x:y:z",)},
        {"cache_export": "cache/x:latest,ref=other"},
        {"mirrors": ('docker.io"]\n[x',)},
        {"mirrors": ("docker.io/x",)},
        {"secrets": (wire.SecretRequest("a,src=/etc/shadow"),)},
        {"secrets": (wire.SecretRequest(".."),)},
        {"secrets": (wire.SecretRequest("a" * 65),)},
    ],
)
def test_a_name_that_is_none_is_refused(changes: dict[str, Any]) -> None:
    failure = buildctl.check(replace(CONFIG, **changes))
    assert failure is not None
    assert failure.code == "build_failed"


@pytest.mark.parametrize(
    "changes",
    [
        {"build_args": {"": "x"}},
        {"build_args": {"a=b": "x"}},
        {"build_args": {"BUILDKIT_ATTEST_PROVENANCE": "mode=max"}},
        {"build_args": {"BUILDKIT_ATTEST_SBOM": "generator=example.net/scanner"}},
        {"build_args": {"a": "x\0y"}},
        {"build_args": {"a\0": "x"}},
        {"build_args": {"a": "x" * (128 << 10)}},
        {"target": "a\0"},
        {"dockerfile_path": "D" * (128 << 10)},
    ],
)
def test_a_text_that_cannot_be_an_argument_is_refused(changes: dict[str, Any]) -> None:
    failure = buildctl.check(replace(CONFIG, **changes))
    assert failure is not None
    assert failure.code == "dockerfile_invalid"


def test_names_in_use_are_accepted() -> None:
    config = replace(
        CONFIG,
        repository="builds/00mdkq3v2h8f6s1z9y4x7w5t",
        cache_import=("cache/acme/my-app:latest", "cache/global/node_20.x"),
        cache_export="cache/acme/my-app:latest",
        mirrors=("docker.io", "ghcr.io", "registry.example:5000"),
        secrets=(wire.SecretRequest("npm_token"), wire.SecretRequest("..a")),
    )
    assert buildctl.check(config) is None
