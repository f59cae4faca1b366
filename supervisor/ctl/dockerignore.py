"""Which files of a directory `.dockerignore` keeps out of a build, exactly as BuildKit decides it.

BuildKit in the guest applies the same file again, so leaving a file in costs bytes, and leaving out
one that BuildKit would keep breaks the build. Hence two rules:

* the semantics are those of BuildKit's walk, its surprises included: patterns are evaluated in
  order, a directory hands the patterns that matched it down to what lies below it, and `!` brings
  back what an earlier pattern took;
* a pattern that is malformed, or whose meaning depends on details of Go's regular expressions,
  switches the filter off (`Matcher.is_exact` is false): then everything is sent, and BuildKit
  decides, or says what is wrong with it.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass

IGNORE_FILE = ".dockerignore"
_SPACE = "".join(
    char for char in map(chr, range(0x3001)) if char.isspace() and not "\x1c" <= char <= "\x1f"
)
"""White space as Go has it; Python's own idea adds four control characters."""
_ESCAPED = frozenset(".+()$")
"""What BuildKit escapes for its regular expressions. It means to escape `{|}` too, and does not."""


def parse_ignore_file(data: bytes) -> list[str]:
    """Return the patterns in an ignore file, cleaned as BuildKit cleans them."""
    patterns = []
    for raw in data.removeprefix(b"\xef\xbb\xbf").split(b"\n"):
        line = raw.removesuffix(b"\r").decode("utf-8", "surrogateescape")
        if line.startswith("#"):
            continue
        pattern = line.strip(_SPACE)
        if not pattern:
            continue
        bang = "!" if pattern.startswith("!") else ""
        if bang:
            pattern = pattern[1:].strip(_SPACE)
        if pattern:
            pattern = _clean(pattern)
            if len(pattern) > 1:
                pattern = pattern.removeprefix("/")
        patterns.append(bang + pattern)
    return patterns


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the patterns say of one path; handed back for the paths directly below it."""

    is_ignored: bool
    matched: tuple[bool, ...]
    """For each pattern, whether it has matched this path or a directory above it."""


class Matcher:
    """A list of patterns, ready to be asked about the paths of a walk from the top down."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self._patterns = [
            _Pattern(cleaned) for pattern in patterns if (cleaned := _clean(pattern.strip(_SPACE)))
        ]
        self._exceptions = [pattern for pattern in self._patterns if pattern.is_exception]
        self._exceptions_are_literal = not any(
            set("*[]?^\\") & set(pattern.without_trailing_glob) for pattern in self._exceptions
        )

    @property
    def is_exact(self) -> bool:
        """Say whether every pattern is understood. If not, send everything."""
        return all(pattern.is_understood for pattern in self._patterns)

    def judge(self, path: str, parent: Verdict | None) -> Verdict:
        """Return the verdict on `path` (relative, with `/`), whose directory got `parent`.

        A pattern is only looked at when it could change the verdict so far. That it is then *not*
        handed down either is BuildKit's behaviour, and visible with patterns that overlap.
        """
        ignored = False
        matched = [False] * len(self._patterns)
        for index, pattern in enumerate(self._patterns):
            match = parent is not None and parent.matched[index]
            if not match:
                if pattern.is_exception != ignored:
                    continue
                match = pattern.matches(path)
            matched[index] = match
            if match:
                ignored = not pattern.is_exception
        return Verdict(ignored, tuple(matched))

    def may_skip_below(self, directory: str) -> bool:
        """Say whether nothing below an ignored `directory` can be brought back by an exception."""
        if not self._exceptions_are_literal:
            return False
        return not any(
            f"{pattern.without_trailing_glob}/".startswith(f"{directory}/")
            for pattern in self._exceptions
        )


class _Pattern:
    """One pattern: an exact path, a prefix, a suffix, or a regular expression."""

    def __init__(self, text: str) -> None:
        self.is_exception = text.startswith("!")
        self._text = text.removeprefix("!")
        self._regex: re.Pattern[str] | None = None
        self._kind = "exact"
        self.is_understood = True
        try:
            self._compile()
        except _NotUnderstoodError:
            self.is_understood = False

    @property
    def without_trailing_glob(self) -> str:
        """The part that a directory must begin with for the pattern to reach into it."""
        return self._text.removesuffix("/**").removesuffix("/*")

    def matches(self, path: str) -> bool:
        """Say whether the pattern describes exactly this path."""
        match self._kind:
            case "exact":
                return path == self._text
            case "prefix":
                return path.startswith(self._text[:-2])
            case "suffix":
                suffix = self._text[2:]
                return path.endswith(suffix) or (suffix[:1] == "/" and path == suffix[1:])
            case _:
                assert self._regex is not None
                return self._regex.match(path) is not None

    def _compile(self) -> None:
        """Choose the kind, and write the regular expression that BuildKit would."""
        if not self._text:
            raise _NotUnderstoodError  # a lone exclamation mark, which BuildKit refuses
        if any("\ud800" <= char < "\ue000" or char == "\ufeff" for char in self._text):
            raise _NotUnderstoodError  # not UTF-8, or a mark that Go's scanner may swallow
        go = ["^"]
        rest = self._text
        first = True
        while rest:
            char, rest = rest[0], rest[1:]
            if char == "*" and rest[:1] == "*":
                rest = rest[1:].removeprefix("/")
                if rest:
                    go.append("(.*/)?")
                    self._kind = "regex"
                elif self._kind == "exact":
                    self._kind = "prefix"
                else:
                    go.append(".*")
                    self._kind = "regex"
                if first:
                    self._kind = "suffix"
            elif char in "*?":
                go.append("[^/]*" if char == "*" else "[^/]")
                self._kind = "regex"
            elif char == "\\":
                if not rest:
                    raise _NotUnderstoodError
                go.append("\\" + rest[0])
                rest = rest[1:]
                self._kind = "regex"
            elif char in "[]":
                go.append(char)
                self._kind = "regex"
            else:
                go.append("\\" + char if char in _ESCAPED else char)
            first = False
        if self._kind == "regex":
            self._regex = re.compile(_python_regex("".join(go)) + r"\Z")


class _NotUnderstoodError(Exception):
    """Only BuildKit itself can say what this pattern means."""


def _python_regex(go: str) -> str:
    """Return the Python expression that means what `go` means to Go's regexp package.

    Covers what patterns are made of. Escaped letters and digits, classes by name, and characters
    that Go may confuse with undecodable bytes are left to BuildKit.
    """
    out = []
    at = 0
    while at < len(go):
        char = go[at]
        if char == "[":
            converted, at = _convert_class(go, at + 1)
            out.append(converted)
        elif char == "\\":
            out.append(re.escape(_escaped(go, at)))
            at += 2
        elif char in "^().*?":
            out.append(char)  # ours, or an anchor in the middle, which never matches for either
            at += 1
        else:
            if char == "|" or (char == "{" and go[at + 1 : at + 2].isdigit()):
                raise _NotUnderstoodError  # an alternative or a repetition
            out.append(re.escape(_plain(char)))
            at += 1
    return "".join(out)


def _convert_class(go: str, at: int) -> tuple[str, int]:
    """Convert a bracket expression that begins behind `[`; return it and where it ends."""
    out = ["["]
    if go[at : at + 1] == "^":
        out.append("^")
        at += 1
    first = True
    while first or go[at : at + 1] != "]":
        if go.startswith("[:", at):
            raise _NotUnderstoodError
        low, at = _class_char(go, at)
        high = low
        if go[at : at + 1] == "-":
            high, at = _class_char(go, at + 1)
            if high < low or high >= "\ud800":
                raise _NotUnderstoodError
        out.append(f"{re.escape(low)}-{re.escape(high)}")
        first = False
    return "".join([*out, "]"]), at + 1


def _class_char(go: str, at: int) -> tuple[str, int]:
    if at >= len(go) or go[at] in "-]":
        raise _NotUnderstoodError  # BuildKit refuses these two unless they are escaped
    if go[at] == "\\":
        return _escaped(go, at), at + 2
    return _plain(go[at]), at + 1


def _escaped(go: str, at: int) -> str:
    char = go[at + 1 : at + 2]
    if not char or char.isalnum() or not char.isascii():
        raise _NotUnderstoodError
    return char


def _plain(char: str) -> str:
    if char == "\ufffd":
        raise _NotUnderstoodError  # to Go, an undecodable byte is this character
    return char


def _clean(path: str) -> str:
    """Return the shortest form of a path as Go's filepath.Clean does."""
    cleaned = posixpath.normpath(path)
    return cleaned[1:] if cleaned.startswith("//") else cleaned
