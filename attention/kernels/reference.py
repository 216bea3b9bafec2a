# SPDX-License-Identifier: Apache-2.0
"""Dense backend: the equation written down, differentiated by JAX, float64-able under x64.

Holds [2, B, H, T, S] at once. For checks and for looking at maps, not for long texts.
"""

from typing import Any

import jax
import jax.numpy as jnp

from attention import masks
from attention.kernels import Spec, power


def covers(
    q: Any, k: Any, v: Any, *, q_segment_ids: Any, kv_segment_ids: Any, q_offset: Any, spec: Spec
) -> str:
    """Covers everything."""
    return ""


def maps(
    q: jax.Array,
    k: jax.Array,
    tau: jax.Array,
    q_segment_ids: masks.Ids,
    kv_segment_ids: masks.Ids,
    q_offset: masks.Offset,
    spec: Spec,
) -> jax.Array:
    """Weights of both views, w = max(s - tau, 0) ** p, [2, B, H, T, S]; arguments as in `tda`."""
    dtype = jnp.promote_types(q.dtype, jnp.float32)
    group = q.shape[3] // k.shape[3]
    keys = jnp.repeat(k.astype(dtype), group, axis=3)
    s = jnp.einsum("vbthd,vbshd->vbhts", q.astype(dtype), keys, precision="highest")
    mask = masks.visible(
        q.shape[2],
        k.shape[2],
        causal=spec.causal,
        q_segment_ids=q_segment_ids,
        kv_segment_ids=kv_segment_ids,
        q_offset=q_offset,
    )[None, :, None]
    excess = s - tau.astype(dtype)[None, ..., None]
    # The mask comes after the rectifier: a masked key must be 0 whatever the sign of tau.
    return power(jnp.where(mask & ~(excess <= 0), excess, 0), spec.p)


def tda(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    tau: jax.Array,
    lam: jax.Array,
    q_segment_ids: masks.Ids,
    kv_segment_ids: masks.Ids,
    q_offset: masks.Offset,
    spec: Spec,
) -> jax.Array:
    """Output [B, T, H, Dv] in v's dtype; the contract is in attention/kernels/__init__.py."""
    w = maps(q, k, tau, q_segment_ids, kv_segment_ids, q_offset, spec)
    a = w[0] - lam.astype(w.dtype)[None, :, None, None] * w[1]
    values = jnp.repeat(v.astype(w.dtype), q.shape[3] // k.shape[3], axis=2)
    return jnp.einsum("bhts,bshd->bthd", a, values, precision="highest").astype(v.dtype)
