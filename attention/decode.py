# SPDX-License-Identifier: Apache-2.0
"""Decoding one token against a long cache: an int8 sketch finds every key that may survive.

Decoding is bound by the bytes it reads, and at beta = 1 almost no key survives. So each unit key is
kept twice, whole and as k_hat = scale * int8 with the exact distance delta = |k - k_hat|. Since

    q.k = q.k_hat + q.(k - k_hat) <= q.k_hat + |q| delta

a key whose bound does not exceed tau has a weight of exactly 0 and is never read: a step reads the
sketch (2 D bytes per key and kv head for both views, where bfloat16 keys and values are 4 D + 2 Dv)
and the few keys and values that are left. [our choice]; the bound is Cauchy-Schwarz.

Survivors and weights have the bits of `dense_decode`: both score a key by the same fixed tree of
additions (bit for bit where products are exact in float32, as those of bfloat16 are, and up to the
compiler's fused multiply-adds for float32 keys). Outputs differ by the rounding of a sum in another
order.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from attention.arguments import check_knobs, check_per_head
from attention.kernels import power
from attention.tda import normalize, threshold

BUDGET = 256  # candidates per sequence and kv head before decoding falls back to dense [our choice]


Array = jax.Array | np.ndarray


class SketchCache(NamedTuple):
    """Keys, values and sketches of up to S tokens of B sequences; unused places are zero."""

    k: jax.Array  # [2, B, S, K, D], unit norm
    v: jax.Array  # [B, S, K, Dv]
    sketch: jax.Array  # int8 [2, B, S, K, D], -127 to 127
    scale: jax.Array  # float32 [2, B, S, K]: k_hat = scale * sketch
    delta: jax.Array  # float32 [2, B, S, K]: |k - k_hat|
    length: jax.Array  # int32 [B], tokens held


class Statistics(NamedTuple):
    """What a step read."""

    candidates: jax.Array  # int32 [B, K], keys that the sketch could not rule out
    survivors: jax.Array  # int32 [2, B, H], keys with a weight, per view
    dense: jax.Array  # bool [], whether the budget was too small and the step was dense


def empty_cache(
    batch: int, max_len: int, kv_heads: int, dim: int, value_dim: int, dtype: Any = jnp.bfloat16
) -> SketchCache:
    """Cache of no tokens that can take max_len."""
    shape = (2, batch, max_len, kv_heads)
    return SketchCache(
        k=jnp.zeros((*shape, dim), dtype),
        v=jnp.zeros((batch, max_len, kv_heads, value_dim), dtype),
        sketch=jnp.zeros((*shape, dim), jnp.int8),
        scale=jnp.zeros(shape, jnp.float32),
        delta=jnp.zeros(shape, jnp.float32),
        length=jnp.zeros(batch, jnp.int32),
    )


def make_sketch(k: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """int8 [.., D], scale float32 [..] and delta float32 [..] of vectors k [.., D]."""
    wide = k.astype(jnp.float32)
    scale = jnp.max(jnp.abs(wide), axis=-1) / 127
    sketch = jnp.round(wide / jnp.where(scale > 0, scale, 1.0)[..., None]).astype(jnp.int8)
    error = wide - scale[..., None] * sketch.astype(jnp.float32)
    return sketch, scale, jnp.sqrt(jnp.sum(error * error, axis=-1))


def append(cache: SketchCache, k: Array, v: Array) -> SketchCache:
    """Cache with N more tokens per sequence, each after what it holds; also the way to prefill.

    Args:
        k: [2, B, N, K, D], need not be normalized; v: [B, N, K, Dv].

    Raises:
        ValueError: shapes do not fit, or the cache is full (where its length is known; under jit a
            full cache overwrites its last tokens: keep count outside).
    """
    for name, new, old in (("k", k, cache.k), ("v", v, cache.v)):
        axis = old.ndim - 3
        if new.ndim != old.ndim or any(
            a != b for d, (a, b) in enumerate(zip(new.shape, old.shape, strict=True)) if d != axis
        ):
            raise ValueError(f"{name} has shape {new.shape}, which does not fit {old.shape}")
    if v.shape[1] != k.shape[2]:
        raise ValueError(f"v has {v.shape[1]} tokens, k has {k.shape[2]}")
    is_full = int(k.shape[2]) > cache.v.shape[1]
    if not isinstance(cache.length, Tracer):
        is_full = int(jnp.max(cache.length)) + k.shape[2] > cache.v.shape[1]
    if is_full:
        raise ValueError(f"k: {k.shape[2]} more tokens do not fit a cache of {cache.v.shape[1]}")
    unit = normalize(jnp.asarray(k, jnp.float32)).astype(cache.k.dtype)
    sketch, scale, delta = make_sketch(unit)

    return SketchCache(
        k=_write_rows(cache.k, unit, cache.length, axis=2),
        v=_write_rows(cache.v, jnp.asarray(v), cache.length, axis=1),
        sketch=_write_rows(cache.sketch, sketch, cache.length, axis=2),
        scale=_write_rows(cache.scale, scale, cache.length, axis=2),
        delta=_write_rows(cache.delta, delta, cache.length, axis=2),
        length=cache.length + k.shape[2],
    )


def _write_rows(slots: jax.Array, new: jax.Array, starts: jax.Array, *, axis: int) -> jax.Array:
    """`slots` with `new` along the axis of tokens, each sequence from its own start, int32 [B]."""

    def write(row: jax.Array, new_row: jax.Array, start: jax.Array) -> jax.Array:
        new_row = new_row.astype(row.dtype)
        return lax.dynamic_update_slice_in_dim(row, new_row, start, axis - 1)

    batch_axis = axis - 1  # the one before the tokens
    return jax.vmap(write, (batch_axis, batch_axis, 0), batch_axis)(slots, new, starts)


def _prepare(
    q: Array, cache: SketchCache, lam: Array, beta: Any, kappa: Any, p: int | float
) -> tuple[jax.Array, jax.Array]:
    """Unit queries [2, B, K, G, D] in the cache's dtype, and tau float32 [B, K, G]."""
    _, B, _, K, D = cache.k.shape
    if q.ndim != 4 or q.shape[:2] != (2, B) or q.shape[3] != D or q.shape[2] % K:
        raise ValueError(f"q has shape {q.shape}, expected [2, {B}, H, {D}], H a multiple of {K}")
    check_per_head("lam", lam, q.shape[2])
    check_knobs("tda", {"beta": beta, "kappa": kappa, "p": p}, q.shape[2], group="")
    tau = threshold(cache.length[:, None], D, beta, kappa)  # [B, H or 1, 1]
    tau = jnp.broadcast_to(tau[..., 0], (B, q.shape[2])).reshape(B, K, -1)
    unit = normalize(jnp.asarray(q, jnp.float32)).astype(cache.k.dtype)
    return unit.reshape(2, B, K, -1, D), tau


def _tree_dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """float32 sum over the last axis of a * b, by halving: the same order wherever it is fused."""
    x = a.astype(jnp.float32) * b.astype(jnp.float32)
    while x.shape[-1] > 1:
        half = (x.shape[-1] + 1) // 2
        tail = jnp.pad(x[..., half:], [(0, 0)] * (x.ndim - 1) + [(0, 2 * half - x.shape[-1])])
        x = x[..., :half] + tail
    return x[..., 0]


def _weights(
    q: jax.Array, k: jax.Array, tau: jax.Array, valid: jax.Array, p: int | float
) -> jax.Array:
    """w of both views, [2, B, K, G, N], for keys k [2, B, K, N, D] of which valid [B, K, N]."""
    s = _tree_dot(q[:, :, :, :, None], k[:, :, :, None])
    e = jnp.maximum(s - tau[None, ..., None], 0.0)
    return power(jnp.where(valid[None, :, :, None], e, 0.0), p)


def _combine(w: jax.Array, v: jax.Array, lam: Array) -> jax.Array:
    """o [B, H, Dv] of weights [2, B, K, G, N] and values [B, K, N, Dv]."""
    B, K, G = w.shape[1:4]
    a = w[0] - jnp.asarray(lam, jnp.float32).reshape(1, K, G, 1) * w[1]
    o = jnp.einsum("bkgn,bknd->bkgd", a, v.astype(jnp.float32), precision="highest")
    return o.reshape(B, K * G, -1).astype(v.dtype)


def dense_weights(q: jax.Array, cache: SketchCache, tau: jax.Array, p: int | float) -> jax.Array:
    """w of every cached key, [2, B, K, G, S]; q and tau as made by `_prepare`."""
    S, K = cache.v.shape[1:3]
    valid = jnp.arange(S, dtype=jnp.int32)[None] < cache.length[:, None]
    valid = jnp.broadcast_to(valid[:, None], (valid.shape[0], K, S))
    return _weights(q, jnp.swapaxes(cache.k, 2, 3), tau, valid, p)


def candidates(q: jax.Array, cache: SketchCache, tau: jax.Array) -> jax.Array:
    """Keys that some head of a group may see over its threshold in some view, bool [B, K, S].

    The slack bounds what float32 adds to the bound: rounding of the sketch's product, of the dense
    score it stands for (each at most D * 2^-23 for vectors of norm near 1, also with the truncating
    sums of tensor cores) and of delta. A bound that is NaN marks its key: weights are then NaN too.
    """
    D = q.shape[-1]
    S = cache.v.shape[1]
    is_exact = cache.k.dtype == jnp.float32
    product = jnp.einsum(
        "vbkgd,vbskd->vbkgs",
        q,
        cache.sketch.astype(cache.k.dtype),  # integers to 127 are exact in bfloat16
        precision="highest" if is_exact else "default",
        preferred_element_type=jnp.float32,
    )
    by_head = lambda x: jnp.swapaxes(x, 2, 3)[:, :, :, None]
    wide = q.astype(jnp.float32)
    norm = jnp.sqrt(jnp.sum(wide * wide, axis=-1))[..., None]
    bound = product * by_head(cache.scale) + norm * by_head(cache.delta) + D * 2.0**-20
    is_cached = jnp.arange(S, dtype=jnp.int32)[None] < cache.length[:, None]
    return (~(bound <= tau[None, ..., None])).any((0, 3)) & is_cached[:, None]


def gathered_weights(
    q: jax.Array, cache: SketchCache, tau: jax.Array, marked: jax.Array, p: int | float, budget: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Weights of the first `budget` marked keys.

    Returns:
        Places int32 [B, K, budget], those beyond the last mark being repeats of weight 0; their
        weights [2, B, K, G, budget]; their values [B, K, budget, Dv].
    """
    count = jnp.cumsum(marked, axis=-1, dtype=jnp.int32)
    rank = jnp.arange(1, budget + 1, dtype=jnp.int32)
    # The n-th marked key is the first place where the running count reaches n.
    search = jax.vmap(jax.vmap(lambda c: jnp.searchsorted(c, rank, side="left")))
    valid = rank[None, None] <= count[..., -1:]
    place = jnp.minimum(search(count).astype(jnp.int32), marked.shape[-1] - 1)
    keys = jnp.take_along_axis(cache.k, jnp.moveaxis(place, 1, 2)[None, ..., None], axis=2)
    values = jnp.take_along_axis(cache.v, jnp.moveaxis(place, 1, 2)[..., None], axis=1)
    w = _weights(q, jnp.swapaxes(keys, 2, 3), tau, valid, p)
    return place, w, jnp.swapaxes(values, 1, 2)


def dense_decode(
    q: Array,
    cache: SketchCache,
    lam: Array,
    *,
    beta: Any = 1.0,
    kappa: Any = 1.0,
    p: int | float = 2,
) -> jax.Array:
    """o [B, H, Dv] of one query per sequence, reading all keys and values; as `sketch_decode`."""
    unit, tau = _prepare(q, cache, lam, beta, kappa, p)
    return _combine(dense_weights(unit, cache, tau, p), jnp.swapaxes(cache.v, 1, 2), lam)


def sketch_decode(
    q: Array,
    cache: SketchCache,
    lam: Array,
    *,
    beta: Any = 1.0,
    kappa: Any = 1.0,
    p: int | float = 2,
    budget: int = BUDGET,
) -> tuple[jax.Array, Statistics]:
    """One query per sequence against all `length` cached keys, reading few of them.

    Equal to `tda_attention` of that row: append the token first, then decode it.

    Args:
        q: [2, B, H, D], need not be normalized; H a multiple of the cache's K.
        lam, beta, kappa, p: as `tda_attention`.
        budget: candidates that can be gathered per sequence and kv head. If any has more, the
            step is dense, so the result never depends on it.

    Returns:
        o [B, H, Dv] in v's dtype, before the output norm, and what was read.
    """
    unit, tau = _prepare(q, cache, lam, beta, kappa, p)
    budget = min(budget, cache.v.shape[1])
    marked = candidates(unit, cache, tau)
    num_marked = marked.sum(-1, dtype=jnp.int32)
    overflow = jnp.any(num_marked > budget)

    def sparse() -> tuple[jax.Array, jax.Array]:
        _, w, values = gathered_weights(unit, cache, tau, marked, p, budget)
        return _combine(w, values, lam), (w > 0).sum(-1, dtype=jnp.int32)

    def dense() -> tuple[jax.Array, jax.Array]:
        w = dense_weights(unit, cache, tau, p)
        return _combine(w, jnp.swapaxes(cache.v, 1, 2), lam), (w > 0).sum(-1, dtype=jnp.int32)

    o, survivors = lax.cond(overflow, dense, sparse)
    survivors = survivors.reshape(2, q.shape[1], q.shape[2])
    return o, Statistics(candidates=num_marked, survivors=survivors, dense=overflow)
