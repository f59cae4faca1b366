"""What a machine owns on the host, where no machine is needed to see it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

import pytest

from supervisor.errors import HostError, ResourceExhausted, VmBootFailed
from supervisor.model.ids import MachineId
from supervisor.runtime.logs import log
from supervisor.vm.qemu_machine import _as_boot_failure, _make_directory


@pytest.fixture
def errors() -> Iterator[list[str]]:
    """The errors that are logged while the test runs."""
    found: list[str] = []
    sink = log.add(lambda message: found.append(message.record["message"]), level="ERROR")
    yield found
    log.remove(sink)


def test_a_directory_goes_with_its_machine(tmp_path: Path, errors: list[str]) -> None:
    directory = tmp_path / "machines" / "m1"
    with ExitStack() as ours:
        _make_directory(directory, None, ours)
        (directory / "v.sock").touch()
    assert not directory.exists()
    assert errors == []


def test_one_that_the_host_does_not_let_go_is_left_to_the_next_start_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, errors: list[str]
) -> None:
    def refuse(_: Path) -> NoReturn:
        raise OSError(24, "Too many open files")

    directory = tmp_path / "machines" / "m1"
    with monkeypatch.context() as poor, ExitStack() as ours:
        _make_directory(directory, None, ours)
        poor.setattr(shutil, "rmtree", refuse)
        ours.close()
    assert directory.exists()
    assert errors == ["machine.directory_not_removed"]


def test_a_full_disk_is_told_apart_from_other_reasons_not_to_start() -> None:
    full = ResourceExhausted("a scratch disk cannot be made: No space left on device")
    assert _as_boot_failure(MachineId("m1"), full) is full
    refused = _as_boot_failure(MachineId("m1"), HostError("no descriptor is left"))
    assert isinstance(refused, VmBootFailed)
    assert refused.__cause__ is not None
    assert refused.message == "machine m1 cannot start: no descriptor is left"
