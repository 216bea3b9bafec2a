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

from typing import Any

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

from attention.kernels import hopper, mosaic, power
from attention.kernels.mosaic import ROWS, WARPGROUPS

BLOCK_ROWS = WARPGROUPS * ROWS
TILE = (ROWS, ROWS)
ALONG, ACROSS = plgpu.Layout.WGMMA.reduce(1), plgpu.Layout.WGMMA.reduce(0)


def backward(operands: Any, lam: jax.Array, g: jax.Array, live: jax.Array, static: Any) -> Any:
    """Gradients of padded operands: dq, dk, dv, dtau, dlam.

    Args:
        operands: q, k, v, tau and ids as `pallas_gpu.pad` leaves them.
        g: [B, T, H, Dv], dL/do.
        live: bool [B, H, T/64, S/keys], tiles of the forward pass with a survivor.
    """
    q, k, v, tau, ids = operands
    by_rows, by_keys = live_lists(fine(live, static), k.shape[3])
    inputs = (q.reshape(-1, *q.shape[2:]), k.reshape(-1, *k.shape[2:]), v, tau, lam, g)
    dq, dtau, dlam = dq_kernel(inputs, ids, by_rows, static)
    dk, dv = dkv_kernel(inputs, ids, by_keys, static)
    return dq.reshape(q.shape), dk.reshape(k.shape), dv, dtau, jnp.sum(dlam, axis=(0, 2))


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
    e: jax.Array, first: Any, first_key: Any, rows_axis: int, ids: Any, offset: int | None
) -> jax.Array:
    """e of a tile with its mask; rows_axis is the axis of the query rows, ids along each axis."""
    if offset is None and ids is None:
        return e

    def mask(e: jax.Array) -> jax.Array:
        rows = mosaic.iota(TILE, rows_axis) + first
        cols = mosaic.iota(TILE, 1 - rows_axis) + first_key
        pair: Any = (None, None)
        if ids is not None:
            spread_q = mosaic.spread(ids[0], TILE, rows_axis)
            pair = (spread_q, mosaic.spread(ids[1], TILE, 1 - rows_axis))
        return hopper.mask_tile(e, rows, cols, pair[0], pair[1], offset)

    if ids is not None or offset is None:
        return mask(e)
    return lax.cond(hopper.crosses(first, first_key, ROWS, offset), mask, lambda e: e, e)


def dq_kernel(operands: Any, ids: Any, lists: Any, static: Any) -> Any:
    """dq [2 B, T, H, D], dtau [B, H, T] and the rows of dlam [B, H, T]."""
    spec, offset, tiles, interpret = static
    q, _, v, *_ = operands
    counts, index = lists
    (S, heads, Dv), (T, H, D) = v.shape[1:], q.shape[1:]
    B, group, dtype = v.shape[0], H // heads, v.dtype
    num_rows, stages = T // BLOCK_ROWS, max(1, min(tiles.stages_dq, S // ROWS))

    def body(*refs: Any) -> None:
        take = mosaic.taker(refs)
        q_ref, k_ref, v_ref, tau_ref, lam_ref, g_ref, counts_ref, index_ref = take(8)
        q_ids_ref, kv_ids_ref = take(2, ids is not None)
        dq_ref, dtau_ref, dlam_ref = take(3)
        q_smem, g_smem, k_smem, v_smem, tau_smem, row_smem, q_ready, ready, free = take(9)
        q_ids_smem, kv_ids_smem = take(2, ids is not None)
        (spill,) = take(1, bool(interpret))
        b, h, wg = lax.axis_index("batch"), lax.axis_index("heads"), lax.axis_index("wg")
        i = num_rows - 1 - lax.axis_index("rows")
        count = counts_ref[b, h, i]

        @pl.when(wg < WARPGROUPS)
        def _compute() -> None:
            plgpu.set_max_registers(232, action="increase")
            first = i * BLOCK_ROWS + wg * ROWS
            own = pl.ds(first, ROWS)
            copies = [(q_ref.at[t * B + b, own, h], q_smem.at[wg, t]) for t in range(2)]
            copies += [(g_ref.at[b, own, h], g_smem.at[wg])]
            copies += [(tau_ref.at[b, h, own], tau_smem.at[wg])]
            if ids is not None:
                copies += [(q_ids_ref.at[b, own], q_ids_smem.at[wg])]
            mosaic.fetch(copies, q_ready.at[wg])
            plgpu.barrier_wait(q_ready.at[wg])
            tau = mosaic.spread(mosaic.load(tau_smem.at[wg], ALONG), TILE, 0)
            q_ids = mosaic.load(q_ids_smem.at[wg], ALONG) if ids is not None else None
            coefficients = (1.0, -lam_ref[h])

            def step(n: jax.Array, carry: Any) -> Any:
                *dqs, dtau, dlam = carry
                slot = lax.rem(n, jnp.int32(stages))
                first_key = index_ref[b, h, i, n] * ROWS
                plgpu.barrier_wait(ready.at[slot])
                pair = None
                if ids is not None:
                    pair = (q_ids, mosaic.load(kv_ids_smem.at[slot], ACROSS))
                dp = None
                for t in range(2):
                    scores = (q_smem.at[wg, t], k_smem.at[2 * slot + t])
                    if dp is None:
                        dp, s = mosaic.products((g_smem.at[wg], v_smem.at[slot]), scores)
                    else:
                        (s,) = mosaic.products(scores)
                    e = masked(hopper.excess(s, tau), first, first_key, 0, pair, offset)
                    ds = hopper.score_gradients(dp, e, coefficients[t], spec.p)
                    dtau = dtau - jnp.sum(ds, axis=1)
                    if t == 1:
                        dlam = dlam - jnp.sum(dp * power(e, spec.p), axis=1)
                    term = (dqs[t], ds.astype(dtype), k_smem.at[2 * slot + t])
                    dqs[t] = mosaic.accumulate(term, spill=spill, wg=wg)[0]
                if ids is not None:
                    plgpu.commit_smem()  # read by threads, to be written by TMA
                plgpu.barrier_arrive(free.at[slot])
                return *dqs, dtau, dlam

            zero = mosaic.zeros((ROWS, D)), mosaic.zeros((ROWS,), ALONG)
            carry = (zero[0], zero[0], zero[1], zero[1])
            *dqs, dtau, dlam = lax.fori_loop(jnp.int32(0), count, step, carry)
            for t in range(2):
                q_smem.at[wg, t][...] = dqs[t].astype(dtype)
            tau_smem.at[wg][...] = dtau
            row_smem.at[wg][...] = dlam
            plgpu.commit_smem()
            for t in range(2):
                plgpu.copy_smem_to_gmem(q_smem.at[wg, t], dq_ref.at[t * B + b, own, h])
            plgpu.copy_smem_to_gmem(tau_smem.at[wg], dtau_ref.at[b, h, own])
            plgpu.copy_smem_to_gmem(row_smem.at[wg], dlam_ref.at[b, h, own])
            plgpu.wait_smem_to_gmem(0)

        @pl.when(wg == WARPGROUPS)
        def _copy() -> None:
            plgpu.set_max_registers(40, action="decrease")
            head = lax.div(h, jnp.int32(group))

            def start(n: jax.Array, wait: bool) -> None:
                slot = lax.rem(n, jnp.int32(stages))
                own = pl.ds(index_ref[b, h, i, n] * ROWS, ROWS)
                copies = [
                    (k_ref.at[t * B + b, own, head], k_smem.at[2 * slot + t]) for t in range(2)
                ]
                copies += [(v_ref.at[b, own, head], v_smem.at[slot])]
                if ids is not None:
                    copies += [(kv_ids_ref.at[b, own], kv_ids_smem.at[slot])]
                if wait:
                    plgpu.barrier_wait(free.at[slot])
                mosaic.fetch(copies, ready.at[slot])

            filled = jnp.minimum(count, stages)
            pl.loop(jnp.int32(0), filled)(lambda n: start(n, False))
            pl.loop(filled, count)(lambda n: start(n, True))

    extra = int(ids is not None)
    scratch = [
        mosaic.operand((WARPGROUPS, 2, ROWS, D), dtype),
        mosaic.operand((WARPGROUPS, ROWS, Dv), dtype),
        # Not [stages, 2, ..]: jax 0.11 and 0.12 cannot lower run_state with a literal index.
        mosaic.operand((stages * 2, ROWS, D), dtype),
        mosaic.operand((stages, ROWS, Dv), dtype),
        mosaic.rows((WARPGROUPS, ROWS)),
        mosaic.rows((WARPGROUPS, ROWS)),
        plgpu.Barrier(num_arrivals=4 + extra, num_barriers=WARPGROUPS),
        plgpu.Barrier(num_arrivals=3 + extra, num_barriers=stages),
        plgpu.Barrier(num_arrivals=WARPGROUPS, num_barriers=stages),
    ]
    if ids is not None:
        scratch += [mosaic.rows((WARPGROUPS, ROWS), jnp.int32)]
        scratch += [mosaic.rows((stages, ROWS), jnp.int32)]
    if interpret:
        scratch += [mosaic.rows((WARPGROUPS, *TILE), dtype)]
    row = jax.ShapeDtypeStruct((B, H, T), jnp.float32)
    run = mosaic.kernel(
        body,
        name="tda_dq",
        out_type=(jax.ShapeDtypeStruct(q.shape, dtype), row, row),
        scratch_types=scratch,
        grid=(H, num_rows, B),
        grid_names=("heads", "rows", "batch"),
        interpret=interpret,
    )
    return run(*operands, counts, index, *(ids or ()))


def dkv_kernel(operands: Any, ids: Any, lists: Any, static: Any) -> Any:
    """dk [2 B, S, Hkv, D] and dv [B, S, Hkv, Dv]."""
    spec, offset, tiles, interpret = static
    q, k, v, *_ = operands
    counts, index = lists
    (S, heads, Dv), (T, H, D) = v.shape[1:], q.shape[1:]
    B, group, dtype = v.shape[0], H // heads, v.dtype
    num_q, stages = T // ROWS, tiles.stages_dkv

    def body(*refs: Any) -> None:
        take = mosaic.taker(refs)
        q_ref, k_ref, v_ref, tau_ref, lam_ref, g_ref, counts_ref, index_ref = take(8)
        q_ids_ref, kv_ids_ref = take(2, ids is not None)
        dk_ref, dv_ref, k_smem, v_smem, sum_smem, q_smem, g_smem, tau_smem = take(8)
        k_ready, ready, free, joined = take(4)
        q_ids_smem, kv_ids_smem = take(2, ids is not None)
        (spill,) = take(1, bool(interpret))
        b, head, wg = lax.axis_index("batch"), lax.axis_index("heads"), lax.axis_index("wg")
        j = lax.axis_index("keys")  # the first keys are seen by most rows and start first
        own = pl.ds(j * ROWS, ROWS)
        count = counts_ref[b, head, j]

        def tile_of(n: jax.Array) -> tuple[jax.Array, jax.Array]:
            """Query head and first row of the n-th live tile."""
            at = index_ref[b, head, j, n]
            return head * group + lax.div(at, jnp.int32(num_q)), lax.rem(
                at, jnp.int32(num_q)
            ) * ROWS

        @pl.when(wg < WARPGROUPS)
        def _compute() -> None:  # warpgroup t takes view t
            plgpu.set_max_registers(232, action="increase")
            plgpu.barrier_wait(k_ready)
            kv_ids = mosaic.load(kv_ids_smem, ALONG) if ids is not None else None

            def step(n: jax.Array, carry: Any) -> Any:
                dk, dv = carry
                slot = lax.rem(n, jnp.int32(stages))
                h, first = tile_of(n)
                coefficient = jnp.where(wg == 0, 1.0, -lam_ref[h])
                plgpu.barrier_wait(ready.at[slot])
                s, dp = mosaic.products(
                    (k_smem.at[wg], q_smem.at[slot, wg]), (v_smem, g_smem.at[slot])
                )
                tau = mosaic.spread(mosaic.load(tau_smem.at[slot], ACROSS), TILE, 1)
                pair = None
                if ids is not None:
                    pair = (mosaic.load(q_ids_smem.at[slot], ACROSS), kv_ids)
                e = masked(hopper.excess(s, tau), first, j * ROWS, 1, pair, offset)
                w = hopper.weights(e, coefficient, spec.p).astype(dtype)
                ds = hopper.score_gradients(dp, e, coefficient, spec.p).astype(dtype)
                carry = mosaic.accumulate(
                    (dk, ds, q_smem.at[slot, wg]),
                    (dv, w, g_smem.at[slot]),
                    spill=spill,
                    wg=wg,
                )
                plgpu.commit_smem()  # tau was read by threads and will be written by TMA
                plgpu.barrier_arrive(free.at[slot])
                return carry

            carry = (mosaic.zeros((ROWS, D)), mosaic.zeros((ROWS, Dv)))
            dk, dv = lax.fori_loop(jnp.int32(0), count, step, carry)
            k_smem.at[wg][...] = dk.astype(dtype)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(k_smem.at[wg], dk_ref.at[wg * B + b, own, head])

            @pl.when(wg == 1)
            def _give() -> None:
                sum_smem[...] = dv
                plgpu.commit_smem()
                plgpu.barrier_arrive(joined)

            @pl.when(wg == 0)
            def _join() -> None:
                plgpu.barrier_wait(joined)  # the other warpgroup has read its last of v, too
                v_smem[...] = (dv + mosaic.load(sum_smem, plgpu.Layout.WGMMA)).astype(dtype)
                plgpu.commit_smem()
                plgpu.copy_smem_to_gmem(v_smem, dv_ref.at[b, own, head])

            plgpu.wait_smem_to_gmem(0)

        @pl.when(wg == WARPGROUPS)
        def _copy() -> None:
            plgpu.set_max_registers(40, action="decrease")
            resident = [(k_ref.at[t * B + b, own, head], k_smem.at[t]) for t in range(2)]
            resident += [(v_ref.at[b, own, head], v_smem)]
            if ids is not None:
                resident += [(kv_ids_ref.at[b, own], kv_ids_smem)]
            mosaic.fetch(resident, k_ready)

            def start(n: jax.Array, wait: bool) -> None:
                slot = lax.rem(n, jnp.int32(stages))
                h, first = tile_of(n)
                rows = pl.ds(first, ROWS)
                copies = [(q_ref.at[t * B + b, rows, h], q_smem.at[slot, t]) for t in range(2)]
                copies += [(g_ref.at[b, rows, h], g_smem.at[slot])]
                copies += [(tau_ref.at[b, h, rows], tau_smem.at[slot])]
                if ids is not None:
                    copies += [(q_ids_ref.at[b, rows], q_ids_smem.at[slot])]
                if wait:
                    plgpu.barrier_wait(free.at[slot])
                mosaic.fetch(copies, ready.at[slot])

            filled = jnp.minimum(count, stages)
            pl.loop(jnp.int32(0), filled)(lambda n: start(n, False))
            pl.loop(filled, count)(lambda n: start(n, True))

    extra = int(ids is not None)
    scratch = [
        mosaic.operand((2, ROWS, D), dtype),
        mosaic.operand((ROWS, Dv), dtype),
        mosaic.operand((ROWS, Dv), jnp.float32),
        mosaic.operand((stages, 2, ROWS, D), dtype),
        mosaic.operand((stages, ROWS, Dv), dtype),
        mosaic.rows((stages, ROWS)),
        plgpu.Barrier(num_arrivals=3 + extra),
        plgpu.Barrier(num_arrivals=4 + extra, num_barriers=stages),
        plgpu.Barrier(num_arrivals=WARPGROUPS, num_barriers=stages),
        plgpu.Barrier(num_arrivals=1),
    ]
    if ids is not None:
        scratch += [mosaic.rows((stages, ROWS), jnp.int32), mosaic.rows((ROWS,), jnp.int32)]
    if interpret:
        scratch += [mosaic.rows((WARPGROUPS, *TILE), dtype)]
    run = mosaic.kernel(
        body,
        name="tda_dkv",
        out_type=(jax.ShapeDtypeStruct(k.shape, dtype), jax.ShapeDtypeStruct(v.shape, dtype)),
        scratch_types=scratch,
        grid=(heads, S // ROWS, B),
        grid_names=("heads", "keys", "batch"),
        interpret=interpret,
    )
    return run(*operands, counts, index, *(ids or ()))
