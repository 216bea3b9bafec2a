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
from attention.arguments import check_arguments, check_knobs, check_per_head
from attention.kernels import Spec, pallas_gpu, pallas_tpu, reference, xla

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

    Differentiable in q, k, v, lam, beta and kappa. On a mesh, inside or outside of jit, the kernels
    run on each device's own sequences and heads (attention/kernels/partition.py).

    A query that is not finite gives a row of NaN, a key that is not finite gives NaN in every row
    that sees it: a model that diverged must not go on with rows of zeros.

    Args:
        q: [2, B, T, H, D], both views; need not be normalized.
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
    check_tda_arguments(
        q,
        k,
        v,
        lam,
        beta=beta,
        kappa=kappa,
        p=p,
        q_segment_ids=q_segment_ids,
        kv_segment_ids=kv_segment_ids,
        q_offset=q_offset,
        implementation=implementation,
    )
    q = jnp.asarray(q)
    k = jnp.asarray(k)
    v = jnp.asarray(v)
    _, B, T, H, D = q.shape
    S = k.shape[2]
    q_offset = _static_offset(T, S, q_offset)
    ids = [
        None if x is None else jnp.asarray(x, jnp.int32) for x in (q_segment_ids, kv_segment_ids)
    ]
    lengths = masks.row_lengths(
        T, S, causal=causal, q_segment_ids=ids[0], kv_segment_ids=ids[1], q_offset=q_offset
    )
    sum_dtype = jnp.promote_types(v.dtype, jnp.float32)
    tau = threshold(lengths, D, beta, kappa, dtype=sum_dtype)
    tau = jnp.broadcast_to(tau, (B, H, T))
    # Rematerialized: the backward pass keeps q and k, not float32 copies of what normalizes them.
    unit_vectors = [jax.checkpoint(normalize)(x) for x in (q, k)]
    arguments = (*unit_vectors, v, tau, jnp.asarray(lam, sum_dtype), *ids)
    return dispatch(implementation, arguments, q_offset, Spec(causal=causal, p=p))


def check_tda_arguments(
    q: Any,
    k: Any,
    v: Any,
    lam: Any,
    *,
    beta: Scalar = 1.0,
    kappa: Scalar = 1.0,
    p: int | float = 2,
    **options: Any,
) -> None:
    """Raises ValueError for arguments that `tda_attention` does not take.

    Args:
        options: segment ids, q_offset and implementation, as `check_arguments` takes them.
    """
    check_arguments("tda", q, k, v, **options)
    check_per_head("lam", lam, q.shape[3])
    check_knobs("tda", {"beta": beta, "kappa": kappa, "p": p}, q.shape[3], group="")


def normalize(x: jax.Array, eps: float = 1e-12) -> jax.Array:
    """Divides rows along the last axis by their norm, in float32; returned in x's dtype.

    Rows without an entry beyond eps give 0 and a gradient of 0 [our choice]: padding must not make
    NaN. Rows with an entry that is not finite give NaN. All others have norm 1, however long they
    are: the squares are those of x / max |x|, which neither overflow nor underflow.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    # The result does not depend on this divisor, so neither does its gradient.
    largest = lax.stop_gradient(jnp.max(jnp.abs(wide), axis=-1, keepdims=True))
    # Entry by entry, for NaN must not become zeros: the maximum drops it on CPUs.
    is_zero = jnp.all(jnp.abs(wide) <= eps, axis=-1, keepdims=True)
    # Both branches of a where are differentiated, and rsqrt has no finite slope at 0.
    scaled = jnp.where(is_zero, 0.0, wide / jnp.where(is_zero, 1.0, largest))
    square = jnp.sum(scaled * scaled, axis=-1, keepdims=True)
    return (scaled * lax.rsqrt(jnp.where(is_zero, 1.0, square))).astype(x.dtype)


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
    is_short = ratio <= 1  # False for NaN, which must stay NaN
    # Both branches of a where are differentiated, and the slope of sqrt at 0 is infinite.
    root = jnp.sqrt(2 * jnp.log(jnp.where(is_short, 2.0, ratio)) / dim)
    return beta * jnp.where(is_short, 0.0, root)


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
    """Runs a backend on (q, k, v, tau, lam, q_segment_ids, kv_segment_ids), q and k normalized."""
    if implementation is not None:
        module = {
            "reference": reference,
            "xla": xla,
            "pallas_tpu": pallas_tpu,
            "interpret": pallas_tpu,
            "pallas_gpu": pallas_gpu,
        }[implementation]
        reason = _why_not(module, arguments, q_offset, spec)
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
        if not _why_not(module, arguments, q_offset, spec)
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


def _why_not(module: Any, arguments: Any, q_offset: masks.Offset, spec: Spec) -> str:
    """Why a backend does not cover this case, "" where it does."""
    q, k, v, _, _, q_ids, kv_ids = arguments
    return module.covers(
        q, k, v, q_segment_ids=q_ids, kv_segment_ids=kv_ids, q_offset=q_offset, spec=spec
    )
