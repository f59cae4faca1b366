"""Make an image: `python -m images.build [NAME …]`. Without a name, all of them.

The builder image's directory is complete before anyone can see it: files are linked into a new
directory, the manifest is written last, and `latest` is switched to it in one step.
"""

import argparse
import fcntl
import os
import shutil
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

from images import (
    bases,
    busybox,
    files,
    generic_context,
    gotools,
    host,
    initramfs,
    kernel,
    manifest,
    rootfs,
    scratch,
)
from images.paths import BUILD, IMAGES, OUTPUT
from images.tool import ToolFailed, say

KEPT_VERSIONS = 4
RECIPE = IMAGES / "builder" / "recipe.toml"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, prog="images.build")
    parser.add_argument("name", nargs="*", choices=[[], *MAKERS], help="; ".join(MAKERS))
    names = parser.parse_args().name or list(MAKERS)
    BUILD.mkdir(exist_ok=True)
    # Two at once would write the same files; the second finds everything fresh.
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            for name in names:
                MAKERS[name]()
        except ToolFailed as exc:
            say(str(exc))
            return 1
    return 0


def make_builder() -> None:
    """Make `build/images/hypeman/builder/latest`."""
    recipe = tomllib.loads(RECIPE.read_text())
    shell = busybox.prepare()
    linux = kernel.prepare(recipe["kernel"]["package"])
    _, initrd = initramfs.prepare(linux, shell, recipe["kernel"]["modules"])
    programs_key, programs = gotools.prepare(host.go())
    disk = rootfs.prepare(recipe, programs_key, programs)
    _, template = scratch.prepare(recipe["scratch"], recipe["source_date_epoch"])
    parts = {
        "vmlinux": linux.vmlinux,
        "bzImage": linux.bzimage,
        "initramfs": initrd,
        rootfs.FILE_NAME: disk.image,
        "scratch.ext4": template,
    }
    facts = manifest.compose(recipe, linux, shell, disk, parts)
    keys = [disk.base_key, disk.python_key, programs_key]
    bases.prepare_hypeman(keys, recipe["rootfs"]["exclude"], programs)
    generic_context.prepare()
    directory = _publish(OUTPUT / recipe["name"], parts, facts)
    say(f"  {recipe['name']} {facts['digest']} in {directory}")


def _publish(home: Path, parts: dict[str, Path], facts: manifest.Facts) -> Path:
    """Show the finished parts as `latest`.

    A few versions before it stay, for daemons that were started with one of them.
    """
    latest, directory = home / "latest", home / facts["digest"].removeprefix("sha256:")[:16]
    if not (directory / "manifest.json").is_file():
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        for name, path in parts.items():
            os.link(path, directory / name)
    # Even if the parts are the same: what is said about them may have changed.
    files.write(directory / "manifest.json", manifest.render(facts))
    switch = home / "latest.new"
    switch.unlink(missing_ok=True)
    switch.symlink_to(directory.name)
    switch.replace(latest)
    versions = [path for path in home.iterdir() if path.is_dir() and not path.is_symlink()]
    versions.sort(key=lambda path: (path == directory, path.stat().st_mtime))
    for stale in versions[:-KEPT_VERSIONS]:
        shutil.rmtree(stale)
    return latest


MAKERS: dict[str, Callable[[], None]] = {
    "builder": make_builder,
    "busybox": bases.prepare_busybox,
    "debian": bases.prepare_debian,
}

if __name__ == "__main__":
    sys.exit(main())
