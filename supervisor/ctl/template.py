"""`--format`: a text with `{fields}` of the API's JSON in it.

    {id} {status} {policy.memory_mb} {tags.team}

A field that cannot be there is a mistake and is told before anything is asked for; one that is only
absent from an answer, such as the digest of a build that has none yet, is empty.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from supervisor.ctl.errors import UsageError

Fields = frozenset[str]
"""Paths of fields, `policy.memory_mb`; one that ends with `.*` may go on with anything."""

_FIELD = re.compile(r"\{([A-Za-z0-9_][A-Za-z0-9_.-]*)?\}")
_ESCAPED = {r"\t": "\t", r"\n": "\n"}


class Template:
    """A parsed text."""

    def __init__(self, text: str) -> None:
        for escape, char in _ESCAPED.items():
            text = text.replace(escape, char)
        self._text = text

    def fill(self, value: Mapping[str, Any]) -> str:
        """Return the text with the fields of `value` in it; `{}` is all of it."""

        def look_up(match: re.Match[str]) -> str:
            found = _look_up(value, match[1] or "")
            if found is None:
                return ""
            return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)

        return _FIELD.sub(look_up, self._text)

    @property
    def names(self) -> list[str]:
        """The fields that are named in it."""
        return [match[1] for match in _FIELD.finditer(self._text) if match[1]]


def parse_template(text: str | None, fields: Fields) -> Template | None:
    """Return the template that an option gives. Raises UsageError for a field that cannot be."""
    if text is None:
        return None
    template = Template(text)
    for name in template.names:
        if not _is_known(name, fields):
            known = sorted({field.partition(".")[0] for field in fields})
            raise UsageError(
                f"--format: there is no field {{{name}}}", hint=f"there are {', '.join(known)}"
            )
    return template


def _is_known(name: str, fields: Fields) -> bool:
    return any(
        name == field
        or field.startswith(f"{name}.")
        or (field.endswith(".*") and name.startswith(field[:-1]))
        for field in fields
    )


def _look_up(value: Any, name: str) -> Any:
    """Return what is at a path; a key may have dots in it itself."""
    if not name:
        return value
    if not isinstance(value, Mapping):
        return None
    if name in value:
        return value[name]
    at = name.find(".")
    while at >= 0:
        if name[:at] in value:
            return _look_up(value[name[:at]], name[at + 1 :])
        at = name.find(".", at + 1)
    return None
