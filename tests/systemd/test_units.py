"""The units by themselves: systemd understands them, and they give away little."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UNITS = ROOT / "systemd"
MAX_EXPOSURE = 2.5
"""Of `systemd-analyze security`, from 0 (nothing) to 10 (everything)."""


@pytest.fixture
def units(tmp_path: Path) -> list[str]:
    """Copies of the units whose programs exist."""
    program = tmp_path / "hypeman-supervisor"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    copies = []
    for suffix in ("service", "socket", "slice"):
        text = (UNITS / f"hypeman.{suffix}").read_text()
        copy = tmp_path / f"hypeman.{suffix}"
        copy.write_text(text.replace("/usr/lib/hypeman/bin/hypeman-supervisor", str(program)))
        copies.append(str(copy))
    return copies


def analyze(*arguments: str) -> str:
    done = subprocess.run(
        ["systemd-analyze", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_systemd_finds_no_fault_with_the_units(units: list[str]) -> None:
    said = analyze("verify", "--man=no", "--recursive-errors=no", *units)
    assert said == ""


def test_the_service_is_exposed_less_than_most(units: list[str]) -> None:
    said = analyze("security", "--offline=true", "--no-pager", units[0])
    found = re.search(r"Overall exposure level for hypeman\.service: ([0-9.]+)", said)
    assert found, said
    assert float(found[1]) < MAX_EXPOSURE, said


def test_every_freedom_has_its_reason() -> None:
    """What is weaker than it could be stands below a comment that begins with `Exception:`."""
    text = (UNITS / "hypeman.service").read_text()
    for setting in (
        "SystemCallFilter=@system-service",
        "RestrictNamespaces=user",
        "MemoryDenyWriteExecute=no",
        "ProtectControlGroups=no",
        "ProcSubset=all",
        "RestrictAddressFamilies=",
        "DevicePolicy=closed",
    ):
        before, found, _ = text.partition(f"\n{setting}")
        assert found, setting
        comment = re.search(r"(?:^#.*\n?)+\Z", before, re.MULTILINE)
        assert comment, setting
        assert "# Exception: " in comment[0], setting


def make_users(root: Path) -> None:
    (root / "etc").mkdir()
    (root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")
    users = UNITS / "sysusers.d/hypeman.conf"
    subprocess.run(["systemd-sysusers", f"--root={root}", users], check=True)


def test_the_daemons_user_is_made_and_may_use_kvm(tmp_path: Path) -> None:
    make_users(tmp_path)
    assert "hypeman:" in (tmp_path / "etc/passwd").read_text()
    assert re.search("^kvm:.*:hypeman$", (tmp_path / "etc/group").read_text(), re.MULTILINE)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give directories away")
def test_the_directories_are_made_for_nobody_else(tmp_path: Path) -> None:
    make_users(tmp_path)
    directories = UNITS / "tmpfiles.d/hypeman.conf"
    subprocess.run(["systemd-tmpfiles", f"--root={tmp_path}", "--create", directories], check=True)
    for directory in ("var/lib/hypeman", "run/hypeman", "etc/hypeman"):
        assert (tmp_path / directory).stat().st_mode & 0o007 == 0, directory
