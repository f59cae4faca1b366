"""Removing for good: first say what would go, then ask, then report what has gone."""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import trio

from supervisor.ctl.commands.listing import How, write_record
from supervisor.ctl.errors import EXIT_INTERRUPTED, EXIT_OK, UsageError
from supervisor.ctl.model import Json
from supervisor.ctl.session import Session
from supervisor.ctl.terminal import format_bytes

Prune = Callable[..., Awaitable[Json]]
_KINDS = (
    ("repositories", "repository", "repositories"),
    ("manifests", "untagged manifest", "untagged manifests"),
    ("blobs", "blob", "blobs"),
    ("sources", "source archive", "source archives"),
)


async def prune_with_consent(
    session: Session,
    how: How,
    prune: Prune,
    wish: Mapping[str, Any],
    *,
    dry_run: bool,
    force: bool,
) -> int:
    """Prune what the user agrees to. Raises UsageError if nobody is there to be asked."""
    out = session.out
    if not (dry_run or force):
        if not (out.has_terminal and sys.stdin.isatty()):
            raise UsageError(
                "nobody is there to be asked", hint="add --force, or --dry-run to see what would go"
            )
        planned = await prune(**wish, dry_run=True)
        if not _total(planned):
            out.note("there is nothing to remove")
            return EXIT_OK
        size = format_bytes(planned.get("freed_bytes") or 0)
        out.messages.write(f"{_describe(planned)} would go, {size}. Remove them for good? [y/N] ")
        out.messages.flush()
        if not await _agrees():
            out.note("nothing was removed")
            return EXIT_INTERRUPTED
    pruned = await prune(**wish, dry_run=dry_run)
    verb = "would free" if dry_run else "freed"

    def write() -> None:
        out.line(f"{verb} {format_bytes(pruned.get('freed_bytes') or 0)}: {_describe(pruned)}")

    write_record(out, how, pruned, write)
    return EXIT_OK


def _describe(pruned: Json) -> str:
    parts = []
    for name, one, many in _KINDS:
        if count := pruned.get(name) or 0:
            parts.append(f"{count} {one if count == 1 else many}")
    return ", ".join(parts) or "nothing"


def _total(pruned: Json) -> int:
    return sum(pruned.get(name) or 0 for name, _, _ in _KINDS)


async def _agrees() -> bool:
    await trio.lowlevel.wait_readable(sys.stdin.fileno())
    answer = os.read(sys.stdin.fileno(), 1024).decode(errors="replace")
    return answer.strip().lower() in ("y", "yes")
