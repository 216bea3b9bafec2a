# SPDX-License-Identifier: Apache-2.0
"""How programs of tests are compiled: quickly, for they run for milliseconds, or as users' are."""

import os
import subprocess
import sys

OLDER_EMITTERS = "--xla_cpu_use_fusion_emitters=false"


def quickly() -> None:
    """Sets the environment, before JAX is imported: XLA's own passes stay, LLVM's are cut to a
    minimum, and the older emitters take two thirds off the rest where jaxlib still has them."""
    if os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1") == "0":
        return
    flags = f"{os.environ.get('XLA_FLAGS', '')} {OLDER_EMITTERS}".strip()
    probe = [sys.executable, "-c", "import jax; jax.devices()"]  # an unknown flag ends a process
    tried = {**os.environ, "XLA_FLAGS": flags}
    if subprocess.run(probe, env=tried, capture_output=True, check=False).returncode == 0:
        os.environ["XLA_FLAGS"] = flags


def as_users() -> dict[str, str]:
    """Environment of a process whose programs are compiled as users' are."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    flags = kept.get("XLA_FLAGS", "").replace(OLDER_EMITTERS, "").strip()
    return {**kept, "JAX_DISABLE_MOST_OPTIMIZATIONS": "0", "XLA_FLAGS": flags}
