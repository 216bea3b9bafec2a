# SPDX-License-Identifier: Apache-2.0
"""The allocator's settings: what they do to a process, and where they are left alone."""

import ctypes
import json
import subprocess
import sys
from typing import Any

import pytest

from experiments.runner import memory
from tests import ROOT

GLIBC = sys.platform.startswith("linux") and hasattr(ctypes.CDLL(None), "gnu_get_libc_version")
# Blocks larger than a heap of a thread, one at a time, in the main thread and in another.
PROGRAM = """
import ctypes, json, resource, sys, threading
sys.path.insert(0, {root!r})
from experiments.runner import memory
if "--no_malloc_tuning" not in sys.argv:
    memory.use_one_heap()
memory.keep_scratch()
MB = 2**20
library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
library.malloc.argtypes = [ctypes.c_size_t]
library.free.argtypes = [ctypes.c_void_p]

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

def touch():
    block = library.malloc(100 * MB)
    ctypes.memset(block, 1, 100 * MB)
    library.free(block)

def faults(repeats):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(repeats):
        touch()
    found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

found = []
for repeats in (1, 5):
    faults(repeats)
    thread = threading.Thread(target=faults, args=(repeats,))
    thread.start()
    thread.join()
held = resident()
memory.release_scratch()
print(json.dumps([found[2:], held - resident(), memory.settings_in_force()]))
"""


def page_faults(*words: str) -> tuple[list[int], int, Any]:
    """Of five blocks after the first, in the main thread and in another; bytes that are released
    then; what is in force."""
    command = [sys.executable, "-c", PROGRAM.format(root=str(ROOT)), *words]
    out = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    return tuple(json.loads(out))


@pytest.mark.skipif(not GLIBC, reason="the C library is not glibc")
def test_memory_that_was_freed_is_used_again() -> None:
    """Five blocks are 128,000 pages of 4 KiB, or 250 of 2 MB."""
    found, released, settings = page_faults()
    assert settings == {"keeps_scratch": True}
    assert max(found) < 100 and released > 90e6
    found, released, settings = page_faults("--no_malloc_tuning")
    assert settings == {"keeps_scratch": False}
    assert min(found) >= 250 and released < 10e6


def test_elsewhere_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_glibc", lambda: None)
    assert not memory.use_one_heap()
    memory.keep_scratch()
    memory.release_scratch()
