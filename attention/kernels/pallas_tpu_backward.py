# SPDX-License-Identifier: Apache-2.0
"""Backward kernels of the Pallas TPU backend; scores are recomputed, nothing is saved but bits.

With G = dL/do, dP = G v^T and phi'(e) = p e^(p-1) where e > 0 (per head, both views t):

    dS1 = dP phi'(e1)      dS2 = -lam dP phi'(e2)
    dq_t = dS_t k_t        dk_t = dS_t^T q_t        dv = (w1 - lam w2)^T G
    dtau = -sum_j (dS1 + dS2)                       dlam = -sum_ij dP w2

One kernel walks the key blocks of a query block (dq, dtau, dlam), the other the query blocks of a
key block, over all query heads that share it (dk, dv summed over the group in float32). The second
works on transposed tiles, so that no tile is ever transposed in registers.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from attention.kernels import pallas_tpu_tiles as tiles
from attention.kernels import power, power_slope
from attention.kernels.pallas_tpu_tiles import LANES, Plan


def _lanes(plan: Plan) -> int:
    """Width of the partial sums of a row."""
    return LANES if plan.block_kv % LANES == 0 else plan.block_kv


def _fold(x: jax.Array, lanes: int) -> jax.Array:
    """Sums groups of lanes: [n, m] to [n, lanes]. The sum across lanes is left to the end."""
    return sum(x[:, at : at + lanes] for at in range(lanes, x.shape[1], lanes)) + x[:, :lanes]


def _guarded(plan: Plan, x: list[jax.Array], accumulate: Any) -> None:
    """Runs accumulate; without a bitmap only where the scores say that the tile is live."""
    if plan.skip and not plan.bitmap:
        pl.when(tiles.is_live(plan, x))(accumulate)
    else:
        accumulate()


def _dq_kernel(plan: Plan, *refs: Any) -> None:
    """One tile of dq, dtau and dlam."""
    words, refs = (refs[0], refs[1:]) if plan.bitmap else (None, refs)
    (q, k, v, tau, lam, g), refs = refs[:6], refs[6:]
    num_ids = 2 if plan.segments else 0
    ids, refs = refs[:num_ids], refs[num_ids:]
    dq, dtau, dlam, dq_sum, dtau_sum, dlam_sum, tau_column, *ids_column = refs
    b, h, i, j = (pl.program_id(axis) for axis in range(4))

    @pl.when(j == 0)
    def _():
        for total in (dq_sum, dtau_sum, dlam_sum):
            total[...] = jnp.zeros_like(total)
        tau_column[...] = tiles.column(tau[...])
        if plan.segments:
            ids_column[0][...] = tiles.column(ids[0][...])

    @pl.when(_row_visits(plan, words, b, h, i, j))
    def _():
        q_ids = ids_column[0][...] if plan.segments else None
        kv_ids = ids[1][...] if plan.segments else None
        x = tiles.over_threshold(plan, i, j, q, k, tau_column[...], q_ids, kv_ids, keys_first=False)

        def accumulate() -> None:
            e = [jnp.maximum(view, 0.0) for view in x]
            dp = tiles.dot(plan, g[...], v[...], (1, 1))
            ds = [dp * power_slope(e[0], plan.p), -lam[h] * dp * power_slope(e[1], plan.p)]
            for view in range(2):
                dq_sum[view] += tiles.dot(plan, ds[view].astype(k.dtype), k[view], (1, 0))
            lanes = _lanes(plan)
            dtau_sum[...] -= _fold(ds[0] + ds[1], lanes)
            dlam_sum[...] -= _fold(dp * power(e[1], plan.p), lanes)

        _guarded(plan, x, accumulate)

    @pl.when(j == plan.num_kv - 1)
    def _():
        dq[...] = dq_sum[...].astype(dq.dtype)
        dtau[...] = jnp.sum(jnp.transpose(dtau_sum[...]), axis=0, keepdims=True)
        dlam[...] = jnp.sum(jnp.transpose(dlam_sum[...]), axis=0, keepdims=True)


def _row_start(plan: Plan, b: Any, h: Any, i: Any) -> Any:
    return ((b * plan.H + h) * plan.num_q + i) * tiles.words_of(plan.num_kv)


def _row_visits(plan: Plan, words: Any, b: Any, h: Any, i: Any, j: Any) -> jax.Array:
    """Whether the row walk computes tile (i, j)."""
    if words is not None:
        return tiles.is_set(words, _row_start(plan, b, h, i), j)
    return j <= tiles.last_kv(plan, i)


def run_dq(
    plan: Plan, inputs: Any, lam: jax.Array, g: jax.Array, words: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """dq [2, B, H, T, D] in q's dtype, and per row dtau, dlam float32 [B, H, 1, T].

    Args:
        inputs: as made by pallas_tpu.operands; g: [B, H, T, Dv].
        words: bitmap packed along keys, if plan.bitmap.
    """
    q, k, v, tau, *ids = inputs
    bq, bk = plan.block_q, plan.block_kv

    def kv(b: Any, h: Any, i: Any, j: Any, prefetched: Any) -> jax.Array:
        if prefetched:
            return tiles.nearest_set(prefetched[0], _row_start(plan, b, h, i), j)
        return jnp.minimum(j, tiles.last_kv(plan, i))

    def kv_head(h: Any) -> jax.Array:
        return tiles.divide(h, plan.group)

    in_specs = [
        pl.BlockSpec((2, None, None, bq, plan.D), lambda b, h, i, j, *w: (0, b, h, i, 0)),
        pl.BlockSpec(
            (2, None, None, bk, plan.D),
            lambda b, h, i, j, *w: (0, b, kv_head(h), kv(b, h, i, j, w), 0),
        ),
        pl.BlockSpec(
            (None, None, bk, plan.Dv),
            lambda b, h, i, j, *w: (b, kv_head(h), kv(b, h, i, j, w), 0),
        ),
        pl.BlockSpec((None, None, 1, bq), lambda b, h, i, j, *w: (b, h, 0, i)),
        tiles.scalars(),
        pl.BlockSpec((None, None, bq, plan.Dv), lambda b, h, i, j, *w: (b, h, i, 0)),
    ]
    rows = pl.BlockSpec((None, None, 1, bq), lambda b, h, i, j, *w: (b, h, 0, i))
    scratch: list[Any] = [
        pltpu.VMEM((2, bq, plan.D), jnp.float32),
        pltpu.VMEM((bq, _lanes(plan)), jnp.float32),
        pltpu.VMEM((bq, _lanes(plan)), jnp.float32),
        pltpu.VMEM((bq, 1), jnp.float32),
    ]
    if plan.segments:
        in_specs += [
            pl.BlockSpec((None, 1, bq), lambda b, h, i, j, *w: (b, 0, i)),
            pl.BlockSpec((None, 1, bk), lambda b, h, i, j, *w: (b, 0, kv(b, h, i, j, w))),
        ]
        scratch.append(pltpu.VMEM((bq, 1), jnp.int32))
    prefetched = [] if words is None else [words]
    per_row = jax.ShapeDtypeStruct(tau.shape, jnp.float32)
    return pl.pallas_call(
        partial(_dq_kernel, plan),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(prefetched),
            grid=(plan.B, plan.H, plan.num_q, plan.num_kv),
            in_specs=in_specs,
            out_specs=[in_specs[0], rows, rows],
            scratch_shapes=scratch,
        ),
        out_shape=[jax.ShapeDtypeStruct(q.shape, q.dtype), per_row, per_row],
        compiler_params=tiles.compiler_params("parallel", "parallel", "parallel", "arbitrary"),
        interpret=plan.interpret,
        name="tda_dq",
    )(*prefetched, q, k, v, tau, lam, g, *ids)


def _dkv_kernel(plan: Plan, *refs: Any) -> None:
    """One transposed tile of dk and dv."""
    words, refs = (refs[0], refs[1:]) if plan.bitmap else (None, refs)
    (q, k, v, tau, lam, g), refs = refs[:6], refs[6:]
    num_ids = 2 if plan.segments else 0
    ids, refs = refs[:num_ids], refs[num_ids:]
    dk, dv, dk_sum, dv_sum, *ids_column = refs
    b, kv_head, j, member, i = (pl.program_id(axis) for axis in range(5))
    h = kv_head * plan.group + member

    @pl.when((member == 0) & (i == 0))
    def _():
        dk_sum[...] = jnp.zeros_like(dk_sum)
        dv_sum[...] = jnp.zeros_like(dv_sum)
        if plan.segments:
            ids_column[0][...] = tiles.column(ids[1][...])

    @pl.when(_key_visits(plan, words, b, h, i, j))
    def _():
        q_ids = ids[0][...] if plan.segments else None
        kv_ids = ids_column[0][...] if plan.segments else None
        x = tiles.over_threshold(plan, i, j, q, k, tau[...], q_ids, kv_ids, keys_first=True)

        def accumulate() -> None:
            e = [jnp.maximum(view, 0.0) for view in x]
            dp = tiles.dot(plan, v[...], g[...], (1, 1))
            a = power(e[0], plan.p) - lam[h] * power(e[1], plan.p)
            dv_sum[...] += tiles.dot(plan, a.astype(g.dtype), g[...], (1, 0))
            ds = [dp * power_slope(e[0], plan.p), -lam[h] * dp * power_slope(e[1], plan.p)]
            for view in range(2):
                dk_sum[view] += tiles.dot(plan, ds[view].astype(q.dtype), q[view], (1, 0))

        _guarded(plan, x, accumulate)

    @pl.when((member == plan.group - 1) & (i == plan.num_q - 1))
    def _():
        dk[...] = dk_sum[...].astype(dk.dtype)
        dv[...] = dv_sum[...].astype(dv.dtype)


def _key_start(plan: Plan, b: Any, h: Any, j: Any) -> Any:
    return ((b * plan.H + h) * plan.num_kv + j) * tiles.words_of(plan.num_q)


def _key_visits(plan: Plan, words: Any, b: Any, h: Any, i: Any, j: Any) -> jax.Array:
    """Whether the key walk computes tile (i, j)."""
    if words is not None:
        return tiles.is_set(words, _key_start(plan, b, h, j), i)
    return i >= tiles.first_q(plan, j)


def run_dkv(
    plan: Plan, inputs: Any, lam: jax.Array, g: jax.Array, words: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """dk [2, B, K, S, D] and dv [B, K, S, Dv] in the dtypes of k and v.

    Args:
        inputs: as made by pallas_tpu.operands; g: [B, H, T, Dv].
        words: bitmap packed along queries, if plan.bitmap.
    """
    q, k, v, tau, *ids = inputs
    bq, bk = plan.block_q, plan.block_kv

    def head(kv_head: Any, member: Any) -> Any:
        return kv_head * plan.group + member

    def rows(b: Any, kv_head: Any, j: Any, member: Any, i: Any, prefetched: Any) -> jax.Array:
        if prefetched:
            start = _key_start(plan, b, head(kv_head, member), j)
            return tiles.nearest_set(prefetched[0], start, i)
        return jnp.maximum(i, tiles.first_q(plan, j))

    in_specs = [
        pl.BlockSpec(
            (2, None, None, bq, plan.D),
            lambda b, c, j, m, i, *w: (0, b, head(c, m), rows(b, c, j, m, i, w), 0),
        ),
        pl.BlockSpec((2, None, None, bk, plan.D), lambda b, c, j, m, i, *w: (0, b, c, j, 0)),
        pl.BlockSpec((None, None, bk, plan.Dv), lambda b, c, j, m, i, *w: (b, c, j, 0)),
        pl.BlockSpec(
            (None, None, 1, bq),
            lambda b, c, j, m, i, *w: (b, head(c, m), 0, rows(b, c, j, m, i, w)),
        ),
        tiles.scalars(),
        pl.BlockSpec(
            (None, None, bq, plan.Dv),
            lambda b, c, j, m, i, *w: (b, head(c, m), rows(b, c, j, m, i, w), 0),
        ),
    ]
    scratch: list[Any] = [
        pltpu.VMEM((2, bk, plan.D), jnp.float32),
        pltpu.VMEM((bk, plan.Dv), jnp.float32),
    ]
    out_specs = [in_specs[1], in_specs[2]]
    if plan.segments:
        in_specs += [
            pl.BlockSpec((None, 1, bq), lambda b, c, j, m, i, *w: (b, 0, rows(b, c, j, m, i, w))),
            pl.BlockSpec((None, 1, bk), lambda b, c, j, m, i, *w: (b, 0, j)),
        ]
        scratch.append(pltpu.VMEM((bk, 1), jnp.int32))
    prefetched = [] if words is None else [words]
    return pl.pallas_call(
        partial(_dkv_kernel, plan),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(prefetched),
            grid=(plan.B, plan.K, plan.num_kv, plan.group, plan.num_q),
            in_specs=in_specs,
            out_specs=out_specs,
            scratch_shapes=scratch,
        ),
        out_shape=[
            jax.ShapeDtypeStruct(k.shape, k.dtype),
            jax.ShapeDtypeStruct(v.shape, v.dtype),
        ],
        compiler_params=tiles.compiler_params(
            "parallel", "parallel", "parallel", "arbitrary", "arbitrary"
        ),
        interpret=plan.interpret,
        name="tda_dkv",
    )(*prefetched, q, k, v, tau, lam, g, *ids)
