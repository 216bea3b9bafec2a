# SPDX-License-Identifier: Apache-2.0
"""The allocator's settings: where they are asked for, and where they are left alone."""

import ctypes
import json
import os
import subprocess
import sys
from typing import Any

import pytest

from experiments.runner import memory
from tests import ROOT

GLIBC = sys.platform.startswith("linux") and hasattr(ctypes.CDLL(None), "gnu_get_libc_version")
PROGRAM = """
import json, os, sys
sys.path.insert(0, {root!r})
from experiments.runner import memory
if "--no_malloc_tuning" not in sys.argv:
    memory.restart_with_huge_pages(os.environ)
    memory.keep_scratch()
print(json.dumps([os.getpid(), sys.argv[1:], memory.settings_in_force()]))
"""


def started(*words: str, **environ: str) -> tuple[int, Any]:
    """Process id of the program as it was started, and what it printed."""
    clean = {k: v for k, v in os.environ.items() if k != memory.TUNABLES}
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(root=str(ROOT)), *words],
        env={**clean, **environ},
        stdout=subprocess.PIPE,
        text=True,
    )
    out, _ = program.communicate(timeout=60)
    assert program.returncode == 0
    return program.pid, json.loads(out)


@pytest.mark.skipif(not GLIBC, reason="the C library is not glibc")
def test_settings_of_a_process() -> None:
    """A program restarts once, as the same process with the same words, and says what is set."""
    pid, (own_pid, words, settings) = started("a", "--b=c d")
    assert own_pid == pid and words == ["a", "--b=c d"]
    assert settings == {"keeps_scratch": True, "huge_pages": True}
    _, (_, words, settings) = started("--no_malloc_tuning")
    assert words == ["--no_malloc_tuning"]
    assert settings == {"keeps_scratch": False, "huge_pages": False}
    _, (_, _, settings) = started(GLIBC_TUNABLES="glibc.malloc.check=0")
    assert settings == {"keeps_scratch": True, "huge_pages": False}  # the user's stay


@pytest.mark.skipif(not GLIBC, reason="the C library is not glibc")
def test_another_program_is_not_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command run inside pytest, as by runpy, does not replace pytest."""
    monkeypatch.setattr(memory.os, "execve", lambda *_: pytest.fail("started again"))
    memory.restart_with_huge_pages({})
    monkeypatch.setattr(sys, "argv", ["experiments/run.py", "--config=lm"])
    monkeypatch.delitem(sys.modules, "jax")
    memory.restart_with_huge_pages({})


def test_elsewhere_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without glibc nothing is set and no program is started again."""
    monkeypatch.setattr(memory, "_glibc", lambda: None)
    monkeypatch.setattr(memory.os, "execve", lambda *_: pytest.fail("started again"))
    assert not memory.keep_scratch()
    memory.restart_with_huge_pages({})
