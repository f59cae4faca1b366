"""Named daemons: a small file below the user's configuration directory, for nobody else to read.

{"current": "prod", "contexts": {"prod": {"host": "https://builds.example.org", "token": "…"}}}
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from supervisor.ctl.errors import UsageError
from supervisor.runtime.files import write_atomically_sync

LOCAL = "local"
"""The context that needs no file: the daemon of this host."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True, slots=True)
class Target:
    """Where a context leads to."""

    host: str
    """A URL, or `unix:///path`."""
    token: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Contexts:
    """The file's content."""

    current: str | None = None
    targets: Mapping[str, Target] = field(default_factory=dict)

    def get(self, name: str) -> Target | None:
        """Return a context, None for the local daemon. Raises UsageError if there is none."""
        if name == LOCAL:
            return None
        if name not in self.targets:
            raise UsageError(
                f"there is no context {name}",
                hint="hypeman-ctl context list shows those that there are",
            )
        return self.targets[name]


def find_file(environ: Mapping[str, str]) -> Path:
    """Return where the file is, or would be."""
    configured = environ.get("XDG_CONFIG_HOME")
    home = Path(environ.get("HOME") or "~").expanduser()
    base = Path(configured) if configured and configured.startswith("/") else home / ".config"
    return base / "hypeman" / "contexts.json"


def read_contexts(path: Path) -> Contexts:
    """Return what the file says; no file is no contexts. Raises UsageError if it cannot be used."""
    try:
        value = json.loads(path.read_bytes())
        targets = {
            str(name): Target(str(each["host"]), str(each.get("token") or ""))
            for name, each in value["contexts"].items()
        }
        current = value.get("current")
    except FileNotFoundError:
        return Contexts()
    except OSError as exc:
        raise UsageError(f"cannot read {path}: {exc.strerror}") from exc
    except (ValueError, LookupError, TypeError, AttributeError) as exc:
        raise UsageError(
            f"{path} is not a file of contexts", hint="mend it, or remove it and begin anew"
        ) from exc
    return Contexts(current if current in targets else None, targets)


def write_contexts(path: Path, contexts: Contexts) -> None:
    """Replace the file, readable by its owner only. Raises UsageError if that cannot be."""
    targets = {
        name: {"host": target.host, **({"token": target.token} if target.token else {})}
        for name, target in sorted(contexts.targets.items())
    }
    content = {"current": contexts.current, "contexts": targets}
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically_sync(path, json.dumps(content, indent=2).encode() + b"\n", mode=0o600)
    except OSError as exc:
        raise UsageError(f"cannot write {path}: {exc.strerror}") from exc


def check_name(name: str) -> str:
    """Return `name` if a context may be called that. Raises UsageError."""
    if name == LOCAL:
        raise UsageError(f"{LOCAL} is the daemon of this host, always; choose another name")
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is no name for a context: letters, digits, dots, dashes and underscores"
        )
    return name


def choose_context(name: str | None, environ: Mapping[str, str]) -> Target | None:
    """Return the context that an option, the environment or the file chooses, if any does."""
    name = name or environ.get("HYPEMAN_CONTEXT")
    path = find_file(environ)
    if name is None and not os.access(path, os.F_OK):
        return None
    contexts = read_contexts(path)
    name = name or contexts.current
    return None if name is None else contexts.get(name)
