# SPDX-License-Identifier: Apache-2.0
"""Mosaic GPU backend for Hopper: TMA, wgmma, two computing warpgroups and one that copies.

Forward: a block owns 128 rows of one head, 64 for each computing warpgroup. The copying warpgroup
streams tiles of both views' keys and of the values through a ring of shared memory; a computing
warpgroup forms both score tiles, thresholds and mixes them in float32 registers, casts the mixed
weights once, and adds their product with the values, unless no entry of the tile survived. There
is no running maximum, no normaliser and no rescaling. Whether a tile had a survivor is written
out, one int32 per tile of 64 rows; the backward pass visits live tiles only
(`pallas_gpu_backward`).

Never executed on a GPU by its authors: lowered for CUDA, and interpreted where jax has an
interpreter for it; `python -m attention.gpu_check` is the first thing to run on one. jax cannot
lower such a kernel for several platforms at once: an export for CUDA names CUDA alone.
"""

from functools import partial, reduce
from typing import Any

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

from attention import masks
from attention.kernels import Spec, hopper, mosaic
from attention.kernels.mosaic import ROWS, WARPGROUPS
from attention.kernels.pallas_gpu_backward import backward

BLOCK_ROWS = WARPGROUPS * ROWS


def covers(
    q: Any, k: Any, v: Any, *, q_segment_ids: Any, kv_segment_ids: Any, q_offset: Any, spec: Spec
) -> str:
    """Covers bfloat16 and float16, heads of 64 or 128, p of 1, 2 or 3, one known q_offset.

    Lengths may be ragged, segments are covered. It says nothing about the device, which only the
    compiler knows: lowering for a GPU before Hopper fails there.
    """
    if jnp.dtype(v.dtype) not in (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16)):
        return f"v has dtype {v.dtype}, the tensor cores take bfloat16 or float16"
    if q.dtype != v.dtype or k.dtype != v.dtype:
        return f"q, k and v have dtypes {q.dtype}, {k.dtype} and {v.dtype}, which must agree"
    for name, size in (("D", q.shape[-1]), ("Dv", v.shape[-1])):
        if size not in hopper.HEAD_SIZES:
            return f"{name}={size} is not one of {', '.join(map(str, hopper.HEAD_SIZES))}"
    if spec.p not in (1, 2, 3):
        return f"p={spec.p} is not 1, 2 or 3"
    if not isinstance(q_offset, int | None):
        return "q_offset is an array, the kernel takes one static int"
    return ""


def tda(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    tau: jax.Array,
    lam: jax.Array,
    q_segment_ids: jax.Array | None,
    kv_segment_ids: jax.Array | None,
    q_offset: int | None,
    spec: Spec,
    *,
    tiling: hopper.Tiling | None = None,
    interpret: Any = None,
) -> jax.Array:
    """Output [B, T, H, Dv] in v's dtype; the contract is in attention/kernels/__init__.py.

    Args:
        tiling: block shapes; default by head size.
        interpret: None, or `mosaic.interpreter()`.

    Raises:
        ValueError: the case is not covered.
    """
    reason = covers(
        q,
        k,
        v,
        q_segment_ids=q_segment_ids,
        kv_segment_ids=kv_segment_ids,
        q_offset=q_offset,
        spec=spec,
    )
    if reason:
        raise ValueError(f"pallas_gpu does not cover this: {reason}")
    offset = masks.resolve_offset(q.shape[2], k.shape[2], q_offset)
    ids = None
    if q_segment_ids is not None and kv_segment_ids is not None:
        ids = (q_segment_ids, kv_segment_ids)
    tiles = tiling or hopper.tiling(q.shape[-1], v.shape[-1])
    static = (spec, offset if spec.causal else None, tiles, interpret)
    return _core(q, k, v, tau.astype(jnp.float32), lam.astype(jnp.float32), ids, static)


@partial(jax.custom_vjp, nondiff_argnums=(6,))
def _core(q: Any, k: Any, v: Any, tau: Any, lam: Any, ids: Any, static: Any) -> jax.Array:
    return _forward(q, k, v, tau, lam, ids, static)[0]


def _forward(q: Any, k: Any, v: Any, tau: Any, lam: Any, ids: Any, static: Any) -> Any:
    """Output, and what the backward pass needs: the inputs and the live tiles."""
    _, offset, tiles, _ = static
    o, live = forward(pad(q, k, v, tau, ids, tiles.keys), lam, static)
    visible = hopper.visible_tiles(live.shape[2], live.shape[3], tiles.keys, offset)
    # Tiles that causality hides are never visited, and their flags never written.
    live = (live != 0) & jnp.broadcast_to(visible, live.shape)
    return o[:, : q.shape[2]], (q, k, v, tau, lam, ids, live)


def _backward(static: Any, residuals: Any, g: jax.Array) -> Any:
    q, k, v, tau, lam, ids, live = residuals
    tiles = static[2]
    operands = pad(q, k, v, tau, ids, tiles.keys)
    g = jnp.pad(g.astype(v.dtype), ((0, 0), (0, -g.shape[1] % BLOCK_ROWS), (0, 0), (0, 0)))
    dq, dk, dv, dtau, dlam = backward(operands, lam, g, live, static)
    T, S = q.shape[2], k.shape[2]
    return dq[:, :, :T], dk[:, :, :S], dv[:, :S], dtau[..., :T], dlam, None


_core.defvjp(_forward, _backward)


def single_view(
    q: jax.Array, k: jax.Array, v: jax.Array, tau: jax.Array, spec: Spec, *, interpret: Any = None
) -> jax.Array:
    """sum_j max(q.k - tau, 0) ** p v_j of one view (TRA), forward only, not differentiable.

    Two of these and a subtraction are what the fused kernel is measured against.

    Args:
        q: [B, T, H, D], k: [B, S, Hkv, D], v: [B, S, Hkv, Dv], tau: [B, H, T]; covered as in `tda`.
    """
    offset = k.shape[1] - q.shape[1] if spec.causal else None
    tiles = hopper.tiling(q.shape[-1], v.shape[-1])
    operands = pad(q[None], k[None], v, tau, None, tiles.keys)
    lam = jnp.zeros(q.shape[2], jnp.float32)
    return forward(operands, lam, (spec, offset, tiles, interpret))[0][:, : q.shape[1]]


def pad(q: Any, k: Any, v: Any, tau: Any, ids: Any, keys: int) -> Any:
    """Lengths to multiples of the blocks. Added rows are mute, added keys and values are zero."""
    t, s = -q.shape[2] % BLOCK_ROWS, -k.shape[2] % keys
    q = jnp.pad(q, ((0, 0), (0, 0), (0, t), (0, 0), (0, 0)))
    k = jnp.pad(k, ((0, 0), (0, 0), (0, s), (0, 0), (0, 0)))
    v = jnp.pad(v, ((0, 0), (0, s), (0, 0), (0, 0)))
    tau = jnp.pad(tau, ((0, 0), (0, 0), (0, t)), constant_values=hopper.MUTE)
    if ids is None:
        return q, k, v, tau, None
    q_ids = jnp.where(ids[0] == 0, jnp.int32(hopper.HIDDEN), ids[0].astype(jnp.int32))
    q_ids = jnp.pad(q_ids, ((0, 0), (0, t)), constant_values=hopper.HIDDEN)
    return q, k, v, tau, (q_ids, jnp.pad(ids[1].astype(jnp.int32), ((0, 0), (0, s))))


def forward(operands: Any, lam: jax.Array, static: Any) -> Any:
    """The kernel over operands of `pad`: o [B, T, H, Dv] and live int32 [B, H, T/64, S/keys]."""
    q, k, v, tau, ids = operands
    spec, offset, (keys, stages, *_), interpret = static
    views, B, T, H, D = q.shape
    S, heads, Dv = v.shape[1:]
    group, num, dtype = H // heads, S // keys, v.dtype
    num_rows = T // BLOCK_ROWS
    stages = max(1, min(stages, num))
    tile = (ROWS, keys)

    def body(*refs: Any) -> None:
        take = mosaic.taker(refs)
        q_ref, k_ref, v_ref, tau_ref, lam_ref = take(5)
        q_ids_ref, kv_ids_ref = take(2, ids is not None)
        o_ref, live_ref, q_smem, k_smem, v_smem, tau_smem, votes = take(7)
        q_ready, k_ready, v_ready, k_free, v_free = take(5)
        (o_smem,) = take(1, Dv != D)
        q_ids_smem, kv_ids_smem = take(2, ids is not None)
        (spill,) = take(1, bool(interpret))
        b, h, wg = lax.axis_index("batch"), lax.axis_index("heads"), lax.axis_index("wg")
        # The longest rows first: what runs last is short.
        i = num_rows - 1 - lax.axis_index("rows")
        last = hopper.key_tiles(i * BLOCK_ROWS, BLOCK_ROWS, keys, num, offset)

        @pl.when(wg < WARPGROUPS)
        def _compute() -> None:
            plgpu.set_max_registers(232, action="increase")
            first = i * BLOCK_ROWS + wg * ROWS
            own = pl.ds(first, ROWS)
            copies = [(q_ref.at[t * B + b, own, h], q_smem.at[wg, t]) for t in range(views)]
            copies += [(tau_ref.at[b, h, own], tau_smem.at[wg])]
            if ids is not None:
                copies += [(q_ids_ref.at[b, own], q_ids_smem.at[wg])]
            mosaic.fetch(copies, q_ready.at[wg])
            plgpu.barrier_wait(q_ready.at[wg])
            along = plgpu.Layout.WGMMA.reduce(1)
            tau = mosaic.spread(mosaic.load(tau_smem.at[wg], along), tile, 0)
            q_ids: Any = mosaic.load(q_ids_smem.at[wg], along) if ids is not None else None
            minus_lam = -lam_ref[h]
            mine = hopper.key_tiles(first, ROWS, keys, num, offset)

            def mask(es: Any, j: jax.Array, slot: jax.Array) -> Any:
                rows = mosaic.iota(tile, 0) + first
                cols = mosaic.iota(tile, 1) + j * keys
                pair: Any = (None, None)
                if ids is not None:
                    across = mosaic.load(kv_ids_smem.at[slot], plgpu.Layout.WGMMA.reduce(0))
                    pair = (mosaic.spread(q_ids, tile, 0), mosaic.spread(across, tile, 1))
                return tuple(hopper.mask_tile(e, rows, cols, pair[0], pair[1], offset) for e in es)

            def step(j: jax.Array, acc: jax.Array) -> jax.Array:
                slot = lax.rem(j, jnp.int32(stages))
                plgpu.barrier_wait(k_ready.at[slot])
                s = mosaic.products(*((q_smem.at[wg, t], k_smem.at[slot, t]) for t in range(views)))
                if ids is None:  # the ids of the keys are released with them
                    plgpu.barrier_arrive(k_free.at[slot])
                es = tuple(hopper.excess(x, tau) for x in s)
                if ids is not None:
                    es = mask(es, j, slot)
                    plgpu.commit_smem()  # read by threads, to be written by TMA
                    plgpu.barrier_arrive(k_free.at[slot])
                elif offset is not None:
                    edge = hopper.crosses(first, j * keys, keys, offset)
                    es = lax.cond(edge, lambda es: mask(es, j, slot), lambda es: es, es)
                a = hopper.weights(es[0], 1.0, spec.p)
                if views == 2:
                    a = a + hopper.weights(es[1], minus_lam, spec.p)
                a = a.astype(dtype)

                def add(acc: jax.Array) -> jax.Array:
                    return mosaic.accumulate((acc, a, v_smem.at[slot]), spill=spill, wg=wg)[0]

                if spec.skip:
                    live = mosaic.any_positive(reduce(jnp.maximum, es), votes.at[wg])
                    live_ref[b, h, i * WARPGROUPS + wg, j] = live.astype(jnp.int32)
                    plgpu.barrier_wait(v_ready.at[slot])
                    acc = lax.cond(live, add, lambda acc: acc, acc)
                else:
                    live_ref[b, h, i * WARPGROUPS + wg, j] = jnp.int32(1)
                    plgpu.barrier_wait(v_ready.at[slot])
                    acc = add(acc)
                plgpu.barrier_arrive(v_free.at[slot])
                return acc

            acc = lax.fori_loop(jnp.int32(0), mine, step, mosaic.zeros((ROWS, Dv)))

            @pl.loop(mine, last)
            def _release(j: jax.Array) -> None:  # tiles that only the other warpgroup sees
                slot = lax.rem(j, jnp.int32(stages))
                plgpu.barrier_wait(k_ready.at[slot])
                plgpu.barrier_arrive(k_free.at[slot])
                plgpu.barrier_wait(v_ready.at[slot])
                plgpu.barrier_arrive(v_free.at[slot])

            out = q_smem.at[wg, 0] if o_smem is None else o_smem.at[wg]
            out[...] = acc.astype(dtype)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(out, o_ref.at[b, own, h])
            plgpu.wait_smem_to_gmem(0)

        @pl.when(wg == WARPGROUPS)
        def _copy() -> None:
            plgpu.set_max_registers(40, action="decrease")
            head = lax.div(h, jnp.int32(group))

            def start(j: jax.Array, wait: bool) -> None:
                slot = lax.rem(j, jnp.int32(stages))
                own = pl.ds(j * keys, keys)
                copies = [
                    (k_ref.at[t * B + b, own, head], k_smem.at[slot, t]) for t in range(views)
                ]
                if ids is not None:
                    copies += [(kv_ids_ref.at[b, own], kv_ids_smem.at[slot])]
                if wait:
                    plgpu.barrier_wait(k_free.at[slot])
                mosaic.fetch(copies, k_ready.at[slot])
                if wait:
                    plgpu.barrier_wait(v_free.at[slot])
                mosaic.fetch([(v_ref.at[b, own, head], v_smem.at[slot])], v_ready.at[slot])

            filled = jnp.minimum(last, stages)
            pl.loop(jnp.int32(0), filled)(lambda j: start(j, False))
            pl.loop(filled, last)(lambda j: start(j, True))

    copies = views + (ids is not None)
    scratch = [
        mosaic.operand((WARPGROUPS, views, ROWS, D), dtype),
        mosaic.operand((stages, views, keys, D), dtype),
        mosaic.operand((stages, keys, Dv), dtype),
        mosaic.rows((WARPGROUPS, ROWS)),
        mosaic.rows((WARPGROUPS, ROWS)),
        plgpu.Barrier(num_arrivals=copies + 1, num_barriers=WARPGROUPS),
        plgpu.Barrier(num_arrivals=copies, num_barriers=stages),
        plgpu.Barrier(num_barriers=stages),
        plgpu.Barrier(num_arrivals=WARPGROUPS, num_barriers=stages),
        plgpu.Barrier(num_arrivals=WARPGROUPS, num_barriers=stages),
    ]
    if Dv != D:
        scratch += [mosaic.operand((WARPGROUPS, ROWS, Dv), dtype)]
    if ids is not None:
        scratch += [mosaic.rows((WARPGROUPS, ROWS), jnp.int32)]
        scratch += [mosaic.rows((stages, keys), jnp.int32)]
    if interpret:
        scratch += [mosaic.rows((WARPGROUPS, *tile), dtype)]
    outputs = (
        jax.ShapeDtypeStruct((B, T, H, Dv), dtype),
        jax.ShapeDtypeStruct((B, H, T // ROWS, num), jnp.int32),
    )
    run = mosaic.kernel(
        body,
        name="tda_forward",
        out_type=outputs,
        scratch_types=scratch,
        grid=(H, num_rows, B),
        grid_names=("heads", "rows", "batch"),
        interpret=interpret,
    )
    return run(flat(q), flat(k), v, tau, lam, *(ids or ()))


def flat(x: jax.Array) -> jax.Array:
    """[2, B, ...] to [2 B, ...]: a copy by TMA has at most five dims."""
    return x.reshape(-1, *x.shape[2:])
