"""The hand-made hello is what the real decoder reads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from agent import greeting, wire


@given(
    agent=st.text(max_size=300),
    timeline=st.dictionaries(
        st.text(max_size=30), st.floats(allow_nan=False, allow_infinity=False), max_size=30
    ),
)
def test_the_hello_is_read_as_it_was_meant(agent: str, timeline: dict[str, float]) -> None:
    fields = {**greeting.hello_fields(timeline), "agent": agent}
    [hello] = wire.FrameDecoder().feed(greeting.frame(fields))
    assert hello == wire.Hello(**fields)


def test_the_numbers_are_those_of_the_protocol() -> None:
    assert greeting.CONTROL_PORT == wire.CONTROL_PORT
    assert greeting.PROTOCOL_VERSION == wire.PROTOCOL_VERSION


def test_versions_are_read_from_the_image(tmp_path: Path) -> None:
    path = tmp_path / "versions"
    path.write_text("buildkit v0.32.2\ntoolchain runc 1.4.3\n\nlonely\n")
    assert greeting.read_versions(str(path)) == {"buildkit": "v0.32.2", "toolchain": "runc 1.4.3"}


def test_the_toolchain_is_all_that_a_build_runs_on_beside_buildkit() -> None:
    versions = {"buildkit": "v0.32.2", "rootlesskit": "v3.0.1", "runc": "v1.4.3"}
    assert greeting.toolchain(versions) == (
        f"agent {greeting.AGENT_VERSION}, kernel {os.uname().release},"
        " rootlesskit v3.0.1, runc v1.4.3"
    )


def test_an_image_that_names_no_versions_is_no_error(tmp_path: Path) -> None:
    assert greeting.read_versions(str(tmp_path / "none")) == {}


def test_the_start_of_this_process_lies_in_the_past() -> None:
    assert 0 < greeting.process_start() <= greeting.uptime()


def test_nothing_heavy_is_loaded_before_the_greeting() -> None:
    script = (
        "import sys; from agent import main;"
        "heavy = {'trio', 'cbor2', 'socket', 'typing', 'pathlib', 're', 'dataclasses', 'json'};"
        "print(*(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-ISc", f"import sys; sys.path.insert(0, {str(Path.cwd())!r}); {script}"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == []
