"""Closes a door to AF_VSOCK that BuildKit's own seccomp profile leaves open.

The profile refuses `socket(AF_VSOCK)` by looking at the argument. A program can also enter the
kernel as a 32-bit one (`int $0x80`) and ask for a socket by `socketcall`, whose arguments are in
memory, where a filter cannot look; the profile allows that call. The filter here refuses it to this
process and everything that it starts. 64-bit programs do not have the call; 32-bit ones use
`socket` itself since Linux 4.3, and fall back to nothing else.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

_PR_SET_SECCOMP = 22
_SECCOMP_MODE_FILTER = 2
_AUDIT_ARCH_I386 = 0x40000003
_I386_SOCKETCALL = 102

# struct seccomp_data { int nr; __u32 arch; … }
_OFFSET_NR = 0
_OFFSET_ARCH = 4

_LOAD_WORD = 0x20  # BPF_LD | BPF_W | BPF_ABS
_JUMP_IF_EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_RETURN = 0x06  # BPF_RET | BPF_K
_ALLOW = 0x7FFF0000
_ERRNO = 0x00050000

# struct sock_filter { __u16 code; __u8 jt; __u8 jf; __u32 k; }
_PROGRAM = (
    (_LOAD_WORD, 0, 0, _OFFSET_ARCH),
    (_JUMP_IF_EQUAL, 0, 3, _AUDIT_ARCH_I386),
    (_LOAD_WORD, 0, 0, _OFFSET_NR),
    (_JUMP_IF_EQUAL, 0, 1, _I386_SOCKETCALL),
    (_RETURN, 0, 0, _ERRNO | errno.EPERM),
    (_RETURN, 0, 0, _ALLOW),
)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def refuse_socketcall() -> None:
    """Install the filter for this thread and everything it starts. It cannot be taken back.

    Call it before there is a second thread: others would not have it. Needs CAP_SYS_ADMIN (and not
    "no new privileges", under which newuidmap could not work). Raises OSError.
    """
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in _PROGRAM)
    buffer = ctypes.create_string_buffer(code, len(code))
    program = _Program(len(_PROGRAM), ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"the seccomp filter was refused: {os.strerror(error)}")
