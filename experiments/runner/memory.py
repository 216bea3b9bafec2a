# SPDX-License-Identifier: Apache-2.0
"""Settings of the C library's allocator, which decide what a training step on a CPU costs.

XLA takes the scratch of every step from malloc. glibc maps blocks of that size anew for each step
and gives them back after it, so every step touches all its memory for the first time: page faults
are up to half of a step. Kept in the heap, and mapped in large pages where the system allows
programs to ask for them, the same memory is used again.
"""

import ctypes
import os
import sys
from collections.abc import Mapping
from typing import Any

# Options of mallopt, <malloc.h>.
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4
NEVER = 2**31 - 1  # bytes free at the end of the heap before it shrinks
HUGE_PAGES = "glibc.malloc.hugetlb=1"  # madvise for large pages; read when a process starts
TUNABLES = "GLIBC_TUNABLES"

_in_force: dict[str, Any] = {}


def keep_scratch() -> bool:
    """Tells malloc to keep what it has, before JAX takes any; whether it did. Only on glibc."""
    library = _glibc()
    if library is None:
        return False
    done = bool(library.mallopt(M_MMAP_MAX, 0)) and bool(library.mallopt(M_TRIM_THRESHOLD, NEVER))
    _in_force["keeps_scratch"] = done
    return done


def restart_with_huge_pages(environ: Mapping[str, str]) -> None:
    """Starts this very command once more, in the same process, with malloc asking for large pages.

    Does nothing where that would be of no use or in the way: no glibc, GLIBC_TUNABLES set by the
    user, an interactive interpreter or a debugger, a command run inside another program, JAX
    imported already.
    """
    is_this_program = sys.argv[0] in sys.orig_argv and "jax" not in sys.modules
    is_watched = sys.gettrace() is not None or sys.flags.interactive
    if TUNABLES in environ or not is_this_program or is_watched or _glibc() is None:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    changed = {**environ, TUNABLES: HUGE_PAGES}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], changed)


def settings_in_force() -> dict[str, Any]:
    """What env.json says of it: {"keeps_scratch": bool, "huge_pages": bool}."""
    return {
        "keeps_scratch": _in_force.get("keeps_scratch", False),
        "huge_pages": HUGE_PAGES in os.environ.get(TUNABLES, "").split(":"),
    }


def _glibc() -> Any:
    """The C library of this process if it is glibc, else None."""
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") else None
