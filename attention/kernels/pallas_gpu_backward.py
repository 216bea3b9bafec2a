# SPDX-License-Identifier: Apache-2.0
"""Gradients of the Mosaic GPU backend: two kernels over live tiles only.

With G = dL/do, dP = G v^T and phi(e) = e^p, tile by tile and recomputing the scores:

    dS1 = dP phi'(e1)     dS2 = -lam dP phi'(e2)     dQ_t = dS_t K_t     dK_t = dS_t^T Q_t
    dV = (phi(e1) - lam phi(e2))^T G     dtau_i = -sum_j (dS1 + dS2)_ij
    dlam = -sum_ij dP_ij phi(e2)_ij

There is no log-sum-exp and no row preprocessing. Lists of live tiles, made outside from the flags
of the forward pass, drive both kernels. In `tda_dq` a block owns 128 rows, 64 for each computing
warpgroup, and walks the key tiles that are live for either (10 d FLOP per visited pair). In
`tda_dkv` it owns 64 keys of a key head and walks the live row tiles of all its query heads, so
that the sum over the group stays in float32 registers; the two warpgroups take one view each,
which fits the registers at head size 128 but computes dP twice and dV in two halves (16 d instead
of 12 d).
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

from attention.kernels import Spec, hopper, mosaic, power
from attention.kernels.mosaic import ROWS, WARPGROUPS

BLOCK_ROWS = WARPGROUPS * ROWS
TILE = (ROWS, ROWS)
ALONG, ACROSS = plgpu.Layout.WGMMA.reduce(1), plgpu.Layout.WGMMA.reduce(0)


def backward(operands: Any, lam: jax.Array, g: jax.Array, live: jax.Array, static: Any) -> Any:
    """Gradients of padded operands: dq, dk, dv, dtau, and dlam [B, H] of every sequence.

    Args:
        operands: q, k, v, tau and ids as `pallas_gpu.pad` leaves them.
        g: [B, T, H, Dv], dL/do.
        live: bool [B, H, T/64, S/keys], live tiles of the forward pass.
    """
    q, k, v, tau, ids = operands
    by_rows, by_keys = live_lists(fine(live, static), k.shape[3])
    q_ids, kv_ids = (None, None) if ids is None else ids
    inputs = dict(q=q.reshape(-1, *q.shape[2:]), k=k.reshape(-1, *k.shape[2:]), v=v, tau=tau)
    inputs |= dict(lam=lam, g=g, q_ids=q_ids, kv_ids=kv_ids)
    dq, dtau, dlam = dq_kernel(inputs, by_rows, static)
    dk, dv = dkv_kernel(inputs, by_keys, static)
    return dq.reshape(q.shape), dk.reshape(k.shape), dv, dtau, jnp.sum(dlam, axis=2)


def fine(live: jax.Array, static: Any) -> jax.Array:
    """Flags of tiles of 64 x 64, from those of 64 x keys."""
    _, offset, tiles, _ = static
    live = jnp.repeat(live, tiles.keys // ROWS, axis=-1)
    visible = hopper.visible_tiles(live.shape[2], live.shape[3], ROWS, offset)
    return live & jnp.broadcast_to(visible, live.shape)


def live_lists(live: jax.Array, heads: int) -> tuple[Any, Any]:
    """Live tiles of 64 x 64 as (counts, indices): what each block of the two kernels visits.

    Args:
        live: bool [B, H, T/64, S/64].
        heads: key heads.

    Returns:
        Key tiles live for some of 128 rows, [B, H, T/128] and [.., S/64]; row tiles of the group,
        n-th of the group * T/64 + row tile, live for 64 keys, [B, Hkv, S/64] and [.., G T/64].
    """
    B, H, num_q, num_kv = live.shape
    by_rows = live.reshape(B, H, num_q // WARPGROUPS, WARPGROUPS, num_kv).any(axis=3)
    by_keys = jnp.moveaxis(live.reshape(B, heads, H // heads, num_q, num_kv), -1, 2)
    by_keys = by_keys.reshape(B, heads, num_kv, -1)
    return hopper.compact(by_rows), hopper.compact(by_keys)


def masked(
    x: jax.Array, first: Any, first_key: Any, rows_axis: int, ids: Any, offset: int | None
) -> jax.Array:
    """Masks scores minus thresholds of a tile.

    Args:
        rows_axis: axis of the query rows.
        ids: segment ids along rows and along keys, or None.
    """
    if offset is None and ids is None:
        return x

    def mask(x: jax.Array) -> jax.Array:
        rows = mosaic.iota(TILE, rows_axis) + first
        cols = mosaic.iota(TILE, 1 - rows_axis) + first_key
        pair: Any = (None, None)
        if ids is not None:
            spread_q = mosaic.spread(ids[0], TILE, rows_axis)
            pair = (spread_q, mosaic.spread(ids[1], TILE, 1 - rows_axis))
        return hopper.mask_tile(x, rows, cols, pair[0], pair[1], offset)

    if ids is not None or offset is None:
        return mask(x)
    return lax.cond(hopper.crosses(first, first_key, ROWS, offset), mask, lambda x: x, x)


class _Plan(NamedTuple):
    """What a backward kernel is compiled for."""

    spec: Spec
    offset: int | None
    stages: int
    B: int
    group: int
    blocks: int  # of rows: of 128 in dq, tiles of 64 in dkv


def dq_kernel(inputs: dict[str, Any], lists: Any, static: Any) -> Any:
    """dq [2 B, T, H, D], dtau [B, H, T] and the rows of dlam [B, H, T]."""
    spec, offset, tiles, interpret = static
    q, v, segments = inputs["q"], inputs["v"], inputs["q_ids"] is not None
    (B, S, heads, Dv), (T, H, D) = v.shape, q.shape[1:]
    stages = max(1, min(tiles.stages_dq, S // ROWS))
    plan = _Plan(spec, offset, stages, B, H // heads, T // BLOCK_ROWS)
    row = jax.ShapeDtypeStruct((B, H, T), jnp.float32)
    return mosaic.launch(
        partial(_dq_body, plan),
        name="tda_dq",
        inputs=inputs | dict(counts=lists[0], index=lists[1]),
        outputs=dict(dq=jax.ShapeDtypeStruct(q.shape, q.dtype), dtau=row, dlam=row),
        scratch=dict(
            q_smem=mosaic.operand((WARPGROUPS, 2, ROWS, D), v.dtype),
            g_smem=mosaic.operand((WARPGROUPS, ROWS, Dv), v.dtype),
            # Not [stages, 2, ..]: jax 0.11 and 0.12 cannot lower run_state with a literal index.
            k_smem=mosaic.operand((stages * 2, ROWS, D), v.dtype),
            v_smem=mosaic.operand((stages, ROWS, Dv), v.dtype),
            tau_smem=mosaic.rows((WARPGROUPS, ROWS)),
            row_smem=mosaic.rows((WARPGROUPS, ROWS)),
            q_ready=plgpu.Barrier(num_arrivals=4 + segments, num_barriers=WARPGROUPS),
            ready=plgpu.Barrier(num_arrivals=3 + segments, num_barriers=stages),
            free=plgpu.Barrier(num_arrivals=WARPGROUPS, num_barriers=stages),
            q_ids_smem=mosaic.rows((WARPGROUPS, ROWS), jnp.int32) if segments else None,
            kv_ids_smem=mosaic.rows((stages, ROWS), jnp.int32) if segments else None,
            spill=mosaic.rows((WARPGROUPS, *TILE), v.dtype) if interpret else None,
        ),
        grid=(H, plan.blocks, B),
        grid_names=("heads", "rows", "batch"),
        interpret=interpret,
    )


def _dq_body(plan: _Plan, refs: Any) -> None:
    b, h, wg = lax.axis_index("batch"), lax.axis_index("heads"), lax.axis_index("wg")
    i = plan.blocks - 1 - lax.axis_index("rows")
    count = refs.counts[b, h, i]
    first_key = lambda n: refs.index[b, h, i, n] * ROWS
    pl.when(wg < WARPGROUPS)(lambda: _dq_compute(plan, refs, b, h, i, wg, count, first_key))

    @pl.when(wg == WARPGROUPS)
    def _copy() -> None:
        plgpu.set_max_registers(40, action="decrease")
        head = lax.div(h, jnp.int32(plan.group))

        def start(n: jax.Array, slot: jax.Array, wait: bool) -> None:
            own = pl.ds(first_key(n), ROWS)
            copies = [
                (refs.k.at[t * plan.B + b, own, head], refs.k_smem.at[2 * slot + t])
                for t in range(2)
            ]
            copies += [(refs.v.at[b, own, head], refs.v_smem.at[slot])]
            if refs.kv_ids is not None:
                copies += [(refs.kv_ids.at[b, own], refs.kv_ids_smem.at[slot])]
            if wait:
                plgpu.barrier_wait(refs.free.at[slot])
            mosaic.fetch(copies, refs.ready.at[slot])

        mosaic.ring(plan.stages, count, start, lambda slot: plgpu.barrier_wait(refs.free.at[slot]))


def _dq_compute(
    plan: _Plan, refs: Any, b: Any, h: Any, i: Any, wg: Any, count: Any, first_key: Any
) -> None:
    """64 rows of one head: fetch them, walk the listed key tiles, store their gradients."""
    plgpu.set_max_registers(232, action="increase")
    first, dtype, segments = i * BLOCK_ROWS + wg * ROWS, refs.dq.dtype, refs.q_ids is not None
    own = pl.ds(first, ROWS)
    copies = [(refs.q.at[t * plan.B + b, own, h], refs.q_smem.at[wg, t]) for t in range(2)]
    copies += [(refs.g.at[b, own, h], refs.g_smem.at[wg])]
    copies += [(refs.tau.at[b, h, own], refs.tau_smem.at[wg])]
    if segments:
        copies += [(refs.q_ids.at[b, own], refs.q_ids_smem.at[wg])]
    mosaic.fetch(copies, refs.q_ready.at[wg])
    plgpu.barrier_wait(refs.q_ready.at[wg])
    tau = mosaic.spread(mosaic.load(refs.tau_smem.at[wg], ALONG), TILE, 0)
    q_ids = mosaic.load(refs.q_ids_smem.at[wg], ALONG) if segments else None
    coefficients = (1.0, -refs.lam[h])

    def step(n: jax.Array, carry: Any) -> Any:
        *dqs, dtau, dlam = carry
        slot, at = lax.rem(n, jnp.int32(plan.stages)), first_key(n)
        plgpu.barrier_wait(refs.ready.at[slot])
        ids = (q_ids, mosaic.load(refs.kv_ids_smem.at[slot], ACROSS)) if segments else None
        dp: Any = None
        for t in range(2):
            k = refs.k_smem.at[2 * slot + t]
            if t == 0:
                gv = (refs.g_smem.at[wg], refs.v_smem.at[slot])
                dp, s = mosaic.products(gv, (refs.q_smem.at[wg, t], k))
            else:
                (s,) = mosaic.products((refs.q_smem.at[wg, t], k))
            e = hopper.rectify(masked(s - tau, first, at, 0, ids, plan.offset))
            ds = hopper.score_gradients(dp, e, coefficients[t], plan.spec.p)
            dtau = dtau - jnp.sum(ds, axis=1)
            if t == 1:
                dlam = dlam - jnp.sum(dp * power(e, plan.spec.p), axis=1)
            term = (dqs[t], ds.astype(dtype), k)
            dqs[t] = mosaic.accumulate(term, spill=refs.spill, wg=wg)[0]
        if segments:
            plgpu.commit_smem()  # read by threads, to be written by TMA
        plgpu.barrier_arrive(refs.free.at[slot])
        return *dqs, dtau, dlam

    tile, row = mosaic.zeros((ROWS, refs.dq.shape[-1])), mosaic.zeros((ROWS,), ALONG)
    *dqs, dtau, dlam = lax.fori_loop(jnp.int32(0), count, step, (tile, tile, row, row))
    for t in range(2):
        refs.q_smem.at[wg, t][...] = dqs[t].astype(dtype)
    refs.tau_smem.at[wg][...] = dtau
    refs.row_smem.at[wg][...] = dlam
    plgpu.commit_smem()
    for t in range(2):
        plgpu.copy_smem_to_gmem(refs.q_smem.at[wg, t], refs.dq.at[t * plan.B + b, own, h])
    plgpu.copy_smem_to_gmem(refs.tau_smem.at[wg], refs.dtau.at[b, h, own])
    plgpu.copy_smem_to_gmem(refs.row_smem.at[wg], refs.dlam.at[b, h, own])
    plgpu.wait_smem_to_gmem(0)


def dkv_kernel(inputs: dict[str, Any], lists: Any, static: Any) -> Any:
    """dk [2 B, S, Hkv, D] and dv [B, S, Hkv, Dv]."""
    spec, offset, tiles, interpret = static
    q, k, v, segments = (*(inputs[x] for x in "qkv"), inputs["q_ids"] is not None)
    (B, S, heads, Dv), (T, H, D) = v.shape, q.shape[1:]
    stages = tiles.stages_dkv
    plan = _Plan(spec, offset, stages, B, H // heads, T // ROWS)
    return mosaic.launch(
        partial(_dkv_body, plan),
        name="tda_dkv",
        inputs=inputs | dict(counts=lists[0], index=lists[1]),
        outputs=dict(
            dk=jax.ShapeDtypeStruct(k.shape, k.dtype), dv=jax.ShapeDtypeStruct(v.shape, v.dtype)
        ),
        scratch=dict(
            k_smem=mosaic.operand((2, ROWS, D), v.dtype),
            v_smem=mosaic.operand((ROWS, Dv), v.dtype),
            sum_smem=mosaic.operand((ROWS, Dv), jnp.float32),
            q_smem=mosaic.operand((stages, 2, ROWS, D), v.dtype),
            g_smem=mosaic.operand((stages, ROWS, Dv), v.dtype),
            tau_smem=mosaic.rows((stages, ROWS)),
            k_ready=plgpu.Barrier(num_arrivals=3 + segments),
            ready=plgpu.Barrier(num_arrivals=4 + segments, num_barriers=stages),
            free=plgpu.Barrier(num_arrivals=WARPGROUPS, num_barriers=stages),
            joined=plgpu.Barrier(),
            q_ids_smem=mosaic.rows((stages, ROWS), jnp.int32) if segments else None,
            kv_ids_smem=mosaic.rows((ROWS,), jnp.int32) if segments else None,
            spill=mosaic.rows((WARPGROUPS, *TILE), v.dtype) if interpret else None,
        ),
        grid=(heads, S // ROWS, B),
        grid_names=("heads", "keys", "batch"),
        interpret=interpret,
    )


def _dkv_body(plan: _Plan, refs: Any) -> None:
    b, head, wg = lax.axis_index("batch"), lax.axis_index("heads"), lax.axis_index("wg")
    j = lax.axis_index("keys")  # the first keys are seen by most rows and start first
    own, count = pl.ds(j * ROWS, ROWS), refs.counts[b, head, j]

    def tile_of(n: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Query head and first row of the n-th live tile."""
        at, blocks = refs.index[b, head, j, n], jnp.int32(plan.blocks)
        return head * plan.group + lax.div(at, blocks), lax.rem(at, blocks) * ROWS

    pl.when(wg < WARPGROUPS)(lambda: _dkv_compute(plan, refs, b, head, j, wg, count, tile_of))

    @pl.when(wg == WARPGROUPS)
    def _copy() -> None:
        plgpu.set_max_registers(40, action="decrease")
        copies = [(refs.k.at[t * plan.B + b, own, head], refs.k_smem.at[t]) for t in range(2)]
        copies += [(refs.v.at[b, own, head], refs.v_smem)]
        if refs.kv_ids is not None:
            copies += [(refs.kv_ids.at[b, own], refs.kv_ids_smem)]
        mosaic.fetch(copies, refs.k_ready)

        def start(n: jax.Array, slot: jax.Array, wait: bool) -> None:
            h, first = tile_of(n)
            rows = pl.ds(first, ROWS)
            copies = [
                (refs.q.at[t * plan.B + b, rows, h], refs.q_smem.at[slot, t]) for t in range(2)
            ]
            copies += [(refs.g.at[b, rows, h], refs.g_smem.at[slot])]
            copies += [(refs.tau.at[b, h, rows], refs.tau_smem.at[slot])]
            if refs.q_ids is not None:
                copies += [(refs.q_ids.at[b, rows], refs.q_ids_smem.at[slot])]
            if wait:
                plgpu.barrier_wait(refs.free.at[slot])
            mosaic.fetch(copies, refs.ready.at[slot])

        mosaic.ring(plan.stages, count, start, lambda slot: plgpu.barrier_wait(refs.free.at[slot]))


def _dkv_compute(
    plan: _Plan, refs: Any, b: Any, head: Any, j: Any, wg: Any, count: Any, tile_of: Any
) -> None:
    """View wg of 64 keys: walk the listed row tiles, join dv of both views, store."""
    plgpu.set_max_registers(232, action="increase")
    own, dtype, segments = pl.ds(j * ROWS, ROWS), refs.dk.dtype, refs.q_ids is not None
    plgpu.barrier_wait(refs.k_ready)
    kv_ids = mosaic.load(refs.kv_ids_smem, ALONG) if segments else None

    def step(n: jax.Array, carry: Any) -> Any:
        dk, dv = carry
        slot = lax.rem(n, jnp.int32(plan.stages))
        h, first = tile_of(n)
        coefficient = jnp.where(wg == 0, 1.0, -refs.lam[h])
        plgpu.barrier_wait(refs.ready.at[slot])
        s, dp = mosaic.products(
            (refs.k_smem.at[wg], refs.q_smem.at[slot, wg]), (refs.v_smem, refs.g_smem.at[slot])
        )
        tau = mosaic.spread(mosaic.load(refs.tau_smem.at[slot], ACROSS), TILE, 1)
        ids = (mosaic.load(refs.q_ids_smem.at[slot], ACROSS), kv_ids) if segments else None
        e = hopper.rectify(masked(s - tau, first, j * ROWS, 1, ids, plan.offset))
        w = hopper.weights(e, coefficient, plan.spec.p).astype(dtype)
        ds = hopper.score_gradients(dp, e, coefficient, plan.spec.p).astype(dtype)
        terms = (dk, ds, refs.q_smem.at[slot, wg]), (dv, w, refs.g_smem.at[slot])
        carry = mosaic.accumulate(*terms, spill=refs.spill, wg=wg)
        plgpu.commit_smem()  # tau was read by threads and will be written by TMA
        plgpu.barrier_arrive(refs.free.at[slot])
        return carry

    start = (mosaic.zeros((ROWS, refs.dk.shape[-1])), mosaic.zeros((ROWS, refs.dv.shape[-1])))
    dk, dv = lax.fori_loop(jnp.int32(0), count, step, start)
    refs.k_smem.at[wg][...] = dk.astype(dtype)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(refs.k_smem.at[wg], refs.dk.at[wg * plan.B + b, own, head])

    @pl.when(wg == 1)
    def _give() -> None:
        refs.sum_smem[...] = dv
        plgpu.commit_smem()
        plgpu.barrier_arrive(refs.joined)

    @pl.when(wg == 0)
    def _join() -> None:
        plgpu.barrier_wait(refs.joined)  # the other warpgroup has read its last of v, too
        other = mosaic.load(refs.sum_smem, plgpu.Layout.WGMMA)
        refs.v_smem[...] = (dv + other).astype(dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(refs.v_smem, refs.dv.at[b, own, head])

    plgpu.wait_smem_to_gmem(0)
