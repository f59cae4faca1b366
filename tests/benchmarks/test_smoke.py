"""Each benchmark that needs no machine runs to its end, on next to nothing: so it does not rot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import benchmarks.__main__
from benchmarks.__main__ import MACHINES, NAMES, main, run
from benchmarks.bare import archive
from benchmarks.results import Result, Row, Size, at_least, at_most, table, write_json


@pytest.mark.parametrize("name", [name for name in NAMES if name not in MACHINES])
def test_a_benchmark_runs_and_finds_something(name: str, tmp_path: Path) -> None:
    result = run(name, Size.TINY)
    assert result.rows
    assert all(row.value == row.value for row in result.rows), "a value is no number"
    write_json(tmp_path / "result.json", result)
    stored = json.loads((tmp_path / "result.json").read_text())
    assert [row["what"] for row in stored["rows"]] == [row.what for row in result.rows]


def test_a_value_is_held_against_its_peer() -> None:
    row = at_least("push", [10, 30, 20], "MiB/s", 2, [10, 11, 9])
    assert (row.value, row.peer, row.ratio, row.is_met) == (20, 10, 2, True)
    assert at_most("delay", [5], "ms", 4).is_met is False


def test_the_table_says_what_is_missed() -> None:
    said = table([Row("delay", 5, "ms", 2, "<= 1 x", False)])
    assert " ".join(said.splitlines()[1].split()) == "delay 5 ms 2 ms 2.50 <= 1 x MISSED"


def test_a_bare_machine_starts_like_the_image() -> None:
    packed = archive(b"source", {"argv": ["buildctl"]})
    assert b"exec switch_root -c /dev/console /root /bin/sh /run/bare/pid1" in packed
    assert b"builder-agent &" not in packed


def test_an_unknown_benchmark_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nothing"]) == 2
    assert "nothing" in capsys.readouterr().err


def test_a_benchmark_that_fails_does_not_end_the_others(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def run_one(name: str, size: Size) -> Result:
        if name == "followers":
            raise RuntimeError("the machine is too small")
        return Result(name, [Row(f"speed of {name}", 5, "s")], 1.0, 0.1, 0.2)

    monkeypatch.setattr(benchmarks.__main__, "run", run_one)
    monkeypatch.setattr(benchmarks.__main__, "RESULTS", tmp_path)
    assert main(["--quick", "registry", "followers", "actors"]) == 1
    said = capsys.readouterr()
    assert "the machine is too small" in said.err
    assert "failed: followers" in said.err
    assert "actors: speed of actors (load 0.10 to 0.20)" in said.out
    assert sorted(path.name for path in tmp_path.rglob("*.json")) == [
        "actors.json",
        "registry.json",
    ]
