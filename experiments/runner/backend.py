# SPDX-License-Identifier: Apache-2.0
"""Starts JAX for a command: compile cache, processes, and whether a GPU is used."""

import os
import sys
from pathlib import Path

from absl import flags

from experiments.runner import memory
from experiments.runner.errors import UserError


def start_jax(values: flags.FlagValues) -> None:
    """Sets allocator and compile cache, joins the processes, warns of a GPU that is not used.

    Raises:
        UserError: --require_gpu, and JAX runs on something else.
    """
    if not values.no_malloc_tuning:
        memory.use_one_heap()
    import jax

    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "banyan-stack" / "xla"
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    if values.distributed:
        jax.distributed.initialize(
            coordinator_address=values.coordinator,
            num_processes=values.num_processes,
            process_id=values.process_id,
        )
    if jax.default_backend() != "gpu":
        if values.require_gpu:
            raise UserError(
                f"--require_gpu: JAX runs on {jax.default_backend()}; install the extra: "
                'pip install -e ".[cuda]" and check that the driver sees the card'
            )
        if Path("/proc/driver/nvidia/version").exists():
            print(
                f"warning: an NVIDIA driver is present but JAX runs on {jax.default_backend()}: "
                'pip install -e ".[cuda]" for the GPU',
                file=sys.stderr,
            )
