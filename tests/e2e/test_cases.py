"""What a Dockerfile can say, each case checked by looking into the pushed layers."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.daemon import Daemon
from tests.e2e.image import Image, pull

CASES = sorted(path.parent for path in (Path(__file__).parent / "cases").glob("*/expect.toml"))


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.name)
def test_case_builds_what_it_expects(daemon: Daemon, case: Path, tmp_path: Path) -> None:
    expect = tomllib.loads((case / "expect.toml").read_text())
    build = daemon.build_image(case, **expect.get("submit", {}))
    image = pull(daemon, build["image_ref"], tmp_path)

    assert image.digest == build["image_digest"]
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
