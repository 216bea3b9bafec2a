# SPDX-License-Identifier: Apache-2.0
"""What the TPU kernels share: geometry, one tile of scores, the liveness bitmap.

A tile is block_q query rows by block_kv keys of one head. It is live if some score comes within a
rounding error of its threshold or is NaN; all others contribute exact zeros to every result. The
bitmap has one bit per tile, packed into int32 words along the axis that a kernel walks, and is
prefetched to scalar memory, where index maps read it: a dead tile costs neither a copy nor a
product.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from attention.kernels import rounding_margin

LANES = 128
WORD = 32  # tiles per word of the bitmap
# Scalar memory that bitmaps may take; larger ones are left out. A v5e core has 1 MiB. [our choice]
BITMAP_BYTES = 256 * 1024
HIDDEN = -4.0  # stands for a masked score minus threshold; cosines are >= -1


class Plan(NamedTuple):
    """Static geometry of a call; T, S are padded to whole blocks. Hashable."""

    B: int
    H: int
    K: int  # kv heads
    T: int
    S: int
    D: int
    Dv: int
    block_q: int
    block_kv: int
    offset: int
    causal: bool
    segments: bool
    p: int | float
    skip: bool
    interpret: Any
    exact: bool  # float32 operands: products without bfloat16 passes
    bitmap_bytes: int  # larger bitmaps are not used

    @property
    def group(self) -> int:
        return self.H // self.K

    @property
    def num_q(self) -> int:
        return self.T // self.block_q

    @property
    def num_kv(self) -> int:
        return self.S // self.block_kv

    @property
    def bitmap(self) -> bool:
        """Whether the backward kernels are driven by a bitmap."""
        words = max(
            self.num_q * words_of(self.num_kv),
            self.num_kv * words_of(self.num_q),
        )
        return self.skip and 4 * self.B * self.H * words <= self.bitmap_bytes


def words_of(tiles: int) -> int:
    return -(-tiles // WORD)


def divide(x: Any, by: int) -> jax.Array:
    """x // by for x >= 0; a plain // asks the lowering for a device that may not be there."""
    return lax.div(jnp.asarray(x, jnp.int32), jnp.int32(by))


def last_kv(plan: Plan, i: Any) -> jax.Array:
    """Last key block that query block i may see (0 if it sees none)."""
    if not plan.causal:
        return jnp.int32(plan.num_kv - 1)
    last = jnp.maximum((i + 1) * plan.block_q - 1 + plan.offset, 0)
    return jnp.minimum(divide(last, plan.block_kv), plan.num_kv - 1)


def first_q(plan: Plan, j: Any) -> jax.Array:
    """First query block that may see key block j (the last block if none does)."""
    if not plan.causal:
        return jnp.int32(0)
    first = jnp.maximum(j * plan.block_kv - plan.offset, 0)
    return jnp.minimum(divide(first, plan.block_q), plan.num_q - 1)


def dot(plan: Plan, a: jax.Array, b: jax.Array, contract: tuple[int, int]) -> jax.Array:
    """Product in float32, contracting axis contract[0] of a with contract[1] of b."""
    return lax.dot_general(
        a,
        b,
        (((contract[0],), (contract[1],)), ((), ())),
        precision=lax.Precision.HIGHEST if plan.exact else lax.Precision.DEFAULT,
        preferred_element_type=jnp.float32,
    )


def column(row: jax.Array) -> jax.Array:
    """[1, n] to [n, 1]."""
    return jnp.transpose(jnp.broadcast_to(row, (LANES, row.shape[1])))[:, :1]


def over_threshold(
    plan: Plan,
    i: Any,
    j: Any,
    q: Any,
    k: Any,
    tau: jax.Array,
    q_ids: jax.Array | None,
    kv_ids: jax.Array | None,
    *,
    keys_first: bool,
) -> list[jax.Array]:
    """Score minus threshold of both views on tile (i, j), HIDDEN where masked.

    Args:
        q, k: refs [2, block_q, D] and [2, block_kv, D].
        tau, q_ids: a column [block_q, 1], or a row [1, block_q] if keys_first; kv_ids likewise.
        keys_first: tiles are [block_kv, block_q] instead of [block_q, block_kv].
    """
    rows_axis = 1 if keys_first else 0
    shape = (plan.block_kv, plan.block_q) if keys_first else (plan.block_q, plan.block_kv)
    mask = None
    if plan.causal:
        # Row and column numbers inside the tile, shifted once by a scalar.
        rows = lax.broadcasted_iota(jnp.int32, shape, rows_axis)
        cols = lax.broadcasted_iota(jnp.int32, shape, 1 - rows_axis)
        mask = cols - rows <= i * plan.block_q + plan.offset - j * plan.block_kv
    if q_ids is not None:
        same = (q_ids == kv_ids) & (q_ids != 0)
        mask = same if mask is None else mask & same
    result = []
    for view in range(2):
        operands = (k[view], q[view]) if keys_first else (q[view], k[view])
        x = dot(plan, *operands, (1, 1)) - tau
        result.append(x if mask is None else jnp.where(mask, x, HIDDEN))
    return result


def is_live(plan: Plan, x: list[jax.Array]) -> jax.Array:
    """Whether a tile may hold a survivor, however its products are rounded.

    A dead tile stays dead in every kernel, also where products run in another order. A tile with
    NaN is live: the comparison is False for it.
    """
    # Entry by entry: the maximum over a tile drops NaN on CPUs.
    is_dead = jnp.maximum(x[0], x[1]) <= -rounding_margin(plan.D)
    return jnp.max(jnp.where(is_dead, 0.0, 1.0)) > 0


def pack(live: jax.Array) -> jax.Array:
    """int32 0/1 [.., n] to flat words, bit j % 32 of word j // 32; each row starts a word."""
    spare = -live.shape[-1] % WORD
    bits = jnp.pad(live, [(0, 0)] * (live.ndim - 1) + [(0, spare)]).astype(jnp.uint32)
    bits = bits.reshape(-1, WORD) << jnp.arange(WORD, dtype=jnp.uint32)[None]
    return lax.bitcast_convert_type(jnp.sum(bits, axis=-1, dtype=jnp.uint32), jnp.int32)


def is_set(words: Any, start: Any, n: Any) -> jax.Array:
    """Bit n of the row of words that begins at `start`."""
    return (words[start + (n >> 5)] >> (n & 31)) & 1 == 1


def nearest_set(words: Any, start: Any, n: Any) -> jax.Array:
    """Index of the last set bit <= n in n's word, else of its first set bit, else 0.

    Used as block index of step n: on a dead tile it stays with the block that is there, or moves on
    to the one needed next, so that dead tiles start no copies.
    """
    word = words[start + (n >> 5)]
    upto = word & lax.shift_right_logical(jnp.int32(-1), jnp.int32(31) - (n & 31))
    bit = jnp.where(upto != 0, upto, word & -word)
    return jnp.where(word != 0, (n & ~31) + 31 - lax.clz(bit), 0)


def compiler_params(*semantics: str) -> pltpu.CompilerParams:
    return pltpu.CompilerParams(dimension_semantics=semantics)  # type: ignore[arg-type]


def scalars() -> pl.BlockSpec:
    """A whole array in scalar memory."""
    return pl.BlockSpec(memory_space=pltpu.SMEM)
