"""Which sandbox is taken, by stubs on PATH in the place of the real tools."""

from __future__ import annotations

from pathlib import Path

import pytest

from supervisor.errors import ToolFailed
from supervisor.vm.sandbox import NO_NETWORK, STRICT, UNPRIVILEGED, find_sandbox

RUN_THE_REST = '#!/bin/sh\nwhile [ "$1" != -- ]; do shift; done\nshift\nexec "$@"\n'
REFUSE = "#!/bin/sh\necho 'unshare failed: Operation not permitted'\nexit 1\n"
REFUSE_USERS = (
    '#!/bin/sh\ncase "$*" in --user*) exit 1;; esac\n' + RUN_THE_REST[len("#!/bin/sh\n") :]
)


def put(directory: Path, name: str, script: str) -> None:
    path = directory / name
    path.write_text(script)
    path.chmod(0o755)


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    put(tmp_path, "setpriv", RUN_THE_REST)
    put(tmp_path, "true", "#!/bin/sh\nexit 0\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


async def test_the_strictest_that_works_is_taken(tools: Path) -> None:
    put(tools, "unshare", RUN_THE_REST)
    assert await find_sandbox() == STRICT


async def test_without_user_namespaces_the_network_still_goes(tools: Path) -> None:
    put(tools, "unshare", REFUSE_USERS)
    assert await find_sandbox() == NO_NETWORK


async def test_without_any_namespace_no_privileges_are_gained(tools: Path) -> None:
    put(tools, "unshare", REFUSE)
    assert await find_sandbox() == UNPRIVILEGED


async def test_a_host_that_cannot_even_do_that_is_told(tools: Path) -> None:
    put(tools, "unshare", REFUSE)
    (tools / "setpriv").unlink()
    with pytest.raises(ToolFailed, match="setpriv was not found"):
        await find_sandbox()


def test_every_kind_ties_the_process_to_the_daemon_after_it_changed_credentials() -> None:
    for kind in (STRICT, NO_NETWORK, UNPRIVILEGED):
        assert kind.wrap(["program"])[-4:] == ["--pdeathsig", "KILL", "--", "program"]
        assert "--no-new-privs" in kind.prefix
