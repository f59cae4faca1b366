"""Which sandbox is taken, by stubs on PATH in the place of the real tools."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from supervisor.errors import ToolFailed
from supervisor.vm.sandbox import (
    CAGE,
    MACHINE_UID,
    NO_NETWORK,
    NO_VIEW,
    UNPRIVILEGED,
    Needs,
    find_sandbox,
    kinds,
    root_cage,
)

RUN_THE_REST = '#!/bin/sh\nwhile [ "$1" != -- ]; do shift; done\nshift\nexec "$@"\n'
REFUSE = "#!/bin/sh\necho 'Operation not permitted'\nexit 1\n"
REFUSE_USERS = RUN_THE_REST.replace("#!/bin/sh\n", '#!/bin/sh\n[ "$1" = --user ] && exit 1\n')
TRIALS = (["vmm", "--version"], ["device", "--version"])


def put(directory: Path, name: str, script: str) -> None:
    path = directory / name
    path.write_text(script)
    path.chmod(0o755)


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host that allows everything; the daemon is an ordinary user."""
    for name in ("setpriv", "prlimit", "unshare", "bwrap"):
        put(tmp_path, name, RUN_THE_REST)
    for name in ("vmm", "device"):
        put(tmp_path, name, "#!/bin/sh\nexit 0\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    return tmp_path


@pytest.mark.usefixtures("tools")
async def test_the_strictest_that_works_is_taken() -> None:
    assert await find_sandbox(TRIALS) == CAGE


@pytest.mark.usefixtures("tools")
async def test_roots_machines_run_as_another_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    sandbox = await find_sandbox(TRIALS)
    assert sandbox.uid == MACHINE_UID
    assert sandbox == kinds()[0]


async def test_where_no_proc_can_be_mounted_bubblewrap_makes_the_pid_namespace(
    tools: Path,
) -> None:
    refuse_proc = '#!/bin/sh\ncase "$*" in *--mount-proc*) exit 1;; esac\n'
    put(tools, "unshare", refuse_proc + RUN_THE_REST)
    sandbox = await find_sandbox(TRIALS)
    assert sandbox == replace(CAGE, has_own_proc=False)
    assert "--unshare-pid" in sandbox.wrap(["program"])


async def test_without_a_private_view_the_rest_of_the_cage_stays(tools: Path) -> None:
    (tools / "bwrap").unlink()
    assert await find_sandbox(TRIALS) == NO_VIEW


async def test_a_view_in_which_a_program_does_not_run_is_not_taken(tools: Path) -> None:
    put(tools, "bwrap", '#!/bin/sh\ncase "$*" in */device*) exit 127;; esac\n' + RUN_THE_REST)
    assert await find_sandbox(TRIALS) == NO_VIEW


async def test_without_user_namespaces_the_network_still_goes(tools: Path) -> None:
    put(tools, "unshare", REFUSE_USERS)
    assert await find_sandbox(TRIALS) == NO_NETWORK


async def test_without_any_namespace_no_privileges_are_gained(tools: Path) -> None:
    put(tools, "unshare", REFUSE)
    assert await find_sandbox(TRIALS) == UNPRIVILEGED


async def test_a_host_that_cannot_even_do_that_is_told(tools: Path) -> None:
    put(tools, "unshare", REFUSE)
    (tools / "setpriv").unlink()
    with pytest.raises(ToolFailed, match="setpriv was not found"):
        await find_sandbox(TRIALS)


@pytest.mark.parametrize(
    "kind", [root_cage(None), CAGE, NO_VIEW, NO_NETWORK, UNPRIVILEGED], ids=lambda kind: kind.name
)
def test_every_kind_ties_the_process_to_its_parent_and_limits_it(kind: object) -> None:
    assert isinstance(kind, type(CAGE))
    argv = kind.wrap(["program", "--option"], Needs(max_file_bytes=7, max_open_files=8))
    assert argv[-5:] == ["--pdeathsig", "KILL", "--", "program", "--option"]
    assert "--no-new-privs" in argv
    assert {"--core=0", "--fsize=7", "--nofile=8"} <= set(argv)


def test_the_view_holds_what_is_needed_and_only_one_place_to_write() -> None:
    needs = Needs(reads=(Path("/img/a, b/kernel"),), writes=(Path("/run/machine"),))
    argv = CAGE.wrap(["program"], needs)
    view = argv[argv.index("bwrap") : argv.index("--chdir")]
    assert [view[at + 1] for at, word in enumerate(view) if word == "--bind"] == ["/run/machine"]
    shown = [view[at + 1] for at, word in enumerate(view) if word == "--ro-bind"]
    assert "/img/a, b/kernel" in shown
    made = [view[at + 1] for at, word in enumerate(view) if word == "--dir"]
    assert "/img" in made
    assert made == sorted(made), "each is made behind the one that it is in"
    for secret in ("/", "/etc", "/home", "/var", "/proc"):
        assert secret not in shown


def test_the_group_of_kvm_is_all_that_roots_machines_have() -> None:
    assert "--clear-groups" in root_cage(None).inside
    assert "--groups=104" in root_cage(104).inside
