# SPDX-License-Identifier: Apache-2.0
"""Backends of threshold differential attention, all behind one contract.

Every module has

    covers(q, k, v, *, q_segment_ids, kv_segment_ids, q_offset, spec) -> str
        "" if the backend computes this case, else one sentence that says why not; arrays or
        ShapeDtypeStructs.
    tda(q, k, v, tau, lam, q_segment_ids, kv_segment_ids, q_offset, spec, **tuning) -> o

with q [2, B, T, H, D] and k [2, B, S, Hkv, D] of unit norm (two views), v [B, S, Hkv, Dv],
tau float32 [B, H, T], lam float32 [H], segment ids int32 [B, T] and [B, S] or both None,
q_offset an int (or int32 [B] where covered), o [B, T, H, Dv]. With e = max(q.k - tau, 0) where
visible and 0 elsewhere:

    o_i = sum_j (e1_ij ** p - lam * e2_ij ** p) v_j

A weight is 0 where q.k - tau <= 0 and nowhere else: NaN in q or k is NaN in every row that sees it,
and tiles that hold it are not skipped. Comparisons with NaN are False, so code asks for `<= 0`,
and of every entry: XLA's maximum over an array drops NaN on CPUs.

Differentiable in q, k, v, tau and lam. Query head h reads key head h // (H / Hkv).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Spec(NamedTuple):
    """What is compiled in; hashable.

    causal: row i sees keys up to i + q_offset.
    p: power of the rectifier, >= 1; the paper uses 2 [secondary].
    skip: whether tiles without a survivor are left out (never changes a bit of the result).
    """

    causal: bool
    p: int | float
    skip: bool = True


def rounding_margin(dim: int) -> float:
    """How far two float32 products of unit vectors may be apart that add in different orders.

    Each is off by dim * 2^-23 at most, with the truncating sums of tensor cores too. A tile whose
    scores all stay this far under their thresholds has no survivor in any kernel.
    """
    return dim * 2.0**-22


def power(e: jax.Array, p: int | float) -> jax.Array:
    """e ** p for p >= 1 and e >= 0 or NaN; integers by multiplication, no transcendental."""
    if p == int(p):
        result = e
        for _ in range(int(p) - 1):
            result = result * e
        # The select keeps compilers from fusing the last product into the difference of the views
        # (one rounding less on one side): equal views with lam = 1 must cancel exactly.
        return result if p == 1 else jnp.where(e <= 0, 0, result)
    return jnp.where(e <= 0, 0.0, jnp.exp(p * jnp.log(jnp.where(e <= 0, 1.0, e)))).astype(e.dtype)


def power_slope(e: jax.Array, p: int | float) -> jax.Array:
    """Derivative of max(x, 0) ** p at a point where the rectified value is e; 0 where e is 0."""
    if p == 1:
        return jnp.where(e <= 0, 0.0, 1.0).astype(e.dtype)
    if p == int(p):
        return p * power(e, int(p) - 1)
    slope = p * jnp.exp((p - 1) * jnp.log(jnp.where(e <= 0, 1.0, e)))
    return jnp.where(e <= 0, 0.0, slope).astype(e.dtype)
