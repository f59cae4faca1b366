"""The kinds of machine that QEMU can be told to be, and how each is put on a command line."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Platform:
    """A machine type and where its processor comes from."""

    machine: str
    accelerator: str

    def __str__(self) -> str:
        return f"{self.machine}/{self.accelerator}"


EMULATED = Platform("q35", "tcg")
"""Works everywhere. `microvm` is no faster in emulation, and hangs in one boot of sixteen."""
KVM = Platform("q35", "kvm")
KVM_MICROVM = Platform("microvm", "kvm")
