"""The base images: a busybox that is one static program, and a Debian that has little but apt."""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from images import apt, busybox, debootstrap, gotools, oci, rootfs, tree
from images.paths import BASES, CACHE, IMAGES
from images.stamp import ensure
from images.tool import run
from images.tree import Tree

RECIPE = IMAGES / "bases.toml"
MODULES = [Path(__file__), Path(oci.__file__), Path(tree.__file__)]


def prepare_busybox() -> None:
    """Have `build/bases/busybox`."""
    recipe = tomllib.loads(RECIPE.read_text())
    shell = busybox.prepare()
    target = BASES / "busybox"
    ensure(
        "base/busybox",
        [shell.key, RECIPE, *MODULES],
        [target],
        lambda: _make_busybox(target, shell.program, recipe),
    )


def prepare_debian() -> None:
    """Have `build/bases/debian`."""
    recipe = tomllib.loads(RECIPE.read_text())
    epoch = recipe["source_date_epoch"]
    variant, hooks = recipe["debian"]["variant"], recipe["debian"]["hooks"]
    base, target = CACHE / "debian-base.tar", BASES / "debian"
    key = ensure(
        "debian-base",
        [apt.release(), variant, str(hooks), str(epoch), Path(debootstrap.__file__)],
        [base],
        lambda: debootstrap.debootstrap(
            base, variant=variant, packages=[], epoch=epoch, hooks=hooks
        ),
    )
    ensure(
        "base/debian",
        [key, RECIPE, *MODULES],
        [target],
        lambda: _make_debian(target, base, recipe),
    )


def prepare_hypeman(
    keys: Sequence[str], exclude: Sequence[str], programs: Mapping[str, Path]
) -> None:
    """Have `build/bases/hypeman`: of the builder all that comes from elsewhere, as a base image.

    `keys` are those of the builder's Debian, of its Python packages and of its Go programs.
    """
    recipe = tomllib.loads(RECIPE.read_text())
    target = BASES / "hypeman"
    ensure(
        "base/hypeman",
        [*keys, str(exclude), RECIPE, *MODULES],
        [target],
        lambda: _make_hypeman(target, exclude, programs, recipe),
    )


def _make_busybox(target: Path, program: Path, recipe: Mapping[str, Any]) -> None:
    root = Tree(None, recipe["source_date_epoch"])
    root.add_file("bin/busybox", program.read_bytes(), mode=0o755)
    for applet in run([program, "--list"]).split():
        if applet != "busybox":
            root.add_link(f"bin/{applet}", "busybox")
    # `#!/usr/bin/env`, `/usr/sbin/adduser`: everything is found in the three other places too.
    for name in ("sbin", "usr/bin", "usr/sbin"):
        root.add_link(name, "/bin")
    root.add_file(
        "etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n"
    )
    root.add_file("etc/group", b"root:x:0:\nnogroup:x:65534:\n")
    root.add_file("etc/shadow", b"root:*:::::::\n", mode=0o600)
    for name in ("dev", "etc", "home", "proc", "root", "sys", "usr", "var"):
        root.add_directory(name)
    root.add_directory("tmp", mode=0o1777)
    _write(target, root, recipe, "busybox", ["sh"])


def _make_debian(target: Path, base: Path, recipe: Mapping[str, Any]) -> None:
    root = Tree(base, recipe["source_date_epoch"], recipe["debian"]["exclude"])
    for name, text in recipe["debian"]["files"].items():
        root.add_file(name, text.encode())
    _write(target, root, recipe, "debian", ["bash"])


def _make_hypeman(
    target: Path,
    exclude: Sequence[str],
    programs: Mapping[str, Path],
    recipe: Mapping[str, Any],
) -> None:
    root = Tree(rootfs.BASE, recipe["source_date_epoch"], exclude)
    root.add_tree(rootfs.PYTHON / rootfs.LIBRARY, rootfs.LIBRARY)
    root.add_file(f"{rootfs.LIBRARY}/versions", gotools.render_versions().encode())
    for name, path in programs.items():
        root.add_file(f"usr/bin/{name}", path.read_bytes(), mode=0o755)
    _write(target, root, recipe, "hypeman", ["bash"])


def _write(
    target: Path, root: Tree, recipe: Mapping[str, Any], name: str, command: list[str]
) -> None:
    layer = CACHE / f"{name}-layer.tar"
    root.write(layer)
    target.parent.mkdir(parents=True, exist_ok=True)
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    oci.write_layout(
        target,
        layer,
        references=[text.format(release=apt.release()) for text in recipe[name]["references"]],
        config={"Env": [f"PATH={path}"], "Cmd": command},
        epoch=recipe["source_date_epoch"],
    )
    layer.unlink()
