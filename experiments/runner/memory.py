# SPDX-License-Identifier: Apache-2.0
"""Settings of the C library's allocator, which decide what a training step on a CPU costs.

XLA takes the scratch of every step from malloc, in blocks of tens to hundreds of MB. glibc maps
blocks of that size anew for each step and gives them back after it, so every step touches all its
memory for the first time: page faults are up to half of a step. There are three ways by which it
gives them back, and each alone is enough: single maps (M_MMAP_MAX), the end of the heap
(M_TRIM_THRESHOLD), and the heaps of 64 MB of further threads, which hold no larger block and go
when they are free (M_ARENA_MAX: no such heaps).

Scratch that is kept lies at the end of the heap. The next step, dispatched while the last one runs,
takes its own behind it; what was freed then is a few bytes too small for an aligned block of the
same size, until two such blocks lie side by side. So up to three are held, where glibc holds two
and has touched one.
"""

import ctypes
import sys
from typing import Any

# Options of mallopt, <malloc.h>.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
M_MMAP_MAX = -4
M_ARENA_MAX = -8
MB = 2**20
KEEP = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1}
# As glibc sets itself with use: blocks up to the largest threshold that it allows are in the heap.
RELEASE = {M_MMAP_MAX: 2**16, M_MMAP_THRESHOLD: 32 * MB, M_TRIM_THRESHOLD: 64 * MB}

_in_force = {"keeps_scratch": False}


def use_one_heap() -> bool:
    """Gives threads that start from now on no heaps of their own; whether it did. Only on glibc."""
    library = _glibc()
    done = library is not None and bool(library.mallopt(M_ARENA_MAX, 1))
    _in_force["keeps_scratch"] = done
    return done


def keep_scratch() -> None:
    """Gives back what is free, and keeps what is freed from here on, where the process uses one
    heap: for steps that take the same blocks again and again."""
    _set(KEEP)


def release_scratch() -> None:
    """Gives back what is free, and goes on as glibc does, where the process uses one heap: between
    phases that take blocks of other sizes, or the peak would be their sum and more."""
    _set(RELEASE)


def _set(settings: dict[int, int]) -> None:
    """Gives back what is free, and sets options of mallopt."""
    if _in_force["keeps_scratch"]:
        library = _glibc()
        for option, value in settings.items():
            library.mallopt(option, value)
        library.malloc_trim(0)


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
