"""The builder image as an OCI image, built by this very system without any network."""

from __future__ import annotations

from pathlib import Path

import pytest

from images import gotools
from tests.e2e.daemon import REPOSITORY_ROOT, Daemon
from tests.e2e.image import pull

CONTEXT = REPOSITORY_ROOT / "build" / "generic-context"
PROGRAMS = [
    "buildctl",
    "buildctl-daemonless.sh",
    "buildkitd",
    "runc",
    "rootlesskit",
    "newuidmap",
    "newgidmap",
    "fuse-overlayfs",
    "git",
    "curl",
    "builder-agent",
]


@pytest.mark.timeout(1800)
def test_system_builds_its_own_builder_image(daemon: Daemon, tmp_path: Path) -> None:
    build = daemon.build_image(
        CONTEXT,
        build_args={"BASE": "10.102.0.1:8083/base/hypeman:bookworm", "TOOLS": "none"},
        timeout_seconds=1800,
    )
    image = pull(daemon, build["image_ref"], tmp_path)
    for program in PROGRAMS:
        path = f"usr/bin/{program}"
        assert path in image.files, path
        assert image.files[path].mode & 0o111, path
    for compiled in gotools.PROGRAMS:  # the very ones of the builder machine
        content = (gotools.BIN / compiled.name).read_bytes()
        assert image.read(f"usr/bin/{compiled.name}") == content, compiled.name
    environment = image.config["config"]["Env"]
    assert "HOME=/home/builder" in environment
    assert "XDG_RUNTIME_DIR=/home/builder/.local/share" in environment
    assert "BUILDKITD_FLAGS=" in environment
    assert image.config["config"]["User"] == "1000:1000"
    assert b"builder:x:1000:1000:" in image.read("etc/passwd")
    assert "usr/lib/hypeman/agent/main.py" in image.files
