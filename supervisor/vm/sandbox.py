"""The cage of a machine's processes: what a VMM, and whoever breaks out into it, is not given.

A VMM and its vsock device each run in namespaces of their own: users (no capability, not even for
root's), network (none), processes (it sees and can signal none of the host's, the daemon included),
IPC, and mounts: a view of the file system with the libraries they are linked with, the builder
image, and the machine's directory, of which the last is writable. They gain no privileges, and are
limited in the files, memory dumps and processes that they make. A daemon that runs as root has them
run as a user of nobody else's.

Nothing of it needs root. Hosts that forbid a part get the next best cage, and a warning.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from supervisor.errors import ToolFailed
from supervisor.runtime.logs import log
from supervisor.runtime.process import TIED_TO_PARENT, run_tool

MACHINE_UID = 1_900_000_000
"""Of a root daemon's machines. Nobody allocates users there (systemd.io/UIDS-GIDS)."""
KVM = Path("/dev/kvm")

# `unshare --user` changes credentials, so the tie to the parent has to be made after it.
_NO_CAPABILITIES = (
    "setpriv", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all", *TIED_TO_PARENT[1:],
)  # fmt: skip
_OWN_USERS = ("unshare", "--user", "--map-root-user", "--")

# A tie to a parent that has died before it was made ties to nobody. So whoever is tied looks
# whether the parent lives, before it becomes anything that could outlive it.
_PARENT_LIVES = '[ "$PPID" = "$0" ]'
_TIED = f'{_PARENT_LIVES} && exec "$@"'
# A PID namespace with the /proc that belongs to it, whose first process dies with this one. Not
# bubblewrap's: killed while it prepares its view, that leaves a child that is tied to nobody.
_TIED_WITH_OWN_PROCESSES = f"""{_PARENT_LIVES} && exec 9<"/proc/$$/stat" && \
exec unshare --pid --fork --kill-child=KILL --mount-proc -- \
/bin/sh -c 'read -r _ _ state _ <&9 && [ "$state" != Z ] && exec "$@" 9<&-' - "$@\""""

# What programs of the distribution are made of. No configuration, no other programs.
_SYSTEM = ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/share/qemu", "/usr/share/seabios")
_DEVICES = ("/dev/null", "/dev/urandom", str(KVM))


@dataclass(frozen=True, slots=True)
class Needs:
    """What one program is let have, besides its own code."""

    reads: tuple[Path, ...] = ()
    writes: tuple[Path, ...] = ()
    max_file_bytes: int = 0
    """The largest that it can make a file, or shared memory."""
    max_open_files: int = 1024
    max_tasks: int = 256
    """Processes and threads."""


NOTHING = Needs()


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A way to start a program with less."""

    name: str
    outside: tuple[str, ...]
    """What starts it, on the host."""
    inside: tuple[str, ...]
    """What starts it, in its view of the file system."""
    view_capabilities: tuple[str, ...] | None = None
    """What `inside` needs to get rid of the rest; None if there is no private view."""
    uid: int | None = None
    """The host's user that it runs as, if that is not the daemon's."""
    has_own_proc: bool = True
    """Whether a /proc can be mounted for it, which bubblewrap reads from within a PID namespace.

    Where /proc is partly hidden (a hardened service, a container) it cannot. Then bubblewrap makes
    the PID namespace, and a daemon killed in that moment may leave a process to whoever ends what
    the service has left: systemd, the container's end, or the sweep at the daemon's next start.
    """

    def wrap(self, argv: Sequence[str], needs: Needs = NOTHING) -> list[str]:
        """Return the command line that runs `argv` inside."""
        # fmt: off
        limits = (
            "prlimit",
            "--core=0",
            f"--fsize={needs.max_file_bytes}",
            f"--nofile={needs.max_open_files}",
            f"--nproc={needs.max_tasks}",
            "--",
        )
        # fmt: on
        program = _locate(argv[0])
        inside = self.inside
        if self.view_capabilities is not None:
            inside = tuple(
                _locate(word) if word in ("setpriv", "unshare") else word for word in inside
            )
        view = self._view(program, needs)
        script = _TIED_WITH_OWN_PROCESSES if view and self.has_own_proc else _TIED
        tied = [*TIED_TO_PARENT, "/bin/sh", "-c", script, str(os.getpid())]
        return [*self.outside, *tied, *limits, *view, *inside, program, *argv[1:]]

    def _view(self, program: str, needs: Needs) -> list[str]:
        if self.view_capabilities is None:
            return []
        tools = [_locate(name) for name in ("setpriv", "unshare")]
        shown = [*tools, program, *map(os.fspath, needs.reads)]
        # It stays, as the namespace's `init`, and is what dies with the daemon: of another user's
        # process, which a VMM of root's is, it could not be told to (no CAP_KILL).
        words = ["bwrap", "--unshare-net", "--unshare-ipc"]
        if not self.has_own_proc:
            words.append("--unshare-pid")
        for directory in _parents([*_SYSTEM, *_DEVICES, *shown, *map(os.fspath, needs.writes)]):
            words += ["--perms", "0755", "--dir", directory]
        for path in _SYSTEM:
            words += ["--ro-bind-try", path, path]
        for path in shown:
            words += ["--ro-bind", path, path]
        for path in map(os.fspath, needs.writes):
            words += ["--bind", path, path]
        for path in _DEVICES:
            words += ["--dev-bind-try", path, path]
        if self.uid is not None:
            words += ["--proc", "/proc"]  # `unshare --map-root-user` writes to it
        words += ["--chdir", "/", "--die-with-parent", "--cap-drop", "ALL"]
        for capability in self.view_capabilities:
            words += ["--cap-add", capability]
        return [*words, "--"]


CAGE = Sandbox(
    "a cage",
    outside=_OWN_USERS,
    view_capabilities=("CAP_SETPCAP",),
    inside=_NO_CAPABILITIES,
)
NO_VIEW = Sandbox(
    "no privileges, no network",
    outside=("unshare", "--user", "--map-root-user", "--net", "--"),
    inside=_NO_CAPABILITIES,
)
NO_NETWORK = Sandbox("no network", outside=("unshare", "--net", "--"), inside=_NO_CAPABILITIES)
UNPRIVILEGED = Sandbox(
    "no new privileges", outside=(), inside=("setpriv", "--no-new-privs", *TIED_TO_PARENT[1:])
)


def root_cage(kvm_gid: int | None) -> Sandbox:
    """Return the cage of a daemon that is root: as another user, in the group of /dev/kvm."""
    uid = str(MACHINE_UID)
    groups = "--clear-groups" if kvm_gid is None else f"--groups={kvm_gid}"
    return Sandbox(
        "a cage, as a user of its own",
        outside=(),
        view_capabilities=("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP"),
        inside=(
            "setpriv", "--reuid", uid, "--regid", uid, groups, "--",
            *_OWN_USERS,
            *_NO_CAPABILITIES,
        ),
        uid=MACHINE_UID,
    )  # fmt: skip


def kinds() -> tuple[Sandbox, ...]:
    """Return what may be tried, the strictest first."""
    others = (*_with_either_proc(CAGE), NO_VIEW, NO_NETWORK, UNPRIVILEGED)
    if os.geteuid() != 0:
        return others
    cage = root_cage(KVM.stat().st_gid if KVM.exists() else None)
    return (*_with_either_proc(cage), *others)


def _with_either_proc(cage: Sandbox) -> tuple[Sandbox, Sandbox]:
    return cage, replace(cage, has_own_proc=False)


async def find_sandbox(trials: Iterable[Sequence[str]]) -> Sandbox:
    """Return the strictest sandbox in which every one of `trials` runs.

    Raises ToolFailed if they do not even run in the last one.
    """
    tried = kinds()
    for kind, following in pairwise(tried):
        try:
            await _try_out(kind, trials)
        except ToolFailed as exc:
            # The same cage made in the other way keeps a program in as well.
            level = "INFO" if following.name == kind.name else "WARNING"
            log.bind(sandbox=kind.name, why=exc.message).log(level, "sandbox.refused")
        else:
            return kind
    await _try_out(tried[-1], trials)
    return tried[-1]


async def _try_out(kind: Sandbox, trials: Iterable[Sequence[str]]) -> None:
    for trial in trials:
        await run_tool(kind.wrap(trial))


def _locate(program: str) -> str:
    """Return where a program is; as it was if nowhere, for whoever starts it to complain."""
    return shutil.which(program) or program


def _parents(paths: Iterable[str]) -> list[str]:
    """Return every directory above `paths`, each behind the one that it is in."""
    return sorted({str(parent) for path in paths for parent in Path(path).parents} - {"/"})
