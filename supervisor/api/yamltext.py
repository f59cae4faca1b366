"""Write JSON values as YAML in block style. Scalars stay JSON, which YAML 1.2 includes.

For texts of our own: control characters, which YAML refuses, are not looked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any


def to_yaml(value: Any) -> str:
    """Return `value` as a YAML document."""
    return "".join(line + "\n" for line in _lines(value))


def _lines(value: Any) -> Iterator[str]:
    match value:
        case dict() if value:
            for key, item in value.items():
                yield from _headed(f"{json.dumps(key, ensure_ascii=False)}:", item)
        case list() if value:
            for item in value:
                yield from _headed("-", item)
        case _:
            yield json.dumps(value, ensure_ascii=False)


def _headed(head: str, item: Any) -> Iterator[str]:
    if isinstance(item, dict | list) and item:
        yield head
        yield from ("  " + line for line in _lines(item))
    else:
        yield f"{head} {json.dumps(item, ensure_ascii=False)}"
