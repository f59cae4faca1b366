"""Choosing the kind of machine by booting one.

`/dev/kvm` being there proves nothing: there are hosts on which a guest never gets past its first
instructions. So KVM is used only if a machine with it has come up within a few seconds. The answer
is remembered for as long as nothing that it depends on changes: this boot of the host, the VMM, the
kernel.
"""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from supervisor.config import Accelerator
from supervisor.errors import ConfigError, VmBootFailed
from supervisor.runtime.files import write_atomically_sync
from supervisor.runtime.logs import log
from supervisor.vm.platform import EMULATED, KVM, KVM_MICROVM, Platform

KVM_DEVICE = Path("/dev/kvm")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
MAX_CACHE_BYTES = 1 << 16

Boots = Callable[[Platform], Awaitable[bool]]
"""Boots a machine of that kind; says whether it came up in time. Raises VmBootFailed if the VMM
cannot even be started. Leaves nothing behind."""


@dataclass(frozen=True, slots=True)
class ProbeKey:
    """What a result depends on."""

    boot_id: str
    vmm: str
    kernel_sha256: str


async def choose_platform(
    wanted: Accelerator, boots: Boots, *, cache: Path, key: ProbeKey, device: Path = KVM_DEVICE
) -> Platform:
    """Return the fastest kind of machine that works here and that the operator wants.

    Raises ConfigError if KVM is demanded and does not work.
    """
    if wanted is Accelerator.TCG:
        return EMULATED
    obstacle = why_no_kvm(device)
    if obstacle is None:
        results = _Results(cache, key)
        if await results.get(KVM, boots):
            return KVM_MICROVM if await results.get(KVM_MICROVM, boots) else KVM
        obstacle = "a machine with it did not come up"
    if wanted is Accelerator.KVM:
        raise ConfigError(f"ACCELERATOR=kvm, but KVM cannot be used here: {obstacle}")
    log.bind(why=obstacle).warning("kvm.unusable")
    return EMULATED


def why_no_kvm(device: Path = KVM_DEVICE) -> str | None:
    """Return why KVM cannot even be tried, as a phrase, or None if it can."""
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return f"{device} does not exist"
    except PermissionError:
        return (
            f"{device} may not be opened by uid {os.getuid()}; add its group to the daemon's user"
        )
    except OSError as exc:
        return f"{device} cannot be opened: {exc.strerror}"
    return None


def read_boot_id_sync(path: Path = BOOT_ID) -> str:
    """Return the id of this boot of the host; empty if unknown, and then nothing is remembered."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


class _Results:
    """What was found out before, in a small file. Losing it costs a few seconds, no more."""

    def __init__(self, path: Path, key: ProbeKey) -> None:
        self._path = path
        self._key = asdict(key)
        self._known = self._load()

    async def get(self, platform: Platform, boots: Boots) -> bool:
        name = str(platform)
        if name not in self._known:
            try:
                self._known[name] = await boots(platform)
            except VmBootFailed as exc:
                # Quickly found out, and it may have been a full disk: not remembered.
                facts = {"platform": name, "why": exc.message, "evidence": exc.evidence[-300:]}
                log.bind(**facts).warning("platform.refused")
                return False
            log.bind(platform=name, works=self._known[name]).info("platform.probed")
            self._save()
        return self._known[name]

    def _load(self) -> dict[str, bool]:
        try:
            with self._path.open("rb") as file:
                content = json.loads(file.read(MAX_CACHE_BYTES))
            if content["key"] != self._key or not self._key["boot_id"]:
                return {}
            return {str(k): v for k, v in content["works"].items() if isinstance(v, bool)}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return {}

    def _save(self) -> None:
        content = {"key": self._key, "works": self._known}
        try:
            write_atomically_sync(
                self._path, json.dumps(content, indent=2).encode() + b"\n", is_sole_writer=True
            )
        except OSError as exc:
            log.bind(path=self._path, why=exc.strerror).warning("probe.not_saved")
