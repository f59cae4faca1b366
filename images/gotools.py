"""The Go programs of the builder image, each from a tool module with a committed go.sum.

`images/<module>/go.mod` is the one place where a version is written. A module of ours is needed
because BuildKit's own go.mod has `exclude` lines, which `go install module@version` refuses.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from images.paths import CACHE, IMAGES
from images.stamp import ensure
from images.tool import run

BIN = CACHE / "go"


@dataclass(frozen=True)
class Program:
    """One program: where its main package is, and how it is linked."""

    name: str
    directory: str  # below images/, with go.mod and go.sum
    module: str
    package: str
    version_variable: str | None  # set by the linker; None where the source has a constant
    seccomp: bool  # links libseccomp, through cgo

    def version(self) -> str:
        """What go.mod says, as in `v0.32.2`."""
        for line in (IMAGES / self.directory / "go.mod").read_text().splitlines():
            words = line.replace("require", "").split()
            if len(words) >= 2 and words[0] == self.module and words[1].startswith("v"):
                return words[1]
        raise AssertionError(f"{self.directory}/go.mod does not require {self.module}")


BUILDKIT = "github.com/moby/buildkit"
ROOTLESSKIT = "github.com/rootless-containers/rootlesskit/v3"
RUNC = "github.com/opencontainers/runc"

PROGRAMS = [
    Program("buildkitd", "buildkit", BUILDKIT, f"{BUILDKIT}/cmd/buildkitd",
            f"{BUILDKIT}/version.Version", seccomp=True),
    Program("buildctl", "buildkit", BUILDKIT, f"{BUILDKIT}/cmd/buildctl",
            f"{BUILDKIT}/version.Version", seccomp=False),
    Program("runc", "runc", RUNC, RUNC, "main.version", seccomp=True),
    Program("rootlesskit", "rootlesskit", ROOTLESSKIT, f"{ROOTLESSKIT}/cmd/rootlesskit",
            None, seccomp=False),
]  # fmt: skip


def versions() -> dict[str, str]:
    """Versions by module directory: buildkit, rootlesskit, runc."""
    return {program.directory: program.version() for program in PROGRAMS}


def render_versions() -> str:
    """Lines of `name version`, which the agent tells the supervisor without running anything."""
    return "".join(f"{name} {version}\n" for name, version in sorted(versions().items()))


def prepare(go: Path) -> tuple[str, dict[str, Path]]:
    """Have all programs built with this toolchain; return a digest and the programs by name."""
    keys = [_prepare(go, program) for program in PROGRAMS]
    script = BIN / "buildctl-daemonless.sh"
    keys.append(
        ensure("buildctl-daemonless", [keys[0]], [script], lambda: _copy_script(go, script))
    )
    return ":".join(keys), {path.name: path for path in [*map(_output, PROGRAMS), script]}


def _output(program: Program) -> Path:
    return BIN / program.name


def _prepare(go: Path, program: Program) -> str:
    module = IMAGES / program.directory
    return ensure(
        f"go/{program.name}",
        [str(program), module / "go.mod", module / "go.sum", Path(__file__)],
        [_output(program)],
        lambda: _build(go, program),
    )


def _build(go: Path, program: Program) -> None:
    # Without seccomp a RUN step could open AF_VSOCK and talk to the host's ports; with it, the
    # program must be static all the same, because the generic image has other libraries.
    link = ["-s", "-w"]
    if program.version_variable:
        link.append(f"-X {program.version_variable}={program.version()}")
    if program.seccomp:
        link += ["-linkmode external", "-extldflags -static"]
    run(
        [
            go, "build", "-trimpath", "-buildvcs=false", "-mod=readonly",
            "-tags", "seccomp,netgo,osusergo,static_build" if program.seccomp else "netgo,osusergo",
            "-ldflags", " ".join(link),
            "-o", _output(program),
            program.package,
        ],
        cwd=IMAGES / program.directory,
        env={
            "CGO_ENABLED": "1" if program.seccomp else "0",
            "GOFLAGS": "",
            "GOWORK": "off",
            # The toolchain that was found is the one that is used: no silent download of another.
            "GOTOOLCHAIN": "local",
        },
    )  # fmt: skip


def _copy_script(go: Path, target: Path) -> None:
    """BuildKit ships this script as an example, in the module that is compiled anyway."""
    found = run([go, "list", "-m", "-json", BUILDKIT], cwd=IMAGES / "buildkit")
    source = Path(json.loads(found)["Dir"], "examples/buildctl-daemonless", target.name)
    target.write_bytes(source.read_bytes())
    target.chmod(0o755)
