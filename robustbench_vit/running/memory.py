"""Tells the C library's allocator to keep what is freed, in processes of our own.

Every step of an attack allocates and frees the same activations. glibc by default gives large blocks back to the system
at once and gets them again with a page fault per 4 KiB, which shows in a worker's system time.
"""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h
_KEEP = 2**30


def keep_freed_memory() -> bool:
    """Sets the allocator of this process; returns whether it could (glibc only, elsewhere nothing happens)."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((_M_MMAP_THRESHOLD, _KEEP), (_M_TRIM_THRESHOLD, _KEEP), (_M_TOP_PAD, _KEEP // 16))
    return all(mallopt(option, value) == 1 for option, value in settings)
