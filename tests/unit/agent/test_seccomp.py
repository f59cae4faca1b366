"""The 32-bit way to a socket is closed, and the others are left alone."""

from __future__ import annotations

import os
import platform
import struct
import subprocess
import sys
from pathlib import Path

import pytest

SOCKETCALL, SOCKET, GETPID = 102, 359, 20
AF_VSOCK, AF_INET = 40, 2
LOAD = 0x400000

needs_root_on_x86 = pytest.mark.skipif(
    os.getuid() != 0 or platform.machine() != "x86_64",
    reason="the filter is for x86-64, and only root can install it",
)


def program(call: int, first: int, second: int) -> bytes:
    """Return a program that makes one 32-bit call and exits with the error's number, or 0."""
    code = b"\xb8" + struct.pack("<I", call)  # mov eax, call
    code += b"\xbb" + struct.pack("<I", first)  # mov ebx, first
    code += b"\xb9" + struct.pack("<I", second)  # mov ecx, second
    code += b"\x31\xd2\xcd\x80"  # xor edx, edx; int 0x80
    code += b"\x89\xc3\xf7\xdb"  # mov ebx, eax; neg ebx
    code += b"\x79\x02\x31\xdb"  # jns over; xor ebx, ebx
    code += b"\xb8\x01\x00\x00\x00\xcd\x80"  # mov eax, 1 (exit); int 0x80
    header = 64 + 56
    data = code.ljust(128, b"\x90") + struct.pack("<III", AF_VSOCK, 1, 0)
    size = header + len(data)
    elf = b"\x7fELF\x02\x01\x01" + bytes(9)
    elf += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, LOAD + header, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    elf += struct.pack("<IIQQQQQQ", 1, 5, 0, LOAD, LOAD, size, size, 0x1000)
    return elf + data


ARGUMENTS = LOAD + 64 + 56 + 128


def run(path: Path, code: bytes, *, filtered: bool) -> int:
    path.write_bytes(code)
    path.chmod(0o755)
    install = (
        "from agent.seccomp import refuse_socketcall; refuse_socketcall();" if filtered else ""
    )
    script = f"import os, sys; {install} os.execv(sys.argv[1], sys.argv[1:])"
    return subprocess.run([sys.executable, "-c", script, path], check=False).returncode


@needs_root_on_x86
def test_socketcall_is_refused(tmp_path: Path) -> None:
    code = program(SOCKETCALL, 1, ARGUMENTS)
    unfiltered = run(tmp_path / "program", code, filtered=False)
    if unfiltered == -11:
        pytest.skip("this kernel runs no 32-bit calls")
    assert unfiltered != 1  # EPERM is the filter's word, and nobody else's
    assert run(tmp_path / "program", code, filtered=True) == 1


@needs_root_on_x86
def test_other_32_bit_calls_are_left_alone(tmp_path: Path) -> None:
    for call, first, second in ((SOCKET, AF_INET, 1), (GETPID, 0, 0)):
        code = program(call, first, second)
        before = run(tmp_path / "program", code, filtered=False)
        assert run(tmp_path / "program", code, filtered=True) == before
