from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from supervisor.config import Accelerator
from supervisor.errors import ConfigError, VmBootFailed
from supervisor.vm.platform import EMULATED, KVM, KVM_MICROVM, Platform
from supervisor.vm.probe import ProbeKey, choose_platform, read_boot_id_sync, why_no_kvm

KEY = ProbeKey(boot_id="b", vmm="QEMU 7.2", kernel_sha256="k")


class Host:
    """A host on which some platforms come up."""

    def __init__(self, directory: Path, *works: Platform) -> None:
        self.works = set(works)
        self.tried: list[Platform] = []
        self.cache = directory / "platform.json"
        self.device = directory / "kvm"
        self.device.touch()

    async def boots(self, platform: Platform) -> bool:
        self.tried.append(platform)
        return platform in self.works

    async def choose(self, wanted: Accelerator = Accelerator.AUTO, key: ProbeKey = KEY) -> Platform:
        return await choose_platform(
            wanted, self.boots, cache=self.cache, key=key, device=self.device
        )


async def test_the_fastest_that_comes_up_is_chosen(tmp_path: Path) -> None:
    host = Host(tmp_path, KVM, KVM_MICROVM)
    assert await host.choose() == KVM_MICROVM


async def test_microvm_has_to_prove_itself(tmp_path: Path) -> None:
    host = Host(tmp_path, KVM)
    assert await host.choose() == KVM
    assert host.tried == [KVM, KVM_MICROVM]


async def test_a_device_that_boots_nothing_means_emulation_after_one_try(tmp_path: Path) -> None:
    host = Host(tmp_path)
    assert await host.choose() == EMULATED
    assert host.tried == [KVM]


async def test_an_answer_is_remembered(tmp_path: Path) -> None:
    host = Host(tmp_path)
    await host.choose()
    assert await host.choose() == EMULATED
    assert host.tried == [KVM]


@pytest.mark.parametrize(
    "key",
    [
        replace(KEY, boot_id="another"),
        replace(KEY, vmm="QEMU 8"),
        replace(KEY, kernel_sha256="another"),
    ],
)
async def test_an_answer_holds_for_what_it_was_found_with(tmp_path: Path, key: ProbeKey) -> None:
    host = Host(tmp_path)
    await host.choose()
    host.works = {KVM}
    assert await host.choose(key=key) == KVM


async def test_without_a_boot_id_nothing_is_remembered(tmp_path: Path) -> None:
    host, key = Host(tmp_path), replace(KEY, boot_id="")
    await host.choose(key=key)
    await host.choose(key=key)
    assert host.tried == [KVM, KVM]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b'{"key": 1}', b"\xff", b'{"works": {"q35/kvm": true}}']
)
async def test_a_broken_memory_is_no_memory(tmp_path: Path, content: bytes) -> None:
    host = Host(tmp_path)
    host.cache.write_bytes(content)
    assert await host.choose() == EMULATED
    assert host.tried == [KVM]


async def test_a_memory_that_cannot_be_written_does_not_matter(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.cache = tmp_path / "missing" / "platform.json"
    assert await host.choose() == EMULATED


async def test_a_vmm_that_does_not_start_is_tried_again_the_next_time(tmp_path: Path) -> None:
    host = Host(tmp_path, KVM)

    async def fail(platform: Platform) -> bool:
        await trio.lowlevel.checkpoint()
        raise VmBootFailed(f"no disk for {platform}")

    first = await choose_platform(
        Accelerator.AUTO, fail, cache=host.cache, key=KEY, device=host.device
    )
    assert first == EMULATED
    assert await host.choose() == KVM


async def test_no_device_means_emulation_without_a_try(tmp_path: Path) -> None:
    host = Host(tmp_path, KVM)
    host.device = tmp_path / "none"
    assert await host.choose() == EMULATED
    assert host.tried == []


async def test_emulation_on_request_asks_nobody(tmp_path: Path) -> None:
    host = Host(tmp_path, KVM)
    assert await host.choose(Accelerator.TCG) == EMULATED
    assert host.tried == []


async def test_kvm_on_request_is_an_error_where_it_does_not_work(tmp_path: Path) -> None:
    host = Host(tmp_path)
    with pytest.raises(ConfigError, match="did not come up"):
        await host.choose(Accelerator.KVM)
    host.device = tmp_path / "none"
    with pytest.raises(ConfigError, match="does not exist"):
        await host.choose(Accelerator.KVM)


def test_why_a_device_cannot_be_used_is_a_phrase_for_people(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert why_no_kvm(tmp_path) == f"{tmp_path} cannot be opened: Is a directory"

    def deny(path: str, flags: int) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", deny)
    reason = why_no_kvm(tmp_path / "kvm")
    assert reason is not None
    assert "add its group to the daemon's user" in reason


def test_a_boot_has_an_id(tmp_path: Path) -> None:
    assert len(read_boot_id_sync()) == 36
    assert read_boot_id_sync(tmp_path / "none") == ""
