# SPDX-License-Identifier: Apache-2.0
"""Every kind of attention by one function: same layout, same masks, one weight matrix A each.

With s_ij = <q_i, k_j> * logit_scale + bias_ij over the keys that row i sees, and n_i their number:

    softmax    A = softmax_j(s)                                    Vaswani et al. 2017
    ssmax      A = softmax_j(scale * log(n_i) * <q, k> * logit_scale + bias)  Nakanishi 2025
    rela       A = max(s, 0)                                       Zhang et al. 2021
    diff       A = softmax_j(s^1) - lam * softmax_j(s^2)           Ye et al. 2024
    sigmoid    A = sigmoid(s - log n_i)                            Ramapuram et al. 2024
    entmax15   A = max(s / 2 - t_i, 0)^2 with t_i so that a row sums to 1    Peters et al. 2019
    tra        A = max(cos(q, k) - tau_i, 0)^p                     TDA with one view
    tda        A = max(cos^1 - tau_i, 0)^p - lam * max(cos^2 - tau_i, 0)^p   attention/tda.py

o = A v. rela, tra, diff and tda do not weigh rows to 1 and want `attention.tda.output_norm` after.
n_i in ssmax and sigmoid is the row's own count [our choice]: then neither padding nor decoding from
a cache changes a result. Rows that see nothing give 0 in every kind [our choice].

`attention` computes blocks of queries and recomputes them in the backward pass, so memory is linear
in T; `attention_map` is the dense A, the reference of every kind.
"""

import functools
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from attention import masks, tda
from attention.arguments import check_arguments, check_knobs
from attention.kernels import power
from attention.names import (
    BIASED,
    KINDS,
    KNOBS,
    implementations,
    needs_output_norm,
    takes_bias,
    views,
)

__all__ = [
    "BIASED",
    "KINDS",
    "KNOBS",
    "apply_map",
    "attention",
    "attention_map",
    "implementations",
    "needs_output_norm",
    "takes_bias",
    "views",
]
Values = jax.Array | np.ndarray
DEFAULTS = MappingProxyType({"lam": 0.5, "scale": 1.0, "beta": 1.0, "kappa": 1.0, "p": 2})
NO_KNOBS: Mapping[str, Any] = MappingProxyType({})
CHUNK = 512  # queries per block: scores of a block are [B, H, CHUNK, S]
NEWTON_STEPS = 20  # of entmax; 12 reach float32 rounding on the worst rows tried


def attention(
    q: Values,
    k: Values,
    v: Values,
    *,
    kind: str = "softmax",
    causal: bool = True,
    q_segment_ids: masks.Ids = None,
    kv_segment_ids: masks.Ids = None,
    q_offset: masks.Offset = None,
    bias: Values | None = None,
    knobs: Mapping[str, Any] = NO_KNOBS,
    implementation: str | None = None,
) -> jax.Array:
    """o = A v, [B, T, H, Dv] in the dtype of v; differentiable in q, k, v, bias and array knobs.

    Args:
        q: [V, B, T, H, D] with V = views(kind).
        k: [V, B, S, Hkv, D]; head h of q reads head h // (H / Hkv).
        v: [B, S, Hkv, Dv].
        causal, q_segment_ids, kv_segment_ids, q_offset: as in `masks.visible`.
        bias: [B or 1, H, T, S], only for kinds that add it to logits (`takes_bias`).
        knobs: values by name, see KNOBS: `logit_scale` float (default 1 / sqrt(D)), `lam`, `beta`,
            `kappa`, `scale` scalar or [H], `p` number >= 1.
        implementation: None, "xla" (any device) or "reference" (dense). softmax also "cudnn"; its
            None is cuDNN on a GPU where that covers the case. tda: those of `tda_attention`.

    Raises:
        ValueError: an argument is malformed; kind, knob, bias or implementation is not allowed.
    """
    q = jnp.asarray(q)
    k = jnp.asarray(k)
    v = jnp.asarray(v)
    bias = _array(bias)
    mask = {
        "q_segment_ids": q_segment_ids,
        "kv_segment_ids": kv_segment_ids,
        "q_offset": q_offset,
    }
    check_arguments(kind, q, k, v, bias=bias, **mask, implementation=implementation)
    check_knobs(kind, knobs, q.shape[3])
    mask["causal"] = causal
    if kind == "tda":
        threshold_knobs = {name: knobs[name] for name in ("beta", "kappa", "p") if name in knobs}
        lam = _per_head(knobs, "lam", q.shape[3], _accumulator(q))
        return tda.tda_attention(
            q, k, v, lam, **threshold_knobs, **mask, implementation=implementation
        )
    if implementation == "reference":
        A = attention_map(q, k, kind=kind, bias=bias, knobs=knobs, **mask)
        return apply_map(A, v)
    if kind == "softmax":
        use_cudnn = implementation == "cudnn" or (
            implementation is None and _cudnn_covers(q, k, v, bias, mask)
        )
        T, S = q.shape[2], k.shape[2]
        if use_cudnn:
            return _cudnn_softmax(q[0], k[0], v, bias, knobs, mask)
        if T <= CHUNK:
            hides_nothing = not causal and q_segment_ids is None
            seen = None if hides_nothing else masks.visible(T, S, **mask)
            return _dense_softmax(q[0], k[0], v, bias, seen, _logit_scale(knobs, q))
    return _chunked(q, k, v, kind, bias, knobs, mask)


def attention_map(
    q: Values,
    k: Values,
    *,
    kind: str = "softmax",
    causal: bool = True,
    q_segment_ids: masks.Ids = None,
    kv_segment_ids: masks.Ids = None,
    q_offset: masks.Offset = None,
    bias: Values | None = None,
    knobs: Mapping[str, Any] = NO_KNOBS,
) -> jax.Array:
    """Dense weights A, [B, H, T, S] in float32 (float64 for float64 q); signed for diff and tda.

    Arguments and errors are those of `attention`.
    """
    q = jnp.asarray(q)
    k = jnp.asarray(k)
    bias = _array(bias)
    mask = {
        "q_segment_ids": q_segment_ids,
        "kv_segment_ids": kv_segment_ids,
        "q_offset": q_offset,
    }
    check_arguments(kind, q, k, bias=bias, **mask)
    check_knobs(kind, knobs, q.shape[3])
    mask["causal"] = causal
    T, S = q.shape[2], k.shape[2]
    seen = masks.visible(T, S, **mask)
    lengths = masks.row_lengths(T, S, **mask)
    return _weights(*_comparable(q, k, kind), kind, seen, lengths, bias, knobs)


def apply_map(A: jax.Array, v: jax.Array) -> jax.Array:
    """A v: [B, H, T, S] and [B, S, Hkv, Dv] to [B, T, H, Dv] in the dtype of v."""
    B, H, T, S = A.shape
    kv_heads = v.shape[2]
    grouped = A.reshape(B, kv_heads, H // kv_heads, T, S).astype(v.dtype)
    out = jnp.einsum("bkgts,bskd->btkgd", grouped, v, preferred_element_type=_accumulator(v))
    return out.reshape(B, T, H, v.shape[3]).astype(v.dtype)


def entmax15(scores: jax.Array, seen: jax.Array) -> jax.Array:
    """1.5-entmax over the last axis (Peters et al. 2019): sparse, sums to 1, exact zeros.

    p = max(x / 2 - t, 0)^2 with sum p = 1. t is the root of the norm |max(x / 2 - t, 0)| = 1, which
    is convex and falling in t: Newton's method from max(x) / 2 - 1 climbs to it without overshoot.
    The last step is differentiated, which gives the exact Jacobian of the implicit root.

    Args:
        scores: [..., S] floating.
        seen: bool, as scores or broadcastable with the same number of axes; else p = 0. A row that
            sees nothing gives 0.
    """
    seen = jnp.broadcast_to(seen, scores.shape)
    half = jnp.where(seen, scores, -jnp.inf) / 2
    top = jax.lax.stop_gradient(jnp.max(half, axis=-1, keepdims=True))
    # Entries more than 1 under the top have weight 0: -2 stands for them and for what is not seen.
    half = jnp.where(seen, half - jnp.where(jnp.isfinite(top), top, 0.0), -2.0)
    half = jnp.maximum(half, -2.0)

    def newton_step(t: jax.Array, x: jax.Array) -> jax.Array:
        excess = jnp.maximum(x - t, 0.0)
        norm = jnp.sqrt(jnp.sum(excess * excess, axis=-1, keepdims=True))
        total = jnp.sum(excess, axis=-1, keepdims=True)
        return t + (norm - 1.0) * norm / jnp.where(total > 0, total, 1.0)

    fixed = jax.lax.stop_gradient(half)
    start = jnp.full_like(fixed[..., :1], -1.0)
    t = jax.lax.fori_loop(0, NEWTON_STEPS, lambda _, t: newton_step(t, fixed), start)
    t = jax.lax.stop_gradient(t)
    # Written without the square root, whose slope is infinite in rows that see nothing.
    excess = jnp.maximum(half - t, 0.0)
    total = jax.lax.stop_gradient(jnp.sum(excess, axis=-1, keepdims=True))
    step = (jnp.sum(excess * excess, axis=-1, keepdims=True) - 1.0) / (
        2.0 * jnp.where(total > 0, total, 1.0)
    )
    return jnp.where(seen, jnp.maximum(half - (t + step), 0.0) ** 2, 0.0)


def _array(x: Values | None) -> jax.Array | None:
    return None if x is None else jnp.asarray(x)


def _accumulator(x: jax.Array) -> Any:
    return jnp.promote_types(x.dtype, jnp.float32)


def _comparable(q: jax.Array, k: jax.Array, kind: str) -> tuple[jax.Array, jax.Array]:
    """Queries and keys as `_weights` takes them: of unit norm for kinds that compare cosines."""
    return (tda.normalize(q), tda.normalize(k)) if kind in ("tra", "tda") else (q, k)


def _per_head(knobs: Mapping[str, Any], name: str, heads: int, dtype: Any) -> jax.Array:
    value = jnp.asarray(knobs.get(name, DEFAULTS[name]), dtype)
    return jnp.broadcast_to(value, (heads,))


def _softmax(scores: jax.Array, seen: jax.Array) -> jax.Array:
    """Softmax over what is seen; rows that see nothing give 0 and a gradient of 0."""
    top = jnp.max(scores, axis=-1, keepdims=True, where=seen, initial=-jnp.inf)
    top = jax.lax.stop_gradient(jnp.where(jnp.isfinite(top), top, 0.0))
    # The inner where keeps the exponential, and so its slope, finite where scores are hidden.
    exponentials = jnp.where(seen, jnp.exp(jnp.where(seen, scores - top, 0.0)), 0.0)
    total = jnp.sum(exponentials, axis=-1, keepdims=True)
    return exponentials / jnp.where(total > 0, total, 1.0)


def _weights(
    q: jax.Array,
    k: jax.Array,
    kind: str,
    seen: jax.Array,
    lengths: jax.Array,
    bias: jax.Array | None,
    knobs: Mapping[str, Any],
) -> jax.Array:
    """A of some rows, [B, H, T, S]; q and k already of unit norm where the kind wants that.

    Args:
        seen: bool [B or 1, T, S].
        lengths: int [B or 1, T], keys that each row sees.
    """
    V, B, T, H, D = q.shape
    S, kv_heads = k.shape[2:4]
    wide = _accumulator(q)
    grouped = q.reshape(V, B, T, kv_heads, H // kv_heads, D)
    s = jnp.einsum("vbtkgd,vbskd->vbkgts", grouped, k, preferred_element_type=wide)
    s = s.reshape(V, B, H, T, S)
    seen = jnp.broadcast_to(seen[:, None], (B, H, T, S))
    if kind in ("tra", "tda"):
        beta = knobs.get("beta", DEFAULTS["beta"])
        kappa = knobs.get("kappa", DEFAULTS["kappa"])
        tau = tda.threshold(lengths, D, beta, kappa, dtype=wide)[..., None]
        excess = jnp.where(seen[None], jax.nn.relu(s - tau[None]), 0.0)
        w = power(excess, knobs.get("p", DEFAULTS["p"]))
        if kind == "tra":
            return w[0]
        lam = _per_head(knobs, "lam", H, wide)[None, :, None, None]
        return w[0] - lam * w[1]
    s = s * jnp.asarray(knobs.get("logit_scale", 1.0 / math.sqrt(D)), wide)
    log_n = jnp.log(jnp.maximum(lengths, 1).astype(wide))[:, None, :, None]
    if kind == "ssmax":
        s = s * (_per_head(knobs, "scale", H, wide)[None, :, None, None] * log_n)[None]
    if bias is not None:
        s = s + bias.astype(wide)[None]
    if kind in ("softmax", "ssmax"):
        return _softmax(s[0], seen)
    if kind == "diff":
        lam = _per_head(knobs, "lam", H, wide)[None, :, None, None]
        return _softmax(s[0], seen) - lam * _softmax(s[1], seen)
    if kind == "rela":
        return jnp.where(seen, jax.nn.relu(s[0]), 0.0)
    if kind == "sigmoid":
        return jnp.where(seen, jax.nn.sigmoid(s[0] - log_n), 0.0)
    return entmax15(s[0], seen)


class _Rows(NamedTuple):
    """What belongs to queries, in blocks of CHUNK."""

    q: jax.Array  # [blocks, V, B, CHUNK, H, D]
    lengths: jax.Array  # int [blocks, B or 1, CHUNK], keys that each row sees
    first: jax.Array  # int32 [blocks], index of the block's first row
    ids: jax.Array | None  # int32 [blocks, B, CHUNK], segment ids
    bias: jax.Array | None  # [blocks, B or 1, H, CHUNK, S]


def _chunked(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    kind: str,
    bias: jax.Array | None,
    knobs: Mapping[str, Any],
    mask: Mapping[str, Any],
) -> jax.Array:
    """A v in blocks of CHUNK queries, each recomputed in the backward pass."""
    _, B, T, H, _ = q.shape
    S = k.shape[2]
    q, k = _comparable(q, k, kind)
    lengths = masks.row_lengths(T, S, **mask)
    if T <= CHUNK:
        seen = masks.visible(T, S, **mask)
        return apply_map(_weights(q, k, kind, seen, lengths, bias, knobs), v)
    num_blocks = -(-T // CHUNK)
    offset = jnp.asarray(masks.resolve_offset(T, S, mask["q_offset"]), jnp.int32)
    q_ids = mask["q_segment_ids"]
    rows = _Rows(
        q=_blocks(q, num_blocks, axis=2),
        lengths=_blocks(lengths, num_blocks, axis=1),
        first=jnp.arange(num_blocks, dtype=jnp.int32) * CHUNK,
        ids=None if q_ids is None else _blocks(jnp.asarray(q_ids, jnp.int32), num_blocks, axis=1),
        bias=None if bias is None else _blocks(bias, num_blocks, axis=2),
    )

    # prevent_cse=False: inside the loop of `lax.map` nothing can be shared with the forward pass.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def attend_block(k: jax.Array, v: jax.Array, rows: _Rows) -> jax.Array:
        seen = masks.visible(
            CHUNK,
            S,
            causal=mask["causal"],
            q_segment_ids=rows.ids,
            kv_segment_ids=mask["kv_segment_ids"],
            q_offset=offset + rows.first,
        )
        A = _weights(rows.q, k, kind, seen, rows.lengths, rows.bias, knobs)
        return apply_map(A, v)

    out = jax.lax.map(lambda rows: attend_block(k, v, rows), rows)  # [blocks, B, CHUNK, H, Dv]
    return jnp.moveaxis(out, 0, 1).reshape(B, num_blocks * CHUNK, H, v.shape[3])[:, :T]


def _blocks(x: jax.Array, count: int, *, axis: int) -> jax.Array:
    """Blocks of rows in front; rows added at the end see nothing and are cut off again."""
    widths = [(0, count * CHUNK - size if a == axis else 0) for a, size in enumerate(x.shape)]
    shape = (*x.shape[:axis], count, CHUNK, *x.shape[axis + 1 :])
    return jnp.moveaxis(jnp.pad(x, widths).reshape(shape), axis, 0)


def _cudnn_softmax(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    bias: jax.Array | None,
    knobs: Mapping[str, Any],
    mask: Mapping[str, Any],
) -> jax.Array:
    """cuDNN's flash kernel; q [B, T, H, D], k and v with heads of one width."""
    T, S = q.shape[1], k.shape[1]
    needs_no_mask = _needs_no_mask(T, S, mask)
    dense = None if needs_no_mask else masks.visible(T, S, **mask)
    out = jax.nn.dot_product_attention(
        q,
        k,
        v,
        bias=None if bias is None else bias.astype(q.dtype),
        mask=None if dense is None else jnp.broadcast_to(dense[:, None], (q.shape[0], 1, T, S)),
        scale=_logit_scale(knobs, q),
        is_causal=needs_no_mask and mask["causal"],
        implementation="cudnn",
    )
    if dense is None:
        return out
    # jax.nn spreads a row that sees nothing evenly over all keys; here it gives 0.
    sees_a_key = jnp.broadcast_to(dense.any(axis=-1)[:, :, None, None], out.shape)
    return jnp.where(sees_a_key, out, jnp.zeros((), out.dtype))


def _logit_scale(knobs: Mapping[str, Any], q: jax.Array) -> float:
    return float(knobs.get("logit_scale", 1.0 / math.sqrt(q.shape[-1])))


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _dense_softmax(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    bias: jax.Array | None,
    seen: jax.Array | None,
    logit_scale: float,
) -> jax.Array:
    """Softmax attention with all scores at once, o [B, T, H, Dv]; rows that see nothing give 0.

    Written for few passes over the scores: queries are scaled and not scores, rows are normalized
    after they were summed over v, and the gradient of row i needs <do_i, o_i>, which is
    sum_j A_ij <do_i, v_j> without its keys.

    Args:
        q: [B, T, H, D]; k: [B, S, Hkv, D]; v: [B, S, Hkv, Dv].
        bias: [B or 1, H, T, S]; seen: bool [B or 1, T, S]; None for neither.
    """
    return _dense_softmax_forward(q, k, v, bias, seen, logit_scale)[0]


def _by_kv_head(x: jax.Array, kv_heads: int) -> jax.Array:
    """[B, T, H, D] to [B, Hkv, H / Hkv * T, D]: all rows that read a key head, side by side."""
    B, T, H, D = x.shape
    grouped = x.reshape(B, T, kv_heads, H // kv_heads, D)
    return grouped.transpose(0, 2, 3, 1, 4).reshape(B, kv_heads, H // kv_heads * T, D)


def _by_row(x: jax.Array, T: int) -> jax.Array:
    """Inverse of `_by_kv_head`."""
    B, kv_heads, rows, D = x.shape
    grouped = x.reshape(B, kv_heads, rows // T, T, D)
    return grouped.transpose(0, 3, 1, 2, 4).reshape(B, T, kv_heads * rows // T, D)


def _dense_softmax_forward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    bias: jax.Array | None,
    seen: jax.Array | None,
    logit_scale: float,
) -> tuple[jax.Array, Any]:
    B, T, H, _ = q.shape
    S, kv_heads = k.shape[1:3]
    wide = _accumulator(q)
    rows = _by_kv_head(q * logit_scale, kv_heads)
    keys = k.transpose(0, 2, 1, 3)
    values = v.transpose(0, 2, 1, 3)
    scores = jnp.einsum("bktd,bksd->bkts", rows, keys, preferred_element_type=wide)
    by_head = (B, H, T, S)
    if bias is not None:
        scores = (scores.reshape(by_head) + bias.astype(wide)).reshape(scores.shape)
    if seen is not None:
        masked = jnp.where(seen[:, None], scores.reshape(by_head), -jnp.inf)
        scores = masked.reshape(scores.shape)
    top = jnp.max(scores, axis=-1, keepdims=True)
    if seen is not None:  # -inf - -inf, in a row that sees nothing, is no number
        top = jnp.where(top == -jnp.inf, 0.0, top)
    weights = jnp.exp(scores - top)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    if seen is not None:
        total = jnp.where(total == 0, 1.0, total)
    summed = jnp.einsum(
        "bkts,bksd->bktd", weights.astype(v.dtype), values, preferred_element_type=wide
    )
    o = (summed / total).astype(v.dtype)
    return _by_row(o, T), (rows, keys, values, weights, total, o, bias)


def _sum_over_rows(A: jax.Array, x: jax.Array) -> jax.Array:
    """Transpose of A [B, K, T, S] times x [B, K, T, D], float32 [B, K, S, D]."""
    wide = _accumulator(x)
    if jax.default_backend() != "cpu":
        return jnp.einsum("bkts,bktd->bksd", A, x, preferred_element_type=wide)
    # Of the two factors the narrow one is turned, before and after: up to twice as fast there.
    turned = jax.lax.optimization_barrier(x.swapaxes(2, 3))
    out = jnp.einsum("bkdt,bkts->bkds", turned, A, preferred_element_type=wide)
    return jax.lax.optimization_barrier(out).swapaxes(2, 3)


def _dense_softmax_backward(
    logit_scale: float, residuals: Any, grad: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None, None]:
    rows, keys, values, weights, total, o, bias = residuals
    wide = weights.dtype
    B, T, H, _ = grad.shape
    S = weights.shape[-1]
    do = _by_kv_head(grad, keys.shape[1])
    # Weights are not normalized: their rows are divided by `total` on the narrow side.
    do_over_total = do.astype(wide) / total
    delta = jnp.sum(do_over_total * o.astype(wide), axis=-1, keepdims=True)
    do_over_total = do_over_total.astype(values.dtype)
    options: Any = {"preferred_element_type": wide}
    dv = _sum_over_rows(weights.astype(values.dtype), do_over_total).astype(values.dtype)
    dp = jnp.einsum("bktd,bksd->bkts", do_over_total, values, **options)
    ds = weights * (dp - delta)
    dbias = None
    if bias is not None:
        # Without it XLA computes ds again inside the sum over rows, slower than it reads it.
        ds = jax.lax.optimization_barrier(ds)
        dbias = ds.reshape(B, H, T, S)
        if bias.shape[0] == 1:
            dbias = dbias.sum(axis=0, keepdims=True)
        dbias = dbias.astype(bias.dtype)
    ds = ds.astype(keys.dtype)
    dq = jnp.einsum("bkts,bksd->bktd", ds, keys * logit_scale, **options).astype(rows.dtype)
    dk = _sum_over_rows(ds, rows).astype(keys.dtype)  # rows are scaled already
    return (
        _by_row(dq, T),
        dk.transpose(0, 2, 1, 3),
        dv.transpose(0, 2, 1, 3),
        dbias,
        None,
    )


_dense_softmax.defvjp(_dense_softmax_forward, _dense_softmax_backward)


def _needs_no_mask(T: int, S: int, mask: Mapping[str, Any]) -> bool:
    """Whether flags say it all: no segments, and causal only with aligned first rows."""
    if mask["q_segment_ids"] is not None:
        return False
    offset = masks.resolve_offset(T, S, mask["q_offset"])
    return not mask["causal"] or (isinstance(offset, int) and offset == 0)


def _cudnn_covers(
    q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None, mask: Mapping[str, Any]
) -> bool:
    """Whether cuDNN's flash kernel takes this as it is: 16 bit, no mask array, Ampere or newer."""
    if jax.default_backend() != "gpu" or bias is not None:
        return False
    D = q.shape[4]
    return (
        q.dtype in (jnp.bfloat16, jnp.float16)
        and D <= 128
        and D % 8 == 0
        and v.shape[3] == D
        and _needs_no_mask(q.shape[2], k.shape[2], mask)
        and float(getattr(jax.devices()[0], "compute_capability", "0")) >= 8.0
    )
