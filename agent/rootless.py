"""How the rootless BuildKit daemon is configured and started. Imports nothing heavy.

The daemon takes seconds to come up under emulation, so it is the first thing that the agent starts,
before trio is loaded; agent/buildkit.py then owns it.
"""

from __future__ import annotations

import _socket
import os

from agent import paths
from agent.spawn import PATH, Spawned, spawn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

GUEST_ADDRESS = "10.102.0.1"
REGISTRY = f"{GUEST_ADDRESS}:8083"
PROXY = f"http://{GUEST_ADDRESS}:3128"
NO_PROXY = f"{GUEST_ADDRESS},localhost,127.0.0.1"
DEFAULT_MIRRORS = ("docker.io", "ghcr.io", "quay.io")
"""The contract's default for `MIRRORS`."""
OTEL_SOCKET = f"{paths.STATE_DIR}/otel-grpc.sock"

COMMAND = (
    "rootlesskit",
    "--net=host",  # the machine's network is `lo`; there is nothing to keep apart
    "--subid-source=static",
    f"--state-dir={paths.WORK_DIR}/rootlesskit",
    "buildkitd",
    f"--config={paths.BUILDKITD_TOML}",
    "--oci-worker-net=host",
)


class Started:
    """A daemon on its way up: the process, and the socket on which it will say that it is ready."""

    def __init__(self, process: Spawned, notify: int) -> None:
        self.process = process
        self.notify = notify


def builder_env() -> dict[str, str]:
    """Return the environment of everything that runs as `builder`."""
    return {
        "PATH": PATH,
        "HOME": paths.HOME,
        "USER": "builder",
        "XDG_RUNTIME_DIR": paths.RUNTIME_DIR,
        "LANG": "C.UTF-8",
    }


def environment() -> dict[str, str]:
    """Return what the daemon's process is given."""
    return {
        **builder_env(),
        "NOTIFY_SOCKET": paths.NOTIFY_SOCKET,
        # The supervisor limits the log, and says so in it; BuildKit's own limits do neither well.
        "BUILDKIT_STEP_LOG_MAX_SIZE": "-1",
        "BUILDKIT_STEP_LOG_MAX_SPEED": "-1",
        # For its own fetches. Without egress nothing listens there, and a fetch fails at once.
        "http_proxy": PROXY,
        "https_proxy": PROXY,
        "no_proxy": NO_PROXY,
    }


def render_config(mirrors: Sequence[str]) -> str:
    """Return buildkitd.toml. The mirrors have passed `buildctl.check`: nothing needs quoting."""
    registries = [f'[registry."{REGISTRY}"]\n  http = true\n']
    registries += [
        f'[registry."{upstream}"]\n  mirrors = ["{REGISTRY}/mirror/{_component(upstream)}"]\n'
        for upstream in mirrors
    ]
    return f"""\
root = "{paths.STATE_DIR}"

[grpc]
  address = ["unix://{paths.BUILDKIT_SOCKET}"]

[otel]
  socketPath = "{OTEL_SOCKET}"

[cdi]
  disabled = true

[worker.oci]
  enabled = true
  snapshotter = "overlayfs"
  # Found out otherwise, by running a program for each architecture there is.
  platforms = ["linux/amd64"]
  # The machine ends with its one build.
  gc = false

[worker.containerd]
  enabled = false

{"".join(registries)}"""


def _component(upstream: str) -> str:
    """Return an upstream's part of the names in the mirror, where a colon cannot be."""
    return upstream.replace(":", "_")


def prepare_directories() -> None:
    """Make what the image cannot have made, because it is on a tmpfs."""
    for path, mode in ((paths.RUN_DIR, 0o755), (paths.WORK_DIR, 0o700)):
        if not os.path.isdir(path):  # noqa: PTH112 - pathlib is not free
            os.mkdir(path, mode)  # noqa: PTH102
    os.chown(paths.WORK_DIR, paths.BUILDER_UID, paths.BUILDER_UID)


def start(mirrors: Sequence[str]) -> Started:
    """Start the daemon with these mirrors. Raises OSError."""
    with open(paths.BUILDKITD_TOML, "w", encoding="utf-8") as file:  # noqa: PTH123
        file.write(render_config(mirrors))
    notify = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM)
    try:
        if os.path.lexists(paths.NOTIFY_SOCKET):
            os.unlink(paths.NOTIFY_SOCKET)  # noqa: PTH108
        notify.bind(paths.NOTIFY_SOCKET)
        os.chown(paths.NOTIFY_SOCKET, paths.BUILDER_UID, paths.BUILDER_UID)
        # newuidmap is set-uid, and the only way for an ordinary user into a full user namespace.
        process = spawn(COMMAND, environment(), user=paths.BUILDER_UID, may_gain=True)
        return Started(process, notify.detach())
    except BaseException:
        notify.close()
        raise
