# SPDX-License-Identifier: Apache-2.0
"""Who sees whom: visibility shared by every kind of attention, and the number of keys of a row.

    visible(i, j) = (not causal or j <= i + q_offset) and q_seg[i] == kv_seg[j] and q_seg[i] != 0

Segment id 0 is padding: such a row sees nothing, such a key is seen by nobody. The default
q_offset = S - T aligns the last query with the last key, so T == S is ordinary causal attention
and T < S is a chunk at the end of a cache. [our choice] where papers are silent about packing.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Ids = jax.Array | np.ndarray | None
Offset = int | jax.Array | np.ndarray | None


def resolve_offset(T: int, S: int, q_offset: Offset) -> int | jax.Array:
    """Position of query 0 among the keys: an int, or int32 [B]; None gives S - T."""
    if q_offset is None:
        return S - T
    return q_offset if isinstance(q_offset, int) else jnp.asarray(q_offset, jnp.int32)


def last_visible(T: int, S: int, causal: bool, q_offset: Offset) -> jax.Array:
    """int32 [B or 1, T]: largest key position that causality lets row i see, -1 to S - 1."""
    if not causal:
        return jnp.full((1, T), S - 1, jnp.int32)
    offset = jnp.asarray(resolve_offset(T, S, q_offset), jnp.int32)
    rows = jnp.arange(T, dtype=jnp.int32)[None] + jnp.atleast_1d(offset)[:, None]
    return jnp.clip(rows, -1, S - 1)


def visible(
    T: int,
    S: int,
    *,
    causal: bool,
    q_segment_ids: Ids = None,
    kv_segment_ids: Ids = None,
    q_offset: Offset = None,
) -> jax.Array:
    """Dense visibility, bool [B or 1, T, S]. T x S memory: for references, maps and short texts.

    Args:
        q_segment_ids, kv_segment_ids: integers [B, T] and [B, S], 0 = padding; both or neither.
        q_offset: int or int32 [B]; None is S - T. Ignored unless causal.
    """
    keys = jnp.arange(S, dtype=jnp.int32)
    mask = keys[None, None] <= last_visible(T, S, causal, q_offset)[:, :, None]
    if q_segment_ids is None or kv_segment_ids is None:
        return mask
    q_ids = jnp.asarray(q_segment_ids)
    kv_ids = jnp.asarray(kv_segment_ids)
    return mask & (q_ids[:, :, None] == kv_ids[:, None, :]) & (q_ids != 0)[:, :, None]


def row_lengths(
    T: int,
    S: int,
    *,
    causal: bool,
    q_segment_ids: Ids = None,
    kv_segment_ids: Ids = None,
    q_offset: Offset = None,
) -> jax.Array:
    """Number of visible keys of every row, int32 [B or 1, T]: the n_i of TDA, the n of SSMax.

    Arguments are those of `visible`. Takes O((T + S) log S) time and O(T + S) memory: keys are
    sorted by segment, then each row finds its last visible key in its segment by bisection.
    """
    last = last_visible(T, S, causal, q_offset)
    if q_segment_ids is None or kv_segment_ids is None:
        return last + 1
    q_ids = jnp.asarray(q_segment_ids, jnp.int32)
    kv_ids = jnp.asarray(kv_segment_ids, jnp.int32)
    return jax.vmap(_count)(q_ids, kv_ids, jnp.broadcast_to(last, q_ids.shape))


def _count(q_ids: jax.Array, kv_ids: jax.Array, last: jax.Array) -> jax.Array:
    """int32 [T]: keys of the row's segment at positions <= last."""
    # Stable: inside a segment positions stay in ascending order.
    position = jnp.argsort(kv_ids, stable=True).astype(jnp.int32)
    sorted_ids = kv_ids[position]
    first = jnp.searchsorted(sorted_ids, q_ids, side="left").astype(jnp.int32)
    stop = jnp.searchsorted(sorted_ids, q_ids, side="right").astype(jnp.int32)

    def halve(_: Any, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds  # positions before low are <= last, those from high on are > last
        middle = (low + high) >> 1
        inside = low < high
        goes_up = inside & (position[jnp.minimum(middle, position.size - 1)] <= last)
        return jnp.where(goes_up, middle + 1, low), jnp.where(inside & ~goes_up, middle, high)

    low, _ = lax.fori_loop(0, kv_ids.size.bit_length(), halve, (first, stop))
    return jnp.where(q_ids != 0, low - first, 0)
