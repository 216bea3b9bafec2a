# SPDX-License-Identifier: Apache-2.0
"""How programs of tests are compiled: quickly, for they run for milliseconds, or as users' are."""

import os
import subprocess
import sys

FLAGS = (
    "--xla_cpu_use_fusion_emitters=false",  # the older emitters, where jaxlib still has them
    "--xla_cpu_parallel_codegen_split_count=1",  # a worker keeps to its core
)


def quickly() -> None:
    """Sets the environment, before JAX is imported: XLA's own passes stay, LLVM's are cut to a
    minimum, and every one of `FLAGS` that this jaxlib knows is set."""
    if os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1") == "0":
        return
    given = os.environ.get("XLA_FLAGS", "").split()
    for flags in (FLAGS, FLAGS[1:]):
        os.environ["XLA_FLAGS"] = " ".join((*given, *flags))
        probe = [sys.executable, "-c", "import jax; jax.devices()"]  # an unknown flag ends it
        if subprocess.run(probe, capture_output=True, check=False).returncode == 0:
            return
    os.environ["XLA_FLAGS"] = " ".join(given)


def as_users() -> dict[str, str]:
    """Environment of a process whose programs are compiled as users' are."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    flags = [flag for flag in kept.get("XLA_FLAGS", "").split() if flag not in FLAGS]
    return {**kept, "JAX_DISABLE_MOST_OPTIMIZATIONS": "0", "XLA_FLAGS": " ".join(flags)}
