# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities of the digits of semantic IDs, which all generators share."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from attention import dropout


def level_offsets(sizes: Sequence[int]) -> np.ndarray:
    """First row of every level in a table of all codes, and its end: int [L + 1]."""
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)


def split_levels(array: jax.Array, sizes: Sequence[int], axis: int = 0) -> list[jax.Array]:
    """The part of every level, L times, of an array with an axis of sum(sizes)."""
    cuts = [int(offset) for offset in level_offsets(sizes)[1:-1]]
    return jnp.split(array, cuts, axis=axis)


def side_by_side(by_level: Sequence[jax.Array], sizes: Sequence[int]) -> jax.Array:
    """L arrays [R, sizes[l]] as one [R, L, sum(sizes)]: row l has those of its level in their
    columns, and 0 or False in the others."""
    offsets = level_offsets(sizes)
    rows = []
    for level, array in enumerate(by_level):
        after = int(offsets[-1] - offsets[level + 1])
        rows.append(jnp.pad(array, ((0, 0), (int(offsets[level]), after))))
    return jnp.stack(rows, axis=1)


def drop_digits(
    module: nn.Module, vectors: jax.Array, rate: int | float, deterministic: bool
) -> jax.Array:
    """Code vectors [..., L, D] with whole digits dropped, by the rng stream "dropout" of a module
    that is being called."""
    return dropout.drop_in(module, vectors, rate, deterministic, (*vectors.shape[:-1], 1))


def digit_log_probs(logits: jax.Array, sizes: Sequence[int], softmax: str) -> jax.Array:
    """Log-probabilities of every code at the digit it belongs to.

    Args:
        logits: float32 [..., L, V], V = sum(sizes), of digits 0 to L - 1.
        softmax: "digit" normalises over the codes of the level, "full" over all V.

    Returns: [..., L, V], -inf where a code belongs to another level.
    """
    offsets = level_offsets(sizes)
    rows = np.arange(offsets[-1])
    is_of_level = (rows >= offsets[:-1, None]) & (rows < offsets[1:, None])  # [L, V]
    is_of_level = jnp.asarray(is_of_level).reshape((1,) * (logits.ndim - 2) + is_of_level.shape)
    if softmax == "digit":
        return jax.nn.log_softmax(jnp.where(is_of_level, logits, -jnp.inf), axis=-1)
    return jnp.where(is_of_level, jax.nn.log_softmax(logits, axis=-1), -jnp.inf)


def target_log_probs(
    logits: jax.Array, target: jax.Array, sizes: Sequence[int], softmax: str
) -> jax.Array:
    """Log-probability of each digit of the target: [R, L] of logits [R, L, V] and int32 [R, L]."""
    return _of_target(digit_log_probs(logits, sizes, softmax), target, sizes)


def _of_target(log_probs: jax.Array, target: jax.Array, sizes: Sequence[int]) -> jax.Array:
    """[R, L] of [R, L, V] and int32 [R, L]."""
    rows = target + jnp.asarray(level_offsets(sizes)[:-1])[None]
    return jnp.take_along_axis(log_probs, rows[..., None], axis=-1)[..., 0]


def smoothed_nats(
    logits: jax.Array, target: jax.Array, sizes: Sequence[int], softmax: str, smoothing: float
) -> jax.Array:
    """Negative log-probabilities of the digits of the target, float32 [R, L] in nats; with a share
    `smoothing` of each digit spread evenly over the codes of its level.

    Args:
        logits: float32 [R, L, sum(sizes)]; target: int32 [R, L].
    """
    log_probs = digit_log_probs(logits, sizes, softmax)
    nats = -_of_target(log_probs, target, sizes)
    if not smoothing:
        return nats
    total = jnp.where(log_probs > -jnp.inf, log_probs, 0.0).sum(axis=-1)
    even = -total / jnp.asarray(sizes, total.dtype)[None]
    return (1 - smoothing) * nats + smoothing * even
