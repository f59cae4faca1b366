"""The builder machine's root disk: Debian, BuildKit, and the agent with its Python.

Three stages, kept apart so that the slow ones are rarely made: the Debian tar (minutes), the
Python byte code and packages (seconds), and the packing, which a changed agent line repeats.
"""

import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from images import apt, bytecode, debootstrap, disk, gotools, tree
from images.paths import AGENT, CACHE, IMAGES
from images.stamp import digest_of, ensure
from images.tool import run
from images.tree import Tree

BASE = CACHE / "builder-base.tar"
PYTHON = CACHE / "builder-python"
STAGED_AGENT = CACHE / "builder-agent"
IMAGE = CACHE / "builder-rootfs"
FILE_NAME = f"rootfs.{disk.FORMAT}"
TAR = CACHE / "builder-rootfs.tar"
FILES = IMAGES / "builder" / "files"
LOCK = AGENT / "requirements.lock"

UID = 1000
HOME = "home/builder"
STATE = f"{HOME}/.local/share/buildkit"
LIBRARY = "usr/lib/hypeman"


@dataclass(frozen=True)
class Rootfs:
    """The packed disk, and what is known of its contents."""

    key: str
    base_key: str
    python_key: str
    image: Path
    packages: dict[str, str]
    python_packages: dict[str, str]
    agent: str


def prepare(recipe: Mapping[str, Any], programs_key: str, programs: Mapping[str, Path]) -> Rootfs:
    """Have the root disk packed, from whatever of its stages is still fresh."""
    settings = recipe["rootfs"]
    epoch = recipe["source_date_epoch"]
    base_key = ensure(
        "builder-base",
        [apt.release(), str(settings["packages"]), str(epoch), Path(debootstrap.__file__)],
        [BASE],
        lambda: debootstrap.debootstrap(
            BASE, variant="essential", packages=settings["packages"], epoch=epoch
        ),
    )
    packages = installed(BASE)
    version = ".".join(packages["python3-minimal"].split(".")[:2])
    python_key = ensure(
        "builder-python",
        [base_key, str(settings["exclude"]), LOCK, Path(__file__), Path(bytecode.__file__)],
        [PYTHON],
        lambda: stage_python(Tree(BASE, epoch, settings["exclude"]), version),
    )
    key = ensure(
        "builder-rootfs",
        [
            base_key, python_key, programs_key, str(settings),
            *agent_modules(), FILES, Path(__file__), Path(tree.__file__), Path(disk.__file__),
        ],
        [IMAGE],
        lambda: disk.pack(
            compose(settings, epoch, version, programs), IMAGE, epoch
        ),
    )  # fmt: skip
    return Rootfs(key, base_key, python_key, IMAGE, packages, locked(), digest_of(agent_modules()))


def installed(base: Path) -> dict[str, str]:
    """Versions by package name, from the tree's own dpkg database."""
    [(_, status)] = Tree(base, 0).read(["var/lib/dpkg/status"])
    return dict(re.findall(r"^Package: (\S+)$.*?^Version: (\S+)$", status.decode(), re.M | re.S))


def locked() -> dict[str, str]:
    """Versions by name of the Python packages that the agent runs on."""
    return dict(re.findall(r"^([\w-]+)==(\S+)", LOCK.read_text(), re.M))


def agent_modules() -> list[Path]:
    """The agent's source, which is all of it that the guest gets."""
    return sorted(AGENT.rglob("*.py"))


def stage_python(base: Tree, version: str) -> None:
    """Collect what the guest's Python imports, with byte code: the standard library, and ours."""
    shutil.rmtree(PYTHON, ignore_errors=True)
    for info, data in base.read([f"usr/lib/python{version}/*.py"]):
        if not base.excludes(info.name):
            path = PYTHON / info.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    run([
        sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
        "--require-hashes", "--no-deps", "--no-compile", "--requirement", LOCK,
        # For the guest, whatever Python runs this: wheels only, nothing is built or executed.
        "--only-binary", ":all:", "--implementation", "cp", "--python-version", version,
        "--platform", "manylinux_2_28_x86_64", "--platform", "manylinux2014_x86_64",
        "--target", PYTHON / LIBRARY,
    ])  # fmt: skip
    shutil.rmtree(PYTHON / LIBRARY / "bin", ignore_errors=True)
    for tests in (PYTHON / LIBRARY).rglob("_tests"):
        shutil.rmtree(tests)
    bytecode.compile_below(PYTHON, version)


def compose(
    settings: Mapping[str, Any], epoch: int, version: str, programs: Mapping[str, Path]
) -> Path:
    """Write the complete root file system as one tar file, and return its path."""
    shutil.rmtree(STAGED_AGENT, ignore_errors=True)
    package = STAGED_AGENT / LIBRARY / "agent"
    shutil.copytree(AGENT, package, ignore=lambda _, names: [n for n in names if n[-3:] != ".py"])
    bytecode.compile_below(STAGED_AGENT, version)

    root = Tree(BASE, epoch, settings["exclude"], settings["setuid"])
    root.add_tree(PYTHON)
    root.add_tree(STAGED_AGENT)
    root.add_tree(FILES)
    root.add_file(f"{LIBRARY}/versions", gotools.render_versions().encode())
    for name, path in programs.items():
        root.add_file(f"usr/bin/{name}", path.read_bytes(), mode=0o755)
    _add_builder(root)
    for name in ("config", "src"):
        root.add_directory(name)
    root.write(TAR)
    return TAR


def _add_builder(root: Tree) -> None:
    """The one ordinary user: BuildKit runs as this, and nothing else does."""
    root.edit("etc/passwd", lambda old: old + f"builder:x:{UID}:{UID}::/{HOME}:/bin/sh\n".encode())
    root.edit("etc/group", lambda old: old + f"builder:x:{UID}:\n".encode())
    root.edit("etc/shadow", lambda old: old + b"builder:!:20000::::::\n")
    for path in (STATE, *map(str, Path(STATE).parents)):
        if path.startswith(HOME):
            root.add_directory(path, owner=UID)
