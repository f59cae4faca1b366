"""A minimal Debian as a tar file: the slow part of a root disk, made rarely and kept.

mmdebstrap resolves, downloads and unpacks; as root in a plain chroot, as anybody else in a user
namespace. With SOURCE_DATE_EPOCH its tar files are reproducible for the same package versions.
"""

from collections.abc import Sequence
from pathlib import Path

from images import apt
from images.tool import run

HOOKS = "/usr/share/mmdebstrap/hooks"
# Never unpacked at all: what a machine without a reader does not need.
UNREAD = ["/usr/share/doc/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/man/*"]


def debootstrap(
    target: Path,
    *,
    variant: str,
    packages: Sequence[str],
    epoch: int,
    hooks: Sequence[str] = (),
) -> None:
    """Write `target`, a tar of the host's Debian release with `packages` in it.

    `hooks` are directories of mmdebstrap's own (mmdebstrap(1), HOOKS).
    """
    temporary = target.with_suffix(".new")
    target.parent.mkdir(parents=True, exist_ok=True)
    run(
        [
            "mmdebstrap",
            "--mode=auto", f"--variant={variant}", "--format=tar",
            *([f"--include={','.join(packages)}"] if packages else []),
            '--aptopt=Apt::Install-Recommends "false"',
            "--dpkgopt=force-unsafe-io",
            *(f"--hook-dir={HOOKS}/{name}" for name in hooks),
            *(f"--dpkgopt=path-exclude={pattern}" for pattern in UNREAD),
            apt.release(), temporary, apt.sources(),
        ],
        env={"SOURCE_DATE_EPOCH": str(epoch), "LC_ALL": "C.UTF-8"},
    )  # fmt: skip
    temporary.replace(target)
