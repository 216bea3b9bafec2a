# SPDX-License-Identifier: Apache-2.0
"""Tile sizes and tile mathematics of the Hopper kernels: pure functions of arrays.

The kernels apply them to tiles in registers; the tests apply them to the same tiles of plain
arrays, in the same order, and compare with a dense reference.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from attention.kernels import power, power_slope, rounding_margin
from attention.kernels.mosaic import ROWS, SMEM_BYTES, WARPGROUPS

HEAD_SIZES = (64, 128)
MUTE = 4.0  # threshold of rows added as padding: no cosine exceeds it
UNSEEN = -4.0  # stands for a masked score minus threshold; cosines are >= -1
HIDDEN = -(2**31)  # segment of rows that see nothing; no key carries it
_RESERVED = 4096  # bytes left for barriers, row vectors and alignment


class Tiling(NamedTuple):
    """Block shapes, hashable. Rows always come in 64, two warpgroups a block.

    keys: keys of a forward tile; a multiple of 64.
    stages, stages_dq, stages_dkv: tiles in flight of the three kernels, >= 2.
    """

    keys: int
    stages: int
    stages_dq: int
    stages_dkv: int


def tiling(D: int, Dv: int) -> Tiling:
    """What fits 232,448 bytes of shared memory and 232 registers a thread [our choice]."""
    keys = 128 if max(D, Dv) == 64 else 64  # two score tiles of 64 x 128 are 128 registers
    wide = 2 * D + Dv
    both = WARPGROUPS * ROWS

    def fit(resident: int, stage: int) -> int:  # in elements of two bytes
        return min(4, (SMEM_BYTES - _RESERVED - 2 * resident) // (2 * stage))

    return Tiling(
        keys=keys,
        stages=fit(both * (2 * D + (Dv if Dv != D else 0)), keys * wide),
        stages_dq=fit(both * wide, ROWS * wide),
        # The resident key tile, and the float32 tile in which the warpgroups join their dv.
        stages_dkv=fit(ROWS * (wide + 2 * Dv), ROWS * wide),
    )


def weights(e: jax.Array, coefficient: jax.Array | float, p: int | float) -> jax.Array:
    """Signed weight of one view: coefficient 1 for the first, -lam for the second."""
    return coefficient * power(e, p)


def rectify(x: jax.Array) -> jax.Array:
    """e of scores over their thresholds; after the mask, for tau may be negative. Keeps NaN."""
    return jnp.maximum(x, 0.0)


def may_survive(x: jax.Array, dim: int) -> jax.Array:
    """Marks with 1.0 the scores minus thresholds that any kernel may find > 0, with 0.0 the others.

    A tile without a mark stays dead in the backward kernels, whose products run in another order.
    NaN is marked, for the comparison is False for it; a maximum first might drop it.
    """
    return jnp.where(x <= -rounding_margin(dim), 0.0, 1.0)


def score_gradients(
    dp: jax.Array, e: jax.Array, coefficient: jax.Array | float, p: int | float
) -> jax.Array:
    """dL/ds of one view, of dp = <dL/do, v>."""
    return coefficient * (dp * power_slope(e, p))


def mask_tile(
    x: jax.Array,
    rows: jax.Array,
    cols: jax.Array,
    q_ids: jax.Array | None,
    kv_ids: jax.Array | None,
    causal_offset: int | None,
) -> jax.Array:
    """Scores minus thresholds, UNSEEN where hidden; rows, cols and ids are tiles of x's shape.

    Args:
        causal_offset: row i sees keys up to i + causal_offset; None sees all.
        q_ids: HIDDEN instead of 0, so that equality alone decides.
    """
    if causal_offset is not None:
        x = jnp.where(cols <= rows + causal_offset, x, UNSEEN)
    if q_ids is not None and kv_ids is not None:
        x = jnp.where(q_ids == kv_ids, x, UNSEEN)
    return x


def key_tiles(
    first: jax.Array, count: int, keys: int, num: int, causal_offset: int | None
) -> jax.Array:
    """Tiles of `keys` keys that some of rows first .. first + count - 1 may see, of `num`."""
    if causal_offset is None:
        return jnp.full_like(first, num)
    seen = jnp.maximum(first + (count + causal_offset), 0)
    return jnp.minimum(lax.div(seen + (keys - 1), jnp.full_like(first, keys)), num)


def crosses(first: jax.Array, first_key: jax.Array, keys: int, causal_offset: int) -> jax.Array:
    """Whether causality hides a part of the tile whose upper left entry is (first, first_key)."""
    return first_key + (keys - 1) > first + causal_offset


def visible_tiles(num_rows: int, num: int, keys: int, causal_offset: int | None) -> jax.Array:
    """bool [num_rows, num]: tiles of 64 rows and `keys` keys that causality does not hide."""
    first = jnp.arange(num_rows, dtype=jnp.int32) * ROWS
    last = key_tiles(first, ROWS, keys, num, causal_offset)
    return jnp.arange(num, dtype=jnp.int32)[None, :] < last[:, None]


def compact(live: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Indices of the live entries of every row, in order.

    Args:
        live: bool [..., n].

    Returns:
        counts: int32 [...].
        index: int32 [..., n]; the first `counts` are the live ones, the others 0.
    """
    flat = live.reshape(-1, live.shape[-1])
    n = flat.shape[-1]
    rank = jnp.cumsum(flat, axis=-1, dtype=jnp.int32)
    # Dead entries aim past the end and are dropped.
    target = jnp.where(flat, rank - 1, n)
    row = jnp.broadcast_to(jnp.arange(flat.shape[0], dtype=jnp.int32)[:, None], flat.shape)
    col = jnp.broadcast_to(jnp.arange(n, dtype=jnp.int32)[None, :], flat.shape)
    index = jnp.zeros(flat.shape, jnp.int32).at[row, target].set(col, mode="drop")
    return rank[:, -1].reshape(live.shape[:-1]), index.reshape(live.shape)
