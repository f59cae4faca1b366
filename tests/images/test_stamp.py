"""A step is run when its inputs change, and only then."""

from __future__ import annotations

from pathlib import Path

import pytest

from images import files, stamp


@pytest.fixture(autouse=True)
def _in_a_directory_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stamp, "STAMPS", tmp_path / "stamps")
    monkeypatch.setattr(stamp, "REPO", tmp_path)


def test_a_step_runs_again_only_for_other_inputs_or_lost_outputs(tmp_path: Path) -> None:
    source, output, runs = tmp_path / "in", tmp_path / "out", []

    def make() -> None:
        runs.append(source.read_text())
        output.write_text("made")

    def ensure() -> str:
        return stamp.ensure("step", [source, "setting"], [output], make)

    source.write_text("1")
    first = ensure()
    assert ensure() == first
    assert runs == ["1"]
    source.write_text("2")
    assert ensure() != first
    output.unlink()
    ensure()
    assert runs == ["1", "2", "2"]


def test_a_step_that_failed_is_not_taken_for_done(tmp_path: Path) -> None:
    def fail() -> None:
        raise RuntimeError

    output = tmp_path / "out"
    output.write_text("half")
    for _ in range(2):
        with pytest.raises(RuntimeError):
            stamp.ensure("step", [], [output], fail)


def test_the_sparse_digest_sees_data_and_not_holes(tmp_path: Path) -> None:
    sparse, full, other = tmp_path / "sparse", tmp_path / "full", tmp_path / "other"
    with sparse.open("wb") as stream:
        stream.seek(1 << 20)
        stream.write(b"data")
        stream.truncate(2 << 20)
    full.write_bytes(bytes(1 << 20) + b"data" + bytes((1 << 20) - 4))
    other.write_bytes(bytes(1 << 20) + b"date" + bytes((1 << 20) - 4))
    assert files.sparse_digest(sparse) == files.sparse_digest(full)
    assert files.sparse_digest(sparse) != files.sparse_digest(other)
