# SPDX-License-Identifier: Apache-2.0
"""Settings of the C library's allocator, which decide what a training step on a CPU costs.

XLA takes the scratch of every step from malloc, in blocks of tens to hundreds of MB. glibc maps
blocks of that size anew for each step and gives them back after it, so every step touches all its
memory for the first time: page faults are up to half of a step. There are three ways by which it
gives them back, and each alone is enough: single maps (M_MMAP_MAX), the end of the heap
(M_TRIM_THRESHOLD), and the heaps of 64 MB of further threads, which hold no larger block and go
when they are free (M_ARENA_MAX: no such heaps).
"""

import ctypes
import sys
from typing import Any

# Options of mallopt, <malloc.h>, and what is set.
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4
M_ARENA_MAX = -8
SETTINGS = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_ARENA_MAX: 1}

_in_force = {"keeps_scratch": False}


def keep_scratch() -> bool:
    """Tells malloc to keep what it has in one heap; whether it did. Only on glibc.

    To be called before JAX is imported: threads that run by then have heaps of their own.
    """
    library = _glibc()
    if library is None:
        return False
    done = all(library.mallopt(option, value) for option, value in SETTINGS.items())
    _in_force["keeps_scratch"] = done
    return done


def settings_in_force() -> dict[str, bool]:
    """What env.json says of it: {"keeps_scratch": bool}."""
    return dict(_in_force)


def peak_rss_mb() -> float | None:
    """Most memory that this process has held so far, in MB of 10^6 bytes; None on Windows."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6


def _glibc() -> Any:
    """The C library of this process if it is glibc, else None."""
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") else None
