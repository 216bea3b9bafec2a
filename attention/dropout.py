# SPDX-License-Identifier: Apache-2.0
"""Dropout (Srivastava et al. 2014) whose masks are cut from one bank of random bytes.

Threefry draws a word per element, which is up to half of a training step on a CPU. Here a mask is a
window, at a random offset, of `BANK` bytes that were drawn once: its elements are bytes of their
own, and only the offset is drawn in a step. Windows of two masks may overlap, shifted against each
other; masks above 1/16 of the bank would do so often, and draw bytes by threefry instead.

The rate is rounded to 1/256, and what is kept is scaled by the share that is kept.
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

BANK = 2**22  # bytes
LONGEST = BANK // 16  # elements of a mask that is cut from it
LEVELS = 256  # of the rate


@functools.cache
def _bank() -> np.ndarray:
    """The same bytes in every process and run: what a run draws are offsets."""
    return np.random.default_rng(0).integers(0, LEVELS, BANK, np.uint8)


def keep_mask(key: jax.Array, rate: float, shape: tuple[int, ...]) -> jax.Array:
    """bool of `shape`, False with probability round(256 rate) / 256.

    Args:
        key: typed key; equal keys give equal masks.
        rate: static, in [0, 1).
    """
    size = math.prod(shape)
    if size > LONGEST:
        drawn = jax.random.bits(key, shape, jnp.uint8)
    else:
        offset = jax.random.randint(key, (), 0, BANK - size + 1)
        drawn = jax.lax.dynamic_slice(jnp.asarray(_bank()), (offset,), (size,)).reshape(shape)
    return drawn >= _dropped_levels(rate)


def _dropped_levels(rate: float) -> int:
    """Of the 256 values of a byte; at least one is kept."""
    return min(round(rate * LEVELS), LEVELS - 1)


def drop(
    key: jax.Array, x: jax.Array, rate: float, shape: tuple[int, ...] | None = None
) -> jax.Array:
    """x with elements set to 0 at random, the others scaled so that the mean stays.

    Args:
        rate: static, in [0, 1).
        shape: of the mask, broadcast against x; None is the shape of x.
    """
    is_kept = keep_mask(key, rate, x.shape if shape is None else shape)
    scale = LEVELS / (LEVELS - _dropped_levels(rate))
    return jnp.where(is_kept, x * jnp.asarray(scale, x.dtype), jnp.zeros((), x.dtype))


def drop_in(
    module: nn.Module,
    x: jax.Array,
    rate: int | float,
    deterministic: bool,
    shape: tuple[int, ...] | None = None,
) -> jax.Array:
    """`drop` with the rng stream "dropout" of a module that is being called; x itself where the
    rate is 0 or `deterministic`."""
    if deterministic or rate == 0:
        return x
    return drop(module.make_rng("dropout"), x, rate, shape)


class Dropout(nn.Module):
    """`drop` with the rng stream "dropout"; nothing where the rate is 0 or `deterministic`.

    Raises:
        ValueError: a rate outside [0, 1).
    """

    rate: float
    deterministic: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if not 0 <= self.rate < 1:
            raise ValueError(f"rate={self.rate}: must be in [0, 1)")
        return drop_in(self, x, self.rate, self.deterministic)
