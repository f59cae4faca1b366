"""Faults in a daemon of a test: at a named point of its code, something happens.

A point is a function of the product, before or after it has run: `unit update_build, after` is the
moment when a status is committed and nobody has been told. The product knows nothing of this; the
functions are wrapped in the process of the test.
"""

from __future__ import annotations

import errno
import functools
import inspect
import json
import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supervisor.actors import ledger
from supervisor.api import uploads as api_uploads
from supervisor.errors import HostError, ResourceExhausted
from supervisor.guest.link import GuestLink
from supervisor.registry import blobs, uploads
from supervisor.store import eventlog
from supervisor.store.database import Database

KILL = "kill"


@dataclass(frozen=True)
class Fault:
    """`action` happens at the `at`-th passage of `point`, and `times` - 1 passages after it.

    An action is `kill`, or the name of an errno that the function then fails with.
    """

    point: str
    at: int
    action: str = KILL
    times: int = 1


class Journal:
    """What happened, one JSON object a line; what is written is there even if the writer dies."""

    def __init__(self, path: Path, life: int) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._life = life

    def note(self, event: str, **facts: object) -> None:
        line = json.dumps({"event": event, "life": self._life, **facts})
        os.write(self._fd, line.encode() + b"\n")


class Points:
    """The points of this process: counts who passes, and does what was ordered."""

    def __init__(self, faults: list[Fault], journal: Journal) -> None:
        self.passed: Counter[str] = Counter()
        self._faults = faults
        self._journal = journal

    def pass_by(self, point: str) -> None:
        """Pass a point. Does not return if the process is to die here; raises OSError."""
        self.passed[point] += 1
        for fault in self._faults:
            if fault.point == point and 0 <= self.passed[point] - fault.at < fault.times:
                self._journal.note("fault", point=point, action=fault.action)
                if fault.action == KILL:
                    os.kill(os.getpid(), signal.SIGKILL)
                number = getattr(errno, fault.action)
                raise OSError(number, os.strerror(number))

    def install(self) -> None:
        """Wrap the functions of the product."""
        for owner, name in (
            (os, "fsync"),
            (os, "ftruncate"),
            (os, "pwritev"),
            (shutil, "rmtree"),
            (Path, "rename"),
            (Path, "replace"),
            (Path, "unlink"),
            (GuestLink, "send"),
            (GuestLink, "receive"),
            (api_uploads.Upload, "_write_sync"),
            (api_uploads.Upload, "_finish_sync"),
            (blobs.BlobStore, "_adopt_sync"),
            (blobs.BlobStore, "_open_sync"),
            (blobs.BlobStore, "_put_sync"),
            (blobs.BlobStore, "prepare_sync"),
            (ledger.Ledger, "_write_metadata_sync"),
            (eventlog.BuildLog, "_append_sync"),
            (eventlog.BuildLog, "_read_sync"),
            (eventlog.BuildLog, "_sync_sync"),
            (eventlog.BuildLog, "open_sync"),
            (uploads, "_open_for_writing_sync"),
        ):
            self._wrap(owner, name)
        self._wrap_units()
        self._tear_writes()

    def _wrap(self, owner: Any, name: str) -> None:
        original = getattr(owner, name)
        label = f"{getattr(owner, '__name__', owner)}.{name}".removeprefix("supervisor.")

        if inspect.iscoroutinefunction(original):

            @functools.wraps(original)
            async def around(*args: Any, **kwargs: Any) -> Any:
                self.pass_by(f"{label}, before")
                result = await original(*args, **kwargs)
                self.pass_by(f"{label}, after")
                return result

        else:

            @functools.wraps(original)
            def around(*args: Any, **kwargs: Any) -> Any:
                self.pass_by(f"{label}, before")
                result = original(*args, **kwargs)
                self.pass_by(f"{label}, after")
                return result

        setattr(owner, name, around)

    def _wrap_units(self) -> None:
        """A transaction by the name of its unit: before it, and when it is committed."""
        original = Database.run_sync

        def around(database: Database, unit: Any, *args: Any, **kwargs: Any) -> Any:
            label = _name_of(unit)
            self._as_the_database(f"unit {label}, before")
            result = original(database, unit, *args, **kwargs)
            self.pass_by(f"unit {label}, after")
            return result

        Database.run_sync = around  # type: ignore[method-assign]

    def _as_the_database(self, point: str) -> None:
        try:
            self.pass_by(point)
        except OSError as exc:
            kind = ResourceExhausted if exc.errno == errno.ENOSPC else HostError
            raise kind(f"the database failed: {exc.strerror}") from exc

    def install_calls(self, data_dir: Path) -> None:
        """Wrap the system calls that write below `data_dir`: `os.fsync of metadata.json`.

        The functions above translate what a call of theirs says; so a host that refuses, refuses
        here. A name is passed once more before each call than it succeeds.
        """
        for name in ("fsync", "ftruncate", "pwritev", "write", "open"):
            self._wrap_call(name, data_dir)
        for name in ("mkdir", "rename", "replace", "unlink"):
            self._wrap_path(name, data_dir)

    def _wrap_call(self, name: str, data_dir: Path) -> None:
        original = getattr(os, name)

        def around(target: Any, *args: Any, **kwargs: Any) -> Any:
            if what := _kind(target, data_dir):
                self.pass_by(f"call {name} of {what}")
            return original(target, *args, **kwargs)

        setattr(os, name, around)

    def _wrap_path(self, name: str, data_dir: Path) -> None:
        original = getattr(Path, name)

        def around(path: Path, *args: Any, **kwargs: Any) -> Any:
            if what := _kind(path, data_dir):
                self.pass_by(f"call {name} of {what}")
            return original(path, *args, **kwargs)

        setattr(Path, name, around)

    def _tear_writes(self) -> None:
        """A write to an event log that gets half-way."""
        original = eventlog._write_all_sync

        def around(fd: int, data: bytes) -> None:
            half = len(data) // 2
            original(fd, data[:half])
            self.pass_by("store.eventlog, half written")
            original(fd, data[half:])

        eventlog._write_all_sync = around


def _kind(target: object, data_dir: Path) -> str:
    """Return what a path or a descriptor is in the data directory; nothing if it is elsewhere."""
    try:
        path = Path(f"/proc/self/fd/{target}").readlink() if type(target) is int else target
    except OSError:
        return ""
    if not isinstance(path, str | Path) or not Path(path).is_relative_to(data_dir):
        return ""
    match Path(path).relative_to(data_dir).parts:
        case ("builds", _, *rest):
            return "/".join(rest) or "a build's directory"
        case ("registry", "uploads", _):
            return "an upload"
        case ("registry", "blobs", _, _):
            return "a blob"
        case ("registry", *rest):
            return "/".join(["registry", *rest])
        case ("hypeman.db" | "lock" | "images" | "builds", *_):
            return ""
        case rest:
            return "/".join(rest)


def _name_of(unit: Callable[..., object]) -> str:
    """Return the name of a unit, also of one that was bound to its arguments."""
    while isinstance(unit, functools.partial):
        unit = unit.func
    for cell in getattr(unit, "__closure__", None) or ():
        inner = cell.cell_contents
        if inspect.isfunction(inner) and inner.__module__.startswith("supervisor.store"):
            return inner.__name__
    return unit.__name__
