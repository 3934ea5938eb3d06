"""Memory that the allocator keeps after a start, given back to the machine."""

from __future__ import annotations

import ctypes


def give_back() -> None:
    """Return what was freed and is still held; does nothing where the C library has no `malloc_trim` (glibc has)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
