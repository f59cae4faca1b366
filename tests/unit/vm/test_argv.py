from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from supervisor.model.ids import MachineId
from supervisor.model.image import BuilderImage
from supervisor.vm.argv import Descriptors, qemu_argv, vsock_argv
from supervisor.vm.machine import MachineSpec
from supervisor.vm.platform import EMULATED, KVM, KVM_MICROVM, Platform

IMAGE = BuilderImage(
    reference="hypeman/builder:latest",
    digest="sha256:" + "0" * 64,
    kernel=Path("/images/vmlinux"),
    kernel_sha256="1" * 64,
    initramfs=Path("/images/initramfs"),
    rootfs=Path("/images/rootfs.erofs"),
    scratch=Path("/images/scratch.ext4"),
    cmdline="console=ttyS0 rootfstype=erofs",
)
FDS = Descriptors(console=11, qmp=12, vsock=13, scratch=14)
DIRECTORY = Path("/run/hypeman/machines/m1")


def argv(platform: Platform = EMULATED, image: BuilderImage = IMAGE) -> list[str]:
    spec = MachineSpec(MachineId("m1"), cpus=4, memory_mb=3072)
    return qemu_argv(spec, image, platform, DIRECTORY, FDS, tsc_khz=2_596_124)


def test_an_emulated_guest_is_told_how_fast_its_counter_runs_and_one_on_kvm_is_not() -> None:
    [emulated], [kvm] = options(argv(), "-append"), options(argv(KVM), "-append")
    assert "tsc_early_khz=2596124" in emulated.split()
    assert "tsc" not in kvm


def options(words: list[str], name: str) -> list[str]:
    return [value for word, value in itertools.pairwise(words) if word == name]


def test_nothing_is_there_that_was_not_asked_for() -> None:
    words = argv()
    assert {"-nodefaults", "-no-user-config", "-no-reboot"} <= set(words)
    assert options(words, "-nic") == ["none"]
    assert options(words, "-display") == ["none"]
    kinds = [device.partition(",")[0] for device in options(words, "-device")]
    assert kinds == ["virtio-blk-pci", "virtio-blk-pci", "vhost-user-vsock-pci"]


def test_the_vmm_may_neither_spawn_nor_gain_rights() -> None:
    [sandbox] = options(argv(), "-sandbox")
    assert sandbox == "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


def test_the_root_disk_comes_first_and_is_never_written() -> None:
    words = argv()
    root, scratch = options(words, "-blockdev")
    assert "node-name=root,read-only=on" in root
    assert root.endswith("file.filename=/images/rootfs.erofs")
    assert scratch.endswith("file.filename=/dev/fdset/1")
    assert options(words, "-add-fd") == ["fd=14,set=1"]
    assert [device for device in options(words, "-device") if "drive" in device] == [
        "virtio-blk-pci,drive=root",
        "virtio-blk-pci,drive=scratch,werror=report,rerror=report",
    ]


def test_the_shape_is_the_one_asked_for() -> None:
    words = argv()
    assert options(words, "-smp") == ["4"]
    assert options(words, "-m") == ["3072M"]
    [memory] = options(words, "-object")
    assert memory == "memory-backend-memfd,id=memory,size=3072M,share=on"
    assert options(words, "-append") == [
        "console=ttyS0 rootfstype=erofs hypeman.machine=m1 tsc_early_khz=2596124"
    ]


@pytest.mark.parametrize(
    ("platform", "accelerator", "board", "processor"),
    [
        (EMULATED, "tcg,thread=multi", "q35", "max,-erms,-fsrm"),
        (KVM, "kvm", "q35", "host"),
        (KVM_MICROVM, "kvm", "microvm", "host"),
    ],
)
def test_a_platform_is_a_board_an_accelerator_and_a_processor(
    platform: Platform, accelerator: str, board: str, processor: str
) -> None:
    words = argv(platform)
    assert options(words, "-accel") == [accelerator]
    assert options(words, "-machine")[0].split(",")[0] == board
    assert options(words, "-cpu") == [processor]


def test_a_comma_in_a_path_stays_in_the_path() -> None:
    words = argv(image=replace(IMAGE, rootfs=Path("/images/a,b=c/rootfs")))
    assert options(words, "-blockdev")[0].endswith("file.filename=/images/a,,b=c/rootfs")


def test_both_command_lines_name_the_machines_directory_so_that_a_sweep_knows_them() -> None:
    for words in (argv(), vsock_argv(DIRECTORY)):
        assert any(word.startswith(f"{DIRECTORY}/") for word in words)


def test_the_vsock_device_takes_no_more_ahead_than_a_guest_sends() -> None:
    assert options(vsock_argv(DIRECTORY), "--tx-buffer-size") == ["262144"]


def test_all_descriptors_are_passed_on() -> None:
    assert sorted(FDS.all()) == [11, 12, 13, 14]
