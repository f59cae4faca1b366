"""The linters, as tests: the code reads as the style asks, and imports only what it may."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = Path(sys.executable).parent
PACKAGES = ("supervisor", "agent", "images")
SHELL = b"#!/bin/sh"

ASYNC_EXCEPTIONS = {
    ("supervisor/runtime/supervise.py", "ASYNC128"): "`_FirstStart` hands the status on",
    ("supervisor/actors/root.py", "ASYNC128"): "the queue's actor is handed the status",
    ("supervisor/vm/qemu.py", "ASYNC128"): "the machine is handed the status",
    ("supervisor/vm/qemu_machine.py", "ASYNC128"): "the machine is handed the status",
    ("supervisor/api/app.py", "ASYNC124"): "what is no coroutine function, Quart runs in a thread",
    ("supervisor/api/problems.py", "ASYNC124"): "the same",
}
"""What the linter is wrong about: by file and rule, and why it does not hold there."""
ASYNC_DISABLED = "ASYNC900,ASYNC910,ASYNC911,ASYNC912,ASYNC913,ASYNC914"
"""Opinions on checkpoints in every path, and on generators, that this code does not share."""
WORKERS = os.cpu_count() or 1
WORDS = "crate,ist,vertexes,te,caf,staus,runn"
"""BuildKit's and the protocols' words, and the mistakes that tests make on purpose."""


def files(*roots: str, suffix: str = ".py") -> list[str]:
    """Return the sources below `roots`, relative to the repository."""
    found = [path for root in roots for path in (ROOT / root).rglob(f"*{suffix}")]
    return sorted(str(path.relative_to(ROOT)) for path in found)


def run(tool: str, *arguments: str) -> tuple[int, str]:
    """Run a tool of the virtual environment; return its status and all of its output."""
    done = subprocess.run(
        [TOOLS / tool, *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def check(tool: str, *arguments: str) -> None:
    """Run a tool that must find nothing; what it finds is the failure."""
    status, output = run(tool, *arguments)
    if status:
        pytest.fail(f"{tool} {' '.join(arguments[:4])}\n{output}", pytrace=False)


def startable(paths: Iterable[str]) -> list[str]:
    """Return the names of all functions that take a `task_status`."""
    names = set()
    for path in paths:
        for node in ast.walk(ast.parse((ROOT / path).read_text())):
            if isinstance(node, ast.AsyncFunctionDef):
                arguments = [*node.args.args, *node.args.kwonlyargs]
                if any(argument.arg == "task_status" for argument in arguments):
                    names.add(node.name)
    return sorted(names)


def shell_scripts() -> list[str]:
    """Return every file that says it is a shell script."""
    skipped = {ROOT / "build", ROOT / ".git"}
    found = []
    for path in ROOT.rglob("*"):
        if path.is_symlink() or not path.is_file() or skipped & set(path.parents):
            continue
        with path.open("rb") as file:
            if file.read(len(SHELL)) == SHELL:
                found.append(str(path.relative_to(ROOT)))
    return sorted(found)


def test_ruff_finds_nothing() -> None:
    check("ruff", "check", ".")


def test_everything_is_formatted() -> None:
    check("ruff", "format", "--check", ".")


def test_every_type_holds() -> None:
    check("mypy", "--strict", *PACKAGES, "benchmarks", "tests/kit.py", "tests/fakes")


def async_findings(paths: list[str], cache: pytest.Cache) -> list[str]:
    """Return what flake8-async says of each file. It is slow, so what it said is remembered."""
    names = ",".join(startable(paths))
    salt = f"{version('flake8-async')} {ASYNC_DISABLED} {names}".encode()
    keys = {path: sha256(salt + (ROOT / path).read_bytes()).hexdigest() for path in paths}
    known: dict[str, list[str]] = cache.get("lint/async", {})
    unknown = [path for path in paths if keys[path] not in known]
    options = ("--disable", ASYNC_DISABLED, "--startable-in-context-manager", names)
    parts = [unknown[at::WORKERS] for at in range(WORKERS) if unknown[at::WORKERS]]
    with ThreadPoolExecutor() as pool:
        outputs = list(pool.map(lambda part: run("flake8-async", *options, *part)[1], parts))
    said: dict[str, list[str]] = {path: [] for path in unknown}
    for line in "".join(outputs).splitlines():
        said[line.split(":")[0]].append(line)
    found = {keys[path]: said[path] if path in said else known[keys[path]] for path in paths}
    cache.set("lint/async", found)
    return [line for lines in found.values() for line in lines]


def test_what_can_be_cancelled_is_written_for_it(request: pytest.FixtureRequest) -> None:
    found: dict[tuple[str, str], list[str]] = {}
    assert request.config.cache is not None
    for line in async_findings(files(*PACKAGES), request.config.cache):
        path, _, _, text = line.split(":", 3)
        found.setdefault((path, text.split()[0]), []).append(line)
    unexpected = [line for key in found.keys() - ASYNC_EXCEPTIONS for line in found[key]]
    assert not unexpected, "\n".join(unexpected)
    assert ASYNC_EXCEPTIONS.keys() <= found.keys(), "an exception is not needed any more"


def test_words_are_spelt_right() -> None:
    check(
        "codespell",
        "--ignore-words-list", WORDS,
        "--skip", "tests/unit/agent/data",
        *PACKAGES, "benchmarks", "tests", "docs",
    )  # fmt: skip


def test_shell_scripts_are_sound() -> None:
    scripts = shell_scripts()
    assert scripts
    check("shellcheck", *scripts)


def test_every_layer_imports_only_what_lies_below_it() -> None:
    check("lint-imports", "--no-cache")
