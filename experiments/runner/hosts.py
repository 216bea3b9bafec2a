# SPDX-License-Identifier: Apache-2.0
"""What a process among several has to know: which one it is, where the others are, host copies."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np


def is_main() -> bool:
    return jax.process_index() == 0


def sync(name: str) -> None:
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def agree(answer: bool) -> bool:
    """Process 0's answer, on every process."""
    if jax.process_count() == 1:
        return answer
    from jax.experimental import multihost_utils

    return bool(multihost_utils.broadcast_one_to_all(np.asarray(answer)))


def to_host(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Device metrics as floats, or float arrays [num_seeds]; replicated on every process."""
    if jax.default_backend() != "cpu":  # there it would only cost
        for value in metrics.values():
            if isinstance(value, jax.Array):
                value.copy_to_host_async()  # all at once, then wait for each
    fetched = {k: np.asarray(v).astype(np.float64) for k, v in metrics.items()}
    return {k: float(v) if v.ndim == 0 else v for k, v in fetched.items()}
