"""Load a filter into this process, for the tier that has no helper to do it."""

from __future__ import annotations

import ctypes
import os
from typing import Final

_PR_SET_SECCOMP: Final = 22
_PR_SET_NO_NEW_PRIVS: Final = 38
_SECCOMP_MODE_FILTER: Final = 2
_INSTRUCTION_BYTES: Final = 8


class _Program(ctypes.Structure):
    """`struct sock_fprog`."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def renounce_privileges() -> None:
    """Set no_new_privs for this thread and all it starts: no program gains rights by being executed. There is no way back.

    Raises:
        OSError: the kernel refused.
    """
    _prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1))


def install(program: bytes) -> None:
    """Filter the calls of this thread and of all it starts from now on. There is no way back.

    Raises:
        OSError: the kernel refused, for instance since no_new_privs is not set.
    """
    loaded = _Program(len(program) // _INSTRUCTION_BYTES, program)
    _prctl(_PR_SET_SECCOMP, ctypes.c_ulong(_SECCOMP_MODE_FILTER), ctypes.byref(loaded))


def _prctl(option: int, *arguments: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    padding = [ctypes.c_ulong(0)] * (4 - len(arguments))
    if libc.prctl(option, *arguments, *padding) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
