"""Writes docs/configuration.md from the settings: `python -m supervisor.daemon.reference`.

A test compares the two, so the page cannot fall behind.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from enum import StrEnum
from typing import Any

from pydantic.fields import FieldInfo

from supervisor.config import GIB, MIB, Settings

_HEAD = """\
# Configuration

*Made from the program by `python -m supervisor.daemon.reference`; do not edit.*

Each setting is an environment variable, or a line of a TOML file under its name in lower case
(`hypeman-supervisor run --config FILE`, or `HYPEMAN_CONFIG`). The environment wins over the file,
and the file over the default. A name in the file that does not exist is an error. Lists are
comma-separated in the environment, and arrays in the file.

`JWT_SECRET_FILE` and `REGISTRY_SECRET_FILE` name files to read the secrets from, as systemd's
`LoadCredential=` provides them. Secrets are never printed.

```sh
hypeman-supervisor config check          # what a daemon would start with; exit 2 if it could not
hypeman-ctl config check                 # what the running daemon has
```

```toml
data_dir = "/srv/hypeman"
mirrors = ["docker.io", "ghcr.io"]
build_timeout = 900
```

| name | default | meaning |
|---|---|---|
"""
_LIMITS = {"ge": "at least {}", "gt": "more than {}", "le": "at most {}"}


def reference() -> str:
    """Return the page."""
    rows = [
        f"| `{name.upper()}` | {_default(field.default)} | {_meaning(field)} |\n"
        for name, field in Settings.model_fields.items()
    ]
    return _HEAD + "".join(rows)


def _default(value: Any) -> str:
    match value:
        case None:
            return "–"
        case StrEnum():
            return f"`{value.value}`"
        case tuple():
            return f"`{','.join(map(str, value))}`" if value else "–"
        case float():
            return f"`{value:g}`"
        case int() if value >= MIB and value % MIB == 0:
            return f"`{value}` ({_size(value)})"
        case _:
            return f"`{value}`"


def _size(value: int) -> str:
    return f"{value // GIB} GiB" if value % GIB == 0 else f"{value // MIB} MiB"


def _meaning(field: FieldInfo) -> str:
    text = (field.description or "").replace("|", "\\|").replace("<", "&lt;")
    limits = ", ".join(_limits(field))
    return f"{text} ({limits})" if limits else text


def _limits(field: FieldInfo) -> Iterator[str]:
    for item in field.metadata:
        for name, phrase in _LIMITS.items():
            if (value := getattr(item, name, None)) is not None:
                yield phrase.format(value)


if __name__ == "__main__":
    sys.stdout.write(reference())
