"""What a Dockerfile can say. A case is one build, checked feature by feature in the pushed layers.

To boot a machine takes longer than a step, so a case holds what goes together in one Dockerfile.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.daemon import Daemon
from tests.e2e.image import Image, pull

CASES = Path(__file__).parent / "cases"
EXPECTED: dict[str, dict[str, Any]] = {
    path.parent.name: tomllib.loads(path.read_text())
    for path in sorted(CASES.glob("*/expect.toml"))
}
FEATURES = [(case, feature) for case, expect in EXPECTED.items() for feature in expect["feature"]]


@dataclass(frozen=True)
class Case:
    """A case that was built: what each feature is to leave, and the image that was pushed."""

    features: dict[str, Any]
    image: Image


@pytest.fixture(scope="module")
def case(
    request: pytest.FixtureRequest, daemon: Daemon, tmp_path_factory: pytest.TempPathFactory
) -> Case:
    name: str = request.param
    expected = EXPECTED[name]
    fields = dict(expected.get("submit", {}))
    if "dockerfile" in expected:
        fields["dockerfile"] = (CASES / name / expected["dockerfile"]).read_text()
    build = daemon.build_image(CASES / name, **fields)
    image = pull(daemon, build["image_ref"], tmp_path_factory.mktemp(name))
    assert image.digest == build["image_digest"]
    return Case(expected["feature"], image)


@pytest.mark.parametrize(("case", "feature"), FEATURES, indirect=["case"], scope="module")
def test_feature_shows_in_the_pushed_layers(case: Case, feature: str) -> None:
    expect, image = case.features[feature], case.image
    for name, wanted in expect.get("files", {}).items():
        check_file(image, name, wanted if isinstance(wanted, dict) else {"content": wanted})
    for name, target in expect.get("symlinks", {}).items():
        assert image.files[name].issym()
        assert image.files[name].linkname == target
    for name in expect.get("absent", []):
        assert name not in image.files
    for key, value in expect.get("config", {}).items():
        assert image.config["config"][key] == value


def check_file(image: Image, name: str, wanted: dict[str, Any]) -> None:
    assert name in image.files, f"{name} is not among {sorted(image.files)[-40:]}"
    content = image.read(name).decode()
    if "contains" in wanted:
        assert wanted["contains"] in content
    else:
        assert content == wanted["content"]
    member = image.files[name]
    for key in ("uid", "gid"):
        if key in wanted:
            assert getattr(member, key) == wanted[key]
    if "mode" in wanted:
        assert member.mode & 0o7777 == wanted["mode"]
