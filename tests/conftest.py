# SPDX-License-Identifier: Apache-2.0
"""Test-wide settings: 8 CPU devices, strict ranks, closed network, shared compile cache."""

import gc
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments.runner import memory
from tests import ROOT, compiling

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    str(Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "banyan-stack" / "xla"),
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
if "BANYAN_DATA" not in os.environ and (ROOT.parent / "shared" / "data").is_dir():
    os.environ["BANYAN_DATA"] = str(ROOT.parent / "shared" / "data")


def keep_to_own_cores(worker: int, workers: int) -> None:
    """Programs of several workers on the same cores wait for each other's threads."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[worker::workers] or cores)


gc.set_threshold(100_000, 20, 20)  # a quarter of the time of tracing went into looking for garbage
if "PYTEST_XDIST_WORKER" in os.environ:
    keep_to_own_cores(
        int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw")),
        int(os.environ["PYTEST_XDIST_WORKER_COUNT"]),
    )
else:  # workers inherit it
    compiling.quickly()

memory.use_one_heap()
memory.keep_scratch()

import jax  # noqa: E402  (after environment and allocator are set)

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_sessionstart() -> None:
    """With $BANYAN_JITTER the last bits of initial parameters differ (see tests/jitter.py)."""
    from tests import jitter  # after jaxtyping's hook, which checks what is imported from here on

    jitter.install()


def pytest_itemcollected(item: pytest.Item) -> None:
    """Every test has one tier."""
    if item.get_closest_marker("slow") and item.get_closest_marker("deep"):
        raise pytest.UsageError(f"{item.nodeid} is marked slow and deep: choose one")


def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Tests marked `users_compiler`, which run for longer than they compile, get their own
    process."""
    if not pyfuncitem.get_closest_marker("users_compiler"):
        return None
    if os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "0":
        return None  # it is the one
    alone = ["-n0", "-m", "", "--rootdir", str(ROOT), pyfuncitem.nodeid]  # of whatever tier
    words = [sys.executable, "-m", "pytest", *alone]
    run = subprocess.run(
        words,
        cwd=ROOT,
        env=compiling.as_users(),
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode:
        pytest.fail(run.stdout + run.stderr, pytrace=False)
    return True


@pytest.fixture(autouse=True)
def closed_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any connection that leaves this machine is a failure."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        host = address[0] if isinstance(address, tuple) else "localhost"
        if host not in ("127.0.0.1", "::1", "localhost"):
            raise RuntimeError(f"test tried to reach the network: {address}")
        connect(self, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder of the real data; skips where there is none."""
    root = os.environ.get("BANYAN_DATA")
    if not root:
        pytest.skip("real data not found: set BANYAN_DATA (see experiments/data.py list)")
    return Path(root)


@pytest.fixture(scope="module")
def installed() -> Iterator[None]:
    """tests/toy.py is system and config "toy" while a module of tests runs."""
    from tests import toy

    toy.install()
    yield
    toy.remove()
