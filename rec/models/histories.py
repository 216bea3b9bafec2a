# SPDX-License-Identifier: Apache-2.0
"""What all models that read right-padded histories share: ages of items, and the newest state."""

import jax
import jax.numpy as jnp


def ages(mask: jax.Array) -> jax.Array:
    """Items between each one and the newest of its history, int32 [B, T] of a mask [B, T]; 0 for
    padding."""
    lengths = mask.sum(axis=1)[:, None]
    return jnp.maximum(lengths - 1 - jnp.arange(mask.shape[1])[None], 0)


def last_state(states: jax.Array, mask: jax.Array) -> jax.Array:
    """[B, D]: the state of the newest item, which has read the whole history.

    Args:
        states: [B, T, D]; mask: bool, or int32 0 and 1, [B, T].
    """
    last = jnp.maximum(mask.sum(axis=1) - 1, 0)[:, None, None]
    return jnp.take_along_axis(states, last, axis=1)[:, 0]
