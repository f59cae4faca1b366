"""The base images, as somebody else's reader sees them."""

from __future__ import annotations

import json
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from images import apt
from images.oci import REFERENCE
from images.paths import BASES, IMAGES

RECIPE = tomllib.loads((IMAGES / "bases.toml").read_text())
NAMES = [name for name, value in RECIPE.items() if isinstance(value, dict)]


@pytest.mark.parametrize("name", NAMES)
def test_the_layout_names_all_its_references(name: str) -> None:
    layout = BASES / name
    if not layout.is_dir():
        pytest.skip("the base images are not made: ./run setup")
    entries = json.loads((layout / "index.json").read_text())["manifests"]
    assert [entry["annotations"][REFERENCE] for entry in entries] == [
        text.format(release=apt.release()) for text in RECIPE[name]["references"]
    ]


@pytest.mark.skipif(shutil.which("skopeo") is None, reason="no skopeo on this host")
@pytest.mark.parametrize("name", NAMES)
def test_skopeo_copies_it_and_checks_every_digest(name: str, tmp_path: Path) -> None:
    layout = BASES / name
    if not layout.is_dir():
        pytest.skip("the base images are not made: ./run setup")
    reference = RECIPE[name]["references"][0].format(release=apt.release())
    target = tmp_path / "copy"
    subprocess.run(
        ["skopeo", "copy", "--quiet", f"oci:{layout}:{reference}", f"dir:{target}"], check=True
    )
    config = json.loads(
        subprocess.run(
            ["skopeo", "inspect", "--config", f"oci:{layout}:{reference}"],
            check=True,
            capture_output=True,
        ).stdout
    )
    assert config["config"]["Cmd"]
    assert any(entry.startswith("PATH=") for entry in config["config"]["Env"])
