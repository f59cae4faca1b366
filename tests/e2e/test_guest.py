"""What a step finds around it, told by the step itself."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.daemon import Daemon
from tests.e2e.image import pull

# Perl is in every Debian base; 40 is AF_VSOCK, 1 SOCK_STREAM.
LOOK_AROUND = r"""
FROM debian:bookworm
RUN tail -n +3 /proc/net/dev | cut -d: -f1 > /interfaces; \
    cat /proc/self/uid_map > /uid_map; \
    perl -e 'print socket(S, 40, 1, 0) ? "opened" : "refused: $!"' > /vsock; \
    perl -e 'print socket(S, 2, 1, 0) ? "opened" : "refused: $!"' > /inet; \
    (ls /dev/vsock /run/buildkit /config 2>&1 || true) > /sockets
"""


def test_step_is_rootless_has_only_loopback_and_no_vsock(daemon: Daemon, tmp_path: Path) -> None:
    build = daemon.build_image({"Dockerfile": LOOK_AROUND})
    image = pull(daemon, build["image_ref"], tmp_path)
    assert image.read("interfaces").split() == [b"lo"]
    # Root of the step is uid 1000 of the guest: the user that buildkitd runs as.
    assert image.read("uid_map").split()[:3] == [b"0", b"1000", b"1"]
    assert image.read("vsock").startswith(b"refused: ")
    assert image.read("inet") == b"opened"
