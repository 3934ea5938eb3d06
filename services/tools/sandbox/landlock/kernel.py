"""Landlock as the kernel offers it: what a thread may do with which files, for good.

The words are those of linux/landlock.h. Every right that this release knows is taken away and given back by rules only.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntFlag
from typing import Final

from kala.errors import FailedPreconditionError

# From here on signals and abstract sockets can be kept inside, without which this tier promises nothing.
REQUIRED_ABI: Final = 6

# The same on every architecture.
_CREATE_RULESET: Final = 444
_ADD_RULE: Final = 445
_RESTRICT_SELF: Final = 446
_ASK_VERSION: Final = 1
_PATH_BENEATH: Final = 1


class Access(IntFlag):
    """Rights on files, LANDLOCK_ACCESS_FS_*."""

    EXECUTE = 1 << 0
    WRITE_FILE = 1 << 1
    READ_FILE = 1 << 2
    READ_DIR = 1 << 3
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_CHAR = 1 << 6
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    MAKE_SOCK = 1 << 9
    MAKE_FIFO = 1 << 10
    MAKE_BLOCK = 1 << 11
    MAKE_SYM = 1 << 12
    REFER = 1 << 13
    TRUNCATE = 1 << 14
    IOCTL_DEV = 1 << 15


EVERYTHING: Final = Access(2**16 - 1)
# TCP, to bind and to connect; no rule gives it back.
_NETWORK: Final = 0b11
# Abstract unix sockets and signals stay inside.
_SCOPES: Final = 0b11

# What a rule on a single file may speak of.
_OF_FILES: Final = Access.EXECUTE | Access.WRITE_FILE | Access.READ_FILE | Access.TRUNCATE | Access.IOCTL_DEV
READ: Final = Access.READ_FILE | Access.READ_DIR | Access.EXECUTE
# Neither devices nor sockets are made, and no device is driven.
WRITE: Final = EVERYTHING & ~(Access.MAKE_CHAR | Access.MAKE_BLOCK | Access.MAKE_SOCK | Access.IOCTL_DEV)
USE_DEVICE: Final = Access.READ_FILE | Access.WRITE_FILE


@dataclass(frozen=True, slots=True)
class Rule:
    """What may be done at a path and below it."""

    path: str
    access: Access


class LandlockUnavailableError(FailedPreconditionError):
    """The kernel does not have Landlock, or has too little of it."""

    default_reason = "LANDLOCK_UNAVAILABLE"


def abi() -> int:
    """Ask the running kernel for its version of Landlock; 0 when it has none or does not use it."""
    return max(_syscall(_CREATE_RULESET, None, 0, _ASK_VERSION), 0)


def require_abi() -> int:
    """Give the kernel's version of Landlock.

    Raises:
        LandlockUnavailableError: it is older than this tier needs; the message has the cure.
    """
    version = abi()
    if version == 0:
        raise LandlockUnavailableError(
            "the kernel does not offer Landlock: boot Linux 6.12 or newer with landlock among its lsm= modules, "
            "and let the container's seccomp profile allow the landlock_* calls"
        )
    if version < REQUIRED_ABI:
        raise LandlockUnavailableError(
            f"the kernel's Landlock has ABI {version}, {REQUIRED_ABI} is needed to keep signals and abstract "
            "sockets inside: boot Linux 6.12 or newer"
        )
    return version


def restrict(rules: Iterable[Rule]) -> None:
    """Take every right from this thread and all it starts, but those of the rules. There is no way back.

    A path that does not exist is a mistake of the caller's, not skipped.

    Raises:
        LandlockUnavailableError: the kernel has too little of it.
        OSError: a path cannot be opened, or the kernel refused; nothing may be run then.
    """
    require_abi()
    ruleset = _checked(_syscall(_CREATE_RULESET, struct.pack("=QQQ", EVERYTHING, _NETWORK, _SCOPES), 24, 0))
    try:
        for rule in rules:
            _add(ruleset, rule)
        _checked(_syscall(_RESTRICT_SELF, ruleset, 0))
    finally:
        os.close(ruleset)


def _add(ruleset: int, rule: Rule) -> None:
    place = os.open(rule.path, os.O_PATH | os.O_CLOEXEC)
    try:
        access = rule.access
        if not stat.S_ISDIR(os.fstat(place).st_mode):
            access &= _OF_FILES
        _checked(_syscall(_ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("=Qi", access, place), 0))
    finally:
        os.close(place)


def _syscall(number: int, *arguments: int | bytes | None) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    given = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    return int(libc.syscall(ctypes.c_long(number), *given))


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
