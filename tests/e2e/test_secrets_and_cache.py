"""Secrets reach the steps that ask for them and nothing else; caches stay within their tenant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.e2e.daemon import Daemon
from tests.e2e.image import pull

TOKEN = "s3cr3t-value-of-acme"
CACHED = "FROM busybox\nRUN echo slow > /slow && date +%s%N > /when\n"
USES_SECRET = rf"""
{CACHED}
RUN --mount=type=secret,id=npm_token wc -c < /run/secrets/npm_token > /length
RUN --mount=type=secret,id=npm_token,env=NPM_TOKEN echo "token: $NPM_TOKEN"; \
    printf '%.5s' "$NPM_TOKEN"; sleep 1; printf '%s\n' "${{NPM_TOKEN#?????}}"
RUN ls /run/secrets 2>/dev/null | wc -l > /without
"""
SCOPE = "webapp"


@pytest.fixture(scope="module")
def secrets_dir(daemon: Daemon) -> Path:
    path = Path(daemon.environment["BUILD_SECRETS_DIR"])
    (path / "acme").mkdir(parents=True, exist_ok=True)
    (path / "acme" / "npm_token").write_text(TOKEN)
    return path


@pytest.fixture(scope="module")
def first(daemon: Daemon, secrets_dir: Path) -> dict[str, Any]:
    """A build with a secret; its cache is kept."""
    secret = {"id": "npm_token", "env_var": "NPM_TOKEN"}
    return daemon.build_image({"Dockerfile": USES_SECRET}, secrets=[secret], cache_scope=SCOPE)


def test_secret_is_mounted_where_asked_and_appears_nowhere_else(
    daemon: Daemon, first: dict[str, Any], tmp_path: Path
) -> None:
    build = first
    log = daemon.log(build["id"])
    assert "token: ***" in log
    image = pull(daemon, build["image_ref"], tmp_path)
    assert image.read("length").strip() == str(len(TOKEN)).encode()
    assert image.read("without").strip() == b"0"
    assert TOKEN not in str(image.config)
    for file in (daemon.data_dir / "builds" / build["id"]).rglob("*"):
        if file.is_file():
            assert TOKEN.encode() not in file.read_bytes(), file
            assert TOKEN[5:].encode() not in file.read_bytes(), file
    assert TOKEN not in daemon.log_tail()


@pytest.mark.usefixtures("secrets_dir")
def test_missing_secret_fails_before_anything_boots(daemon: Daemon) -> None:
    build = daemon.build({"Dockerfile": "FROM busybox\n"}, secrets=[{"id": "no_such_secret"}])
    assert build["error_code"] == "secret_not_found"
    assert "no_such_secret" in build["error"]
    assert "boot" not in build["phases"]
    other = daemon.wait(
        daemon.submit({"Dockerfile": "FROM busybox\n"}, secrets=[{"id": "acme"}])["id"]
    )
    assert other["error_code"] == "secret_not_found"


def test_second_build_of_a_scope_is_cached_and_another_tenant_never_is(
    daemon: Daemon, first: dict[str, Any]
) -> None:
    assert _slow_step(daemon, first["id"])["cached"] is False
    other = daemon.submit({"Dockerfile": CACHED}, cache_scope=SCOPE, tenant="globex")
    again = daemon.build_image({"Dockerfile": CACHED}, cache_scope=SCOPE)
    assert _slow_step(daemon, again["id"])["cached"] is True
    daemon.wait(other["id"])
    assert _slow_step(daemon, other["id"])["cached"] is False


def _slow_step(daemon: Daemon, build_id: str) -> dict[str, Any]:
    with daemon.client(permissions=["build:admin"]) as client:
        steps: list[dict[str, Any]] = client.get(f"/builds/{build_id}/steps").json()
    return next(step for step in steps if "RUN echo slow" in step["name"])
