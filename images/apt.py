"""The distribution's packages, without touching the host: private lists, no root needed.

The sources are the host's own, as apt itself reports them, cut down to the running Debian release:
third-party archives that an administrator added have no business in a guest.
"""

import platform
import re
from functools import cache
from pathlib import Path

from images.paths import CACHE
from images.tool import ToolFailed, run

ROOT = CACHE / "apt"
SOURCES = ROOT / "sources.list"


@cache
def release() -> str:
    """The code name of the host's Debian release, which guests share."""
    facts = platform.freedesktop_os_release()
    if facts.get("ID") != "debian" or "VERSION_CODENAME" not in facts:
        raise ToolFailed(f"images are made from the host's Debian archive; this is {facts['ID']}")
    return facts["VERSION_CODENAME"]


@cache
def sources() -> Path:
    """Write a one-line-style sources file for the release, and return its path."""
    listing = run([
        "apt-get", "indextargets", "Created-By: Packages",
        "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)",
    ])  # fmt: skip
    ours = re.compile(rf"{release()}(-updates|-security|/updates)?")
    lines = {
        f"deb {uri} {suite} main\n"
        for uri, suite, component in (line.split(" ") for line in listing.splitlines())
        if ours.fullmatch(suite) and component == "main"
    }
    if not lines:
        raise ToolFailed(f"apt on this host has no source for Debian {release()}, component main")
    ROOT.mkdir(parents=True, exist_ok=True)
    SOURCES.write_text("".join(sorted(lines)))
    return SOURCES


@cache
def _options() -> tuple[str, ...]:
    """Point apt at a state directory of ours, and fill it with fresh lists once per run."""
    for directory in ("lists/partial", "cache/archives/partial"):
        (ROOT / directory).mkdir(parents=True, exist_ok=True)
    (ROOT / "status").touch()
    settings = {
        "Dir::Etc::sourcelist": sources(),
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State": ROOT,
        "Dir::State::status": ROOT / "status",
        "Dir::Cache": ROOT / "cache",
        # Otherwise root's apt drops to a user who may not write below the repository.
        "APT::Sandbox::User": "root",
    }
    options = tuple(f"-o{name}={value}" for name, value in settings.items())
    run(["apt-get", *options, "-q", "update"])
    return options


def candidate(package: str) -> tuple[str, str]:
    """The version that would be installed, and what the package depends on first."""
    shown = run(["apt-cache", *_options(), "show", "--no-all-versions", package])
    fields = dict(re.findall(r"^([A-Z][\w-]*): (.*)$", shown, re.MULTILINE))
    depends = re.match(r"[^\s,(]+", fields.get("Depends", ""))
    return fields["Version"], depends.group() if depends else ""


def download(package: str, target: Path) -> Path:
    """Fetch one `.deb` into `target` and return its path."""
    target.mkdir(parents=True, exist_ok=True)
    for stale in target.glob(f"{package}_*.deb"):
        stale.unlink()
    run(["apt-get", *_options(), "-q", "download", package], cwd=target)
    [deb] = target.glob(f"{package}_*.deb")
    return deb
