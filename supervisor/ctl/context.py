"""A build context: a directory, and which of its files a build gets.

The walk goes the way of BuildKit's own (`.dockerignore` included, see `dockerignore.py`) in the
order of the names' bytes, so that the same files always make the same archive. It is synchronous:
call it in a thread.
"""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from supervisor.ctl.dockerignore import IGNORE_FILE, Matcher, Verdict, parse_ignore_file
from supervisor.ctl.errors import UsageError

DEFAULT_DOCKERFILE = "Dockerfile"
_MAX_LINKS = 40
"""As many symbolic links as Linux follows in one path."""
_MAX_NAMED = 10
"""So many unreadable files are named in a message; the rest are counted."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One file, directory or symbolic link to send."""

    path: str
    """Relative to the context, with `/`; undecodable bytes as Python's surrogate escapes."""
    full_path: str
    status: os.stat_result


@dataclass(slots=True)
class Survey:
    """What a walk has found."""

    files: int = 0
    total_bytes: int = 0
    """The sum of the files' sizes."""
    special: list[str] = field(default_factory=list)
    """Sockets, pipes and devices, which a build context cannot hold."""
    unreadable: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Context:
    """A directory, the patterns that thin it out, and the files that are sent regardless."""

    root: Path
    matcher: Matcher | None
    """None: everything is sent."""
    always: frozenset[str]
    """Dockerfile and ignore files, and the links to them: BuildKit reads them in any case."""

    def walk(self, survey: Survey) -> Iterator[Entry]:
        """Yield what to send, directories before what they hold. `survey` collects the rest."""
        pending: list[tuple[Iterator[os.DirEntry[str]], str, Verdict | None, bool]] = []
        held_back: list[Entry] = []  # ignored directories above the place where the walk stands
        pending.append((self._list(self.root, survey), "", None, False))
        while pending:
            names, above, verdict, is_closed = pending[-1]
            entry = next(names, None)
            if entry is None:
                pending.pop()
                if held_back and held_back[-1].path == above:
                    held_back.pop()
                continue
            path = f"{above}/{entry.name}" if above else entry.name
            is_directory = entry.is_dir(follow_symlinks=False)
            own = self.matcher.judge(path, verdict) if self.matcher else None
            is_ignored = is_closed or (own is not None and own.is_ignored)
            is_wanted = not is_ignored or path in self.always
            found = self._look(entry, path, is_wanted=is_wanted, survey=survey)
            if found is None:
                continue
            if is_wanted:
                yield from held_back
                held_back.clear()
                yield found
            elif not is_directory or not self._may_hold_wanted(path, is_closed=is_closed):
                continue
            else:
                held_back.append(found)
            if is_directory:
                closed = is_ignored and self._is_closed(path, is_closed=is_closed)
                listing = self._list(entry.path, survey, is_wanted=is_wanted)
                pending.append((listing, path, own, closed))

    def _may_hold_wanted(self, directory: str, *, is_closed: bool) -> bool:
        """Say whether the walk must go into an ignored directory."""
        if any(path.startswith(f"{directory}/") for path in self.always):
            return True
        return not self._is_closed(directory, is_closed=is_closed)

    def _is_closed(self, directory: str, *, is_closed: bool) -> bool:
        assert self.matcher is not None
        return is_closed or self.matcher.may_skip_below(directory)

    def _look(
        self, entry: os.DirEntry[str], path: str, *, is_wanted: bool, survey: Survey
    ) -> Entry | None:
        """Return the entry if it can be sent; note in `survey` why not."""
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            return None  # gone since its directory was listed
        except OSError:
            if is_wanted:
                survey.unreadable.append(path)
            return None
        mode = status.st_mode
        if not is_wanted or stat.S_ISDIR(mode) or stat.S_ISLNK(mode):
            return Entry(path, entry.path, status)
        if not stat.S_ISREG(mode):
            survey.special.append(path)
            return None
        if not os.access(entry.path, os.R_OK):
            survey.unreadable.append(path)
        survey.files += 1
        survey.total_bytes += status.st_size
        return Entry(path, entry.path, status)

    def _list(
        self, directory: Path | str, survey: Survey, *, is_wanted: bool = True
    ) -> Iterator[os.DirEntry[str]]:
        try:
            with os.scandir(directory) as names:
                return iter(sorted(names, key=lambda entry: os.fsencode(entry.name)))
        except FileNotFoundError:
            return iter(())
        except PermissionError:
            if is_wanted:
                survey.unreadable.append(os.path.relpath(directory, self.root))
            return iter(())


def open_context(root: Path, *, dockerfile: str | None) -> Context:
    """Return the context that `root` is, for a build with the Dockerfile at `dockerfile` in it.

    `dockerfile` is None if its text is sent apart; then only `.dockerignore` counts. Raises
    UsageError if the directory or an ignore file cannot be used.
    """
    if not root.is_dir():
        problem = "is not a directory" if root.exists() else "does not exist"
        raise UsageError(f"{root} {problem}", hint="name the directory that holds the Dockerfile")
    root = root.resolve()
    always = set(_trail(root, IGNORE_FILE))
    ignore_file = _target(root, IGNORE_FILE)
    if dockerfile is not None:
        dockerfile = posixpath.normpath(dockerfile)
        names = [dockerfile, f"{dockerfile}{IGNORE_FILE}"]
        if posixpath.basename(dockerfile) == DEFAULT_DOCKERFILE:
            names.append(posixpath.join(posixpath.dirname(dockerfile), DEFAULT_DOCKERFILE.lower()))
        for name in names:
            always.update(_trail(root, name))
        ignore_file = _target(root, names[1]) or ignore_file
    matcher = _read_matcher(ignore_file) if ignore_file else None
    return Context(root, matcher, frozenset(always))


def find_dockerfile(root: Path) -> str | None:
    """Return the name of the Dockerfile that BuildKit takes by default, or None without one."""
    for name in (DEFAULT_DOCKERFILE, DEFAULT_DOCKERFILE.lower()):
        if _target(root.resolve(), name) is not None:
            return name
    return None


def survey_context(context: Context) -> Survey:
    """Walk the context once without reading any file.

    Raises UsageError naming the files that could not be read, before anything has been sent.
    """
    survey = Survey()
    for _ in context.walk(survey):
        pass
    if unreadable := survey.unreadable:
        named = ", ".join(map(printable, unreadable[:_MAX_NAMED]))
        more = f" and {len(unreadable) - _MAX_NAMED} more" if len(unreadable) > _MAX_NAMED else ""
        raise UsageError(
            f"cannot read {named}{more}",
            hint=f"make them readable, or list them in {IGNORE_FILE}",
        )
    return survey


def printable(text: str) -> str:
    """Return `text` for a message: control characters and undecodable bytes as escapes."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode()
        for char in text
    )


def _read_matcher(ignore_file: Path) -> Matcher | None:
    try:
        data = ignore_file.read_bytes()
    except OSError as exc:
        raise UsageError(f"cannot read {ignore_file}: {exc.strerror}") from exc
    matcher = Matcher(parse_ignore_file(data))
    return matcher if matcher.is_exact else None


def _target(root: Path, name: str) -> Path | None:
    """Return the regular file that `name` leads to inside `root`, or None."""
    trail = _trail(root, name)
    path = root / trail[-1]
    return path if path.is_file() and not path.is_symlink() else None


def _trail(root: Path, name: str) -> list[str]:
    """Return `name`, and every path that following its symbolic links below `root` comes by.

    A link never leads out of the context: to BuildKit, the context is the root directory.
    """
    trail = []
    rest = [part for part in name.split("/") if part not in ("", ".")]
    at: list[str] = []
    links = 0
    while rest:
        part = rest.pop(0)
        if part == "..":
            at = at[:-1]
            continue
        at.append(part)
        path = "/".join(at)
        try:
            target = str((root / path).readlink())
        except OSError:
            if not rest:
                trail.append(path)
            continue
        trail.append(path)
        links += 1
        if links > _MAX_LINKS:
            break
        at = [] if target.startswith("/") else at[:-1]
        rest = [part for part in target.split("/") if part not in ("", ".")] + rest
    return trail or [name]
