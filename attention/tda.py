# SPDX-License-Identifier: Apache-2.0
"""Threshold differential attention: signed, sparse attention weights without a softmax.

Per head, with two views t of queries and keys and one value, and n_i the keys that row i sees:

    s_ij^t = <q_i^t, k_j^t> / (|q_i^t| |k_j^t|)
    tau_i  = beta * sqrt(2 log(max(n_i / kappa, 1)) / D)
    e_ij^t = max(s_ij^t - tau_i, 0)  where j is visible to i, else 0
    o_i    = sum_j ((e_ij^1) ** p - lam * (e_ij^2) ** p) v_j

Huang et al., "Threshold Differential Attention" (arXiv 2601.12145), written from its equations as
given in secondary sources [secondary]; n_i counts visible keys, and tau is 0 where n_i <= kappa
[our choice]. At beta = 1 and for unrelated unit vectors fewer than one key per row survives, so
most weights are exact zeros; rows need not sum to anything, and whole rows may be zero, which is
why an RMSNorm (`output_norm`) follows.
"""

from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from attention import masks
from attention.kernels import Spec, pallas_gpu, pallas_tpu, reference, xla
from attention.names import TDA_IMPLEMENTATIONS

Scalar = int | float | np.floating | jax.Array | np.ndarray


def tda_attention(
    q: jax.Array | np.ndarray,
    k: jax.Array | np.ndarray,
    v: jax.Array | np.ndarray,
    lam: jax.Array | np.ndarray,
    *,
    beta: Scalar = 1.0,
    kappa: Scalar = 1.0,
    p: int | float = 2,
    causal: bool = True,
    q_segment_ids: masks.Ids = None,
    kv_segment_ids: masks.Ids = None,
    q_offset: masks.Offset = None,
    implementation: str | None = None,
) -> jax.Array:
    """Threshold differential attention before its output norm, [B, T, H, Dv] in v's dtype.

    Differentiable in q, k, v, lam, beta and kappa.

    Args:
        q: [2, B, T, H, D], both views; need not be normalised.
        k: [2, B, S, Hkv, D], H a multiple of Hkv: query head h reads key head h // (H / Hkv).
        v: [B, S, Hkv, Dv], shared by the views; q, k and v have one floating dtype.
        lam: [H], weight of the second view; the paper keeps it in (0, 1).
        beta: scalar or [H], > 0: scale of the threshold.
        kappa: scalar or [H], > 0: survivors per row that beta = 1 lets chance produce.
        p: >= 1, power of the rectified score.
        causal: row i sees keys up to i + q_offset.
        q_segment_ids, kv_segment_ids: integers [B, T] and [B, S], both or neither; rows see keys of
            their own segment; 0 is padding, whose rows give 0 and whose keys nobody sees.
        q_offset: position of query 0 among the keys, an int or integers [B]; default S - T.
        implementation: None picks by platform and falls back to "xla" where a kernel does not
            cover the case; "reference", "xla", "pallas_tpu", "pallas_gpu" or "interpret"
            (pallas_tpu interpreted, slow, any device).

    Raises:
        ValueError: an argument is malformed, or the named implementation does not cover the case.
    """
    check(q, k, v, lam, q_segment_ids, kv_segment_ids, q_offset, implementation)
    check_knobs(q.shape[3], beta, kappa, p)
    q, k, v = jnp.asarray(q), jnp.asarray(k), jnp.asarray(v)
    T, S = q.shape[2], k.shape[2]
    q_offset = _static_offset(T, S, q_offset)
    ids = [
        None if x is None else jnp.asarray(x, jnp.int32) for x in (q_segment_ids, kv_segment_ids)
    ]
    lengths = masks.row_lengths(
        T, S, causal=causal, q_segment_ids=ids[0], kv_segment_ids=ids[1], q_offset=q_offset
    )
    sums = jnp.promote_types(v.dtype, jnp.float32)
    tau = threshold(lengths, q.shape[-1], beta, kappa, dtype=sums)
    tau = jnp.broadcast_to(tau, (q.shape[1], q.shape[3], T))
    # Rematerialised: the backward pass keeps q and k, not float32 copies of what normalises them.
    units = [jax.checkpoint(normalise)(x) for x in (q, k)]
    arguments = (*units, v, tau, jnp.asarray(lam, sums), *ids)
    return dispatch(implementation, arguments, q_offset, Spec(causal=causal, p=p))


def normalise(x: jax.Array, eps: float = 1e-12) -> jax.Array:
    """x / |x| over the last axis, computed in float32 and returned in x's dtype.

    Rows with |x| <= eps give 0 and a gradient of 0 [our choice]: padding must not make NaN.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    square = jnp.sum(wide * wide, axis=-1, keepdims=True)
    positive = square > eps * eps
    return jnp.where(positive, wide * lax.rsqrt(jnp.where(positive, square, 1.0)), 0.0).astype(
        x.dtype
    )


def threshold(
    lengths: jax.Array, dim: int, beta: Scalar, kappa: Scalar, dtype: Any = jnp.float32
) -> jax.Array:
    """tau = beta * sqrt(2 log(max(n / kappa, 1)) / dim), [B or 1, H or 1, T].

    Args:
        lengths: int [B or 1, T], visible keys n of every row; where 0, tau is 0.
        beta, kappa: scalar or [H]; finite gradients also where tau is 0.
    """
    beta, kappa = (jnp.asarray(x, dtype).reshape(1, -1, 1) for x in (beta, kappa))
    ratio = lengths.astype(dtype)[:, None, :] / kappa
    above = ratio > 1
    # Both branches of a where are differentiated, and the slope of sqrt at 0 is infinite.
    root = jnp.sqrt(2 * jnp.log(jnp.where(above, ratio, 2.0)) / dim)
    return beta * jnp.where(above, root, 0.0)


def output_norm(
    o: jax.Array, scale: jax.Array | np.ndarray | None = None, eps: float = 1e-6
) -> jax.Array:
    """RMSNorm of every head over Dv in float32, returned in o's dtype.

    Args:
        o: [.., H, Dv], output of `tda_attention`.
        scale: [H, Dv] or None.
        eps: added to the mean square. A real knob: typical rows have a root mean square of 1e-4 to
            1e-2, and smaller eps makes faint rows jump to unit norm.
    """
    wide = o.astype(jnp.promote_types(o.dtype, jnp.float32))
    wide = wide * lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    if scale is not None:
        if scale.shape != o.shape[-2:]:
            raise ValueError(f"scale has shape {scale.shape}, expected {o.shape[-2:]} = [H, Dv]")
        wide = wide * jnp.broadcast_to(jnp.asarray(scale, wide.dtype), wide.shape)
    return wide.astype(o.dtype)


def dispatch(
    implementation: str | None, arguments: Any, q_offset: masks.Offset, spec: Spec
) -> jax.Array:
    """Runs a backend on (q, k, v, tau, lam, q_segment_ids, kv_segment_ids), q and k normalised."""
    if implementation is not None:
        module = {
            "reference": reference,
            "xla": xla,
            "pallas_tpu": pallas_tpu,
            "interpret": pallas_tpu,
            "pallas_gpu": pallas_gpu,
        }[implementation]
        reason = _uncovered(module, arguments, q_offset, spec)
        if reason:
            raise ValueError(f"implementation={implementation!r} does not cover this: {reason}")
        tuning = {"interpret": True} if implementation == "interpret" else {}
        return module.tda(*arguments, q_offset, spec, **tuning)

    def run(module: ModuleType):
        return lambda *arguments: module.tda(*arguments, q_offset, spec)

    platforms: dict[str, ModuleType] = {"tpu": pallas_tpu}
    if _hopper_or_absent():
        platforms["cuda"] = pallas_gpu
    kernels = {
        platform: run(module)
        for platform, module in platforms.items()
        if not _uncovered(module, arguments, q_offset, spec)
    }
    if not kernels:
        return run(xla)(*arguments)
    return lax.platform_dependent(*arguments, default=run(xla), **kernels)


def _hopper_or_absent() -> bool:
    """False if the GPU here is none of the only generation the GPU kernels are written for."""
    if jax.default_backend() != "gpu":
        return True  # nothing runs here; what is lowered for CUDA is lowered for Hopper
    return str(getattr(jax.devices()[0], "compute_capability", "")).startswith("9.")


def _static_offset(T: int, S: int, q_offset: masks.Offset) -> int | jax.Array:
    """An int where the offset is one known number, which is what kernels cover."""
    offset = masks.resolve_offset(T, S, q_offset)
    if isinstance(offset, int) or isinstance(offset, Tracer) or offset.ndim:
        return offset
    return int(offset)


def _uncovered(module: Any, arguments: Any, q_offset: masks.Offset, spec: Spec) -> str:
    q, k, v, _, _, q_ids, kv_ids = arguments
    return module.covers(
        q, k, v, q_segment_ids=q_ids, kv_segment_ids=kv_ids, q_offset=q_offset, spec=spec
    )


def check(
    q: Any, k: Any, v: Any, lam: Any, q_ids: Any, kv_ids: Any, q_offset: Any, implementation: Any
) -> None:
    """ValueError naming the first argument whose shape, dtype or value is not allowed."""
    if implementation is not None and implementation not in TDA_IMPLEMENTATIONS:
        raise ValueError(
            f"implementation={implementation!r} is not None or one of "
            + ", ".join(TDA_IMPLEMENTATIONS)
        )
    if q.ndim != 5 or q.shape[0] != 2:
        raise ValueError(f"q has shape {q.shape}, expected [2, B, T, H, D]")
    _, B, T, H, D = q.shape
    if k.ndim != 5 or (*k.shape[:2], k.shape[4]) != (2, B, D):
        raise ValueError(f"k has shape {k.shape}, expected [2, {B}, S, Hkv, {D}] to match q")
    _, _, S, heads, _ = k.shape
    if v.ndim != 4 or v.shape[:3] != (B, S, heads):
        raise ValueError(f"v has shape {v.shape}, expected [{B}, {S}, {heads}, Dv] to match k")
    for name, x in (("q", q), ("k", k), ("v", v)):
        if 0 in x.shape:
            raise ValueError(f"{name} has shape {x.shape}: no dimension may be empty")
    if H % heads:
        raise ValueError(f"q has H={H} heads, which is not a multiple of the Hkv={heads} of k")
    if not jnp.issubdtype(q.dtype, jnp.floating):
        raise ValueError(f"q has dtype {q.dtype}, expected a floating dtype")
    for name, x in (("k", k), ("v", v)):
        if x.dtype != q.dtype:
            raise ValueError(f"{name} has dtype {x.dtype}, but q has {q.dtype}: they must agree")
    if lam.shape != (H,):
        raise ValueError(f"lam has shape {lam.shape}, expected [{H}], one value per head")
    if (q_ids is None) != (kv_ids is None):
        name = "q_segment_ids" if q_ids is None else "kv_segment_ids"
        raise ValueError(f"{name} is missing: give both segment ids or neither")
    for name, ids, length in (("q_segment_ids", q_ids, T), ("kv_segment_ids", kv_ids, S)):
        if ids is not None and ids.shape != (B, length):
            raise ValueError(f"{name} has shape {ids.shape}, expected [{B}, {length}]")
        if ids is not None and not jnp.issubdtype(ids.dtype, jnp.integer):
            raise ValueError(f"{name} has dtype {ids.dtype}, expected integers")
    if isinstance(q_offset, jax.Array | np.ndarray) and (
        q_offset.shape not in ((), (B,)) or not jnp.issubdtype(q_offset.dtype, jnp.integer)
    ):
        raise ValueError(
            f"q_offset has shape {q_offset.shape} and dtype {q_offset.dtype}, expected an int or "
            f"integers [{B}]"
        )


def check_knobs(heads: int, beta: Scalar, kappa: Scalar, p: int | float) -> None:
    """ValueError for p < 1, for beta or kappa of a wrong shape, or <= 0 where that is known."""
    if not p >= 1:
        raise ValueError(f"p={p} is below 1")
    for name, x in (("beta", beta), ("kappa", kappa)):
        if np.shape(x) not in ((), (heads,)):
            raise ValueError(f"{name} has shape {np.shape(x)}, expected a scalar or [{heads}]")
        if not isinstance(x, Tracer) and not np.all(np.asarray(x) > 0):
            raise ValueError(f"{name}={x} must be > 0")
