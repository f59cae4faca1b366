"""The command lines of a machine's two processes, as pure functions of what the machine shall be.

What is not named does not exist: no default devices, no configuration files, no display, no network
card. The guest reaches the host through the vsock device alone.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from supervisor.model.image import BuilderImage
from supervisor.vm.machine import MachineSpec
from supervisor.vm.platform import Platform

QEMU = "qemu-system-x86_64"
VSOCK_DEVICE = "vhost-device-vsock"
VSOCK_NAME = "v.sock"
DEVICE_NAME = "dev.sock"
PID_NAME = "vmm.pid"

VSOCK_BUFFER_BYTES = 256 << 10
"""How much one connection of a guest may have on its way that the host has not read.

Linux sends at most what its own end of a connection would take, which is this unless a program
asks for something else, and waits to be told that there is room again. The device tells so when
three quarters of its buffer have been used. With a larger one both would wait for good; and so they
do if a program in the guest asks for less than those three quarters, which is its own affair.
"""

GUEST_CID = 3
"""The lowest that a guest can have. Each machine has a vsock device of its own, with no other guest
on it, so the number is an address in nobody else's world."""

# Boards are told to leave out what no builder needs: each device costs the guest time at boot.
_BOARDS = {
    "q35": "q35,graphics=off,sata=off,smbus=off,smm=off,vmport=off,dump-guest-core=off",
    # PCI, because the image's initramfs has the modules for that transport and not for virtio-mmio.
    "microvm": "microvm,pcie=on,rtc=on,x-option-roms=off,dump-guest-core=off",
}
_FDSET = Path("/dev/fdset/1")
# A processor with "enhanced rep movsb" has its kernel and C library copy with that instruction,
# which the emulator carries out byte by byte. Without the promise they copy eight at a time.
_PROCESSORS = {"tcg": ("tcg,thread=multi", "max,-erms,-fsrm"), "kvm": ("kvm", "host")}


@dataclass(frozen=True, slots=True)
class Descriptors:
    """What QEMU is handed open, and so need not find by name."""

    console: int
    qmp: int
    vsock: int
    """Connected to the vsock device's socket."""
    scratch: int
    """The scratch disk, which has no name any more."""

    def all(self) -> tuple[int, ...]:
        """Return the numbers, for passing them on."""
        return (self.console, self.qmp, self.vsock, self.scratch)


def qemu_argv(
    spec: MachineSpec,
    image: BuilderImage,
    platform: Platform,
    directory: Path,
    fds: Descriptors,
    tsc_khz: int | None,
) -> list[str]:
    """Return QEMU's command line. `directory` is the machine's own, the only one it writes to."""
    accelerator, processor = _PROCESSORS[platform.accelerator]
    words = [image.cmdline, f"hypeman.machine={spec.id}"]
    if platform.accelerator == "tcg" and tsc_khz is not None:
        words.append(f"tsc_early_khz={tsc_khz}")
    # fmt: off
    return [
        QEMU,
        "-name", spec.id,
        "-nodefaults",
        "-no-user-config",
        "-display", "none",
        "-nic", "none",
        # A panic restarts the guest at once (its command line says so), and a restart ends the VMM.
        "-no-reboot",
        "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        "-pidfile", os.fspath(directory / PID_NAME),
        "-accel", accelerator,
        "-machine", f"{_BOARDS[platform.machine]},memory-backend=memory",
        "-cpu", processor,
        "-smp", str(spec.cpus),
        "-m", f"{spec.memory_mb}M",
        # Shared, because the vsock device is another process that reads the rings in it.
        "-object", f"memory-backend-memfd,id=memory,size={spec.memory_mb}M,share=on",
        "-kernel", os.fspath(image.kernel),
        "-initrd", os.fspath(image.initramfs),
        "-append", " ".join(words),
        "-blockdev", f"driver=raw,node-name=root,read-only=on,{_file(image.rootfs)}",
        "-device", "virtio-blk-pci,drive=root",
        "-add-fd", f"fd={fds.scratch},set=1",
        # Nothing on the scratch disk outlives the machine, so no flush of the guest's is passed on.
        # A full disk of the host is an I/O error in the guest, and not a machine that stands still.
        "-blockdev", f"driver=raw,node-name=scratch,cache.no-flush=on,{_file(_FDSET)}",
        "-device", "virtio-blk-pci,drive=scratch,werror=report,rerror=report",
        "-chardev", f"socket,id=vsock,fd={fds.vsock}",
        "-device", "vhost-user-vsock-pci,chardev=vsock",
        "-chardev", f"socket,id=console,fd={fds.console}",
        "-serial", "chardev:console",
        "-chardev", f"socket,id=qmp,fd={fds.qmp}",
        "-mon", "chardev=qmp,mode=control",
    ]
    # fmt: on


def vsock_argv(directory: Path) -> list[str]:
    """Return the vsock device's command line.

    It listens on `DEVICE_NAME` for the VMM and on `VSOCK_NAME` for the host's connections, and
    connects the guest's to `VSOCK_NAME_<port>`.
    """
    # fmt: off
    return [
        VSOCK_DEVICE,
        "--guest-cid", str(GUEST_CID),
        "--socket", os.fspath(directory / DEVICE_NAME),
        "--uds-path", os.fspath(directory / VSOCK_NAME),
        "--tx-buffer-size", str(VSOCK_BUFFER_BYTES),
    ]
    # fmt: on


def _file(path: Path) -> str:
    """Return a file as part of a block device; in QEMU's lists two commas stand for one."""
    return f"file.driver=file,file.filename={os.fspath(path).replace(',', ',,')}"
