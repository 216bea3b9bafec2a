# SPDX-License-Identifier: Apache-2.0
"""Mosaic GPU backend for Hopper: TMA, wgmma, two computing warpgroups and one that copies.

Forward: a block owns 128 rows of one head, 64 for each computing warpgroup. The copying warpgroup
streams tiles of both views' keys and of the values through a ring of shared memory; a computing
warpgroup forms both score tiles, thresholds and mixes them in float32 registers, casts the mixed
weights once, and adds their product with the values, unless no entry of the tile survived. There
is no running maximum, no normalizer and no rescaling. Whether a tile is live, that is has a
survivor or comes within a rounding error of one (`hopper.may_survive`), is written out, one int32
per tile of 64 rows; the backward pass visits live tiles only (`pallas_gpu_backward`).

Never executed on a GPU by its authors: lowered for CUDA, and interpreted where jax has an
interpreter for it; `python -m attention.gpu_check` is the first thing to run on one. jax cannot
lower such a kernel for several platforms at once: an export for CUDA names CUDA alone.
"""

from collections.abc import Callable
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

from attention import masks
from attention.kernels import Spec, hopper, mosaic, partition
from attention.kernels.mosaic import ROWS, WARPGROUPS
from attention.kernels.pallas_gpu_backward import backward

BLOCK_ROWS = WARPGROUPS * ROWS
IDS = ("BT", "BS")  # axes of segment ids
LIVE = "BHXY"  # axes of the flags of tiles


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
    layout = partition.Layout(
        operands=("VBTHD", "VBSKD", "BSKE", "BHT", "H", *(() if ids is None else IDS)),
        results=("BTHE", LIVE),
    )
    inputs = (q, k, v, tau, lam, *(ids or ()))
    is_simulated = static[3] is not None
    o, live = partition.run(_forward_part, static, layout, inputs, is_simulated=is_simulated)
    return o, (q, k, v, tau, lam, ids, live)


def _forward_part(static: Any, q: Any, k: Any, v: Any, tau: Any, lam: Any, *ids: Any) -> Any:
    _, offset, tiles, _ = static
    o, live = forward(pad(q, k, v, tau, ids or None, tiles.keys), lam, static)
    visible = hopper.visible_tiles(live.shape[2], live.shape[3], tiles.keys, offset)
    # Tiles that causality hides are never visited, and their flags never written.
    return o[:, : q.shape[2]], (live != 0) & jnp.broadcast_to(visible, live.shape)


def _backward(static: Any, residuals: Any, g: jax.Array) -> Any:
    q, k, v, tau, lam, ids, live = residuals
    layout = partition.Layout(
        operands=(
            *("BTHE", LIVE, "VBTHD", "VBSKD", "BSKE", "BHT", "H"),
            *(() if ids is None else IDS),
        ),
        results=("VBTHD", "VBSKD", "BSKE", "BHT", "BH"),
    )
    inputs = (g, live, q, k, v, tau, lam, *(ids or ()))
    is_simulated = static[3] is not None
    dq, dk, dv, dtau, dlam = partition.run(
        _backward_part, static, layout, inputs, is_simulated=is_simulated
    )
    return dq, dk, dv, dtau, dlam.sum(0), None


def _backward_part(
    static: Any, g: Any, live: Any, q: Any, k: Any, v: Any, tau: Any, lam: Any, *ids: Any
) -> Any:
    """dq, dk, dv, dtau, and dlam of every sequence."""
    operands = pad(q, k, v, tau, ids or None, static[2].keys)
    g = jnp.pad(g.astype(v.dtype), ((0, 0), (0, -g.shape[1] % BLOCK_ROWS), (0, 0), (0, 0)))
    dq, dk, dv, dtau, dlam = backward(operands, lam, g, live, static)
    T, S = q.shape[2], k.shape[2]
    return dq[:, :, :T], dk[:, :, :S], dv[:, :S], dtau[..., :T], dlam


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


class _Plan(NamedTuple):
    """What the forward kernel is compiled for."""

    spec: Spec
    offset: int | None  # row i sees keys up to i + offset; None: all
    keys: int
    stages: int
    views: int
    B: int
    group: int  # query heads of a key head
    num: int  # key tiles
    num_rows: int  # blocks of 128 rows


def forward(operands: Any, lam: jax.Array, static: Any) -> Any:
    """The kernel over operands of `pad`: o [B, T, H, Dv] and live int32 [B, H, T/64, S/keys].

    One view, q and k [1, ..], gives its weights without lam.
    """
    q, k, v, tau, ids = operands
    spec, offset, (keys, stages, *_), interpret = static
    views, B, T, H, D = q.shape
    S, heads, Dv = v.shape[1:]
    num = S // keys
    stages = max(1, min(stages, num))
    plan = _Plan(spec, offset, keys, stages, views, B, H // heads, num, T // BLOCK_ROWS)
    q_ids, kv_ids = (None, None) if ids is None else ids
    copies = views + (ids is not None)
    freed = plgpu.Barrier(num_arrivals=WARPGROUPS, num_barriers=stages)
    return mosaic.launch(
        partial(_body, plan),
        name="tda_forward",
        inputs=dict(q=flat(q), k=flat(k), v=v, tau=tau, lam=lam, q_ids=q_ids, kv_ids=kv_ids),
        outputs=dict(
            o=jax.ShapeDtypeStruct((B, T, H, Dv), v.dtype),
            live=jax.ShapeDtypeStruct((B, H, T // ROWS, num), jnp.int32),
        ),
        scratch=dict(
            q_smem=mosaic.operand((WARPGROUPS, views, ROWS, D), v.dtype),
            k_smem=mosaic.operand((stages, views, keys, D), v.dtype),
            v_smem=mosaic.operand((stages, keys, Dv), v.dtype),
            tau_smem=mosaic.rows((WARPGROUPS, ROWS)),
            votes=mosaic.rows((WARPGROUPS, ROWS)),
            q_ready=plgpu.Barrier(num_arrivals=copies + 1, num_barriers=WARPGROUPS),
            k_ready=plgpu.Barrier(num_arrivals=copies, num_barriers=stages),
            v_ready=plgpu.Barrier(num_barriers=stages),
            k_free=freed,
            v_free=freed,
            o_smem=mosaic.operand((WARPGROUPS, ROWS, Dv), v.dtype) if Dv != D else None,
            q_ids_smem=mosaic.rows((WARPGROUPS, ROWS), jnp.int32) if ids else None,
            kv_ids_smem=mosaic.rows((stages, keys), jnp.int32) if ids else None,
            spill=mosaic.rows((WARPGROUPS, ROWS, keys), v.dtype) if interpret else None,
        ),
        grid=(H, plan.num_rows, B),
        grid_names=("heads", "rows", "batch"),
        interpret=interpret,
    )


def _body(plan: _Plan, refs: Any) -> None:
    b, h, wg = lax.axis_index("batch"), lax.axis_index("heads"), lax.axis_index("wg")
    # The longest rows first: what runs last is short.
    i = plan.num_rows - 1 - lax.axis_index("rows")
    last = hopper.key_tiles(i * BLOCK_ROWS, BLOCK_ROWS, plan.keys, plan.num, plan.offset)
    pl.when(wg < WARPGROUPS)(lambda: _compute(plan, refs, b, h, i, wg, last))
    pl.when(wg == WARPGROUPS)(lambda: _copy(plan, refs, b, h, last))


def _compute(plan: _Plan, refs: Any, b: Any, h: Any, i: Any, wg: Any, last: Any) -> None:
    """64 rows of one head: fetch them, walk the key tiles, store the output."""
    plgpu.set_max_registers(232, action="increase")
    first = i * BLOCK_ROWS + wg * ROWS
    own = pl.ds(first, ROWS)
    copies = [(refs.q.at[t * plan.B + b, own, h], refs.q_smem.at[wg, t]) for t in range(plan.views)]
    copies += [(refs.tau.at[b, h, own], refs.tau_smem.at[wg])]
    if refs.q_ids is not None:
        copies += [(refs.q_ids.at[b, own], refs.q_ids_smem.at[wg])]
    mosaic.fetch(copies, refs.q_ready.at[wg])
    plgpu.barrier_wait(refs.q_ready.at[wg])
    mine = hopper.key_tiles(first, ROWS, plan.keys, plan.num, plan.offset)
    scores = _scores(plan, refs, first, wg)
    minus_lam = -refs.lam[h]

    def step(j: jax.Array, acc: jax.Array) -> jax.Array:
        slot = lax.rem(j, jnp.int32(plan.stages))
        xs = scores(j, slot)
        es = tuple(hopper.rectify(x) for x in xs)
        a = hopper.weights(es[0], 1.0, plan.spec.p)
        if plan.views == 2:
            a = a + hopper.weights(es[1], minus_lam, plan.spec.p)
        a = a.astype(refs.v_smem.dtype)
        live = jnp.bool_(True)
        if plan.spec.skip:
            marks = hopper.may_survive(reduce(jnp.maximum, xs), refs.q.shape[-1])
            live = mosaic.any_positive(marks, refs.votes.at[wg])
        refs.live[b, h, i * WARPGROUPS + wg, j] = live.astype(jnp.int32)

        def add(acc: jax.Array) -> jax.Array:
            term = (acc, a, refs.v_smem.at[slot])
            return mosaic.accumulate(term, spill=refs.spill, wg=wg)[0]

        plgpu.barrier_wait(refs.v_ready.at[slot])
        acc = lax.cond(live, add, lambda acc: acc, acc) if plan.spec.skip else add(acc)
        plgpu.barrier_arrive(refs.v_free.at[slot])
        return acc

    acc = lax.fori_loop(jnp.int32(0), mine, step, mosaic.zeros((ROWS, refs.o.shape[-1])))

    @pl.loop(mine, last)
    def _release(j: jax.Array) -> None:  # tiles that only the other warpgroup sees
        slot = lax.rem(j, jnp.int32(plan.stages))
        plgpu.barrier_wait(refs.k_ready.at[slot])
        plgpu.barrier_arrive(refs.k_free.at[slot])
        plgpu.barrier_wait(refs.v_ready.at[slot])
        plgpu.barrier_arrive(refs.v_free.at[slot])

    out = refs.q_smem.at[wg, 0] if refs.o_smem is None else refs.o_smem.at[wg]
    out[...] = acc.astype(refs.o.dtype)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(out, refs.o.at[b, own, h])
    plgpu.wait_smem_to_gmem(0)


def _scores(plan: _Plan, refs: Any, first: Any, wg: Any) -> Callable[..., tuple[jax.Array, ...]]:
    """(tile, slot) -> masked scores minus thresholds by view; waits for the keys and frees them."""
    tile = (ROWS, plan.keys)
    along, across = plgpu.Layout.WGMMA.reduce(1), plgpu.Layout.WGMMA.reduce(0)
    tau = mosaic.spread(mosaic.load(refs.tau_smem.at[wg], along), tile, 0)
    segments = refs.q_ids is not None
    q_ids: Any = mosaic.load(refs.q_ids_smem.at[wg], along) if segments else None

    def mask(xs: Any, j: jax.Array, slot: jax.Array) -> Any:
        rows = mosaic.iota(tile, 0) + first
        cols = mosaic.iota(tile, 1) + j * plan.keys
        ids: Any = (None, None)
        if segments:
            kv_ids = mosaic.load(refs.kv_ids_smem.at[slot], across)
            ids = (mosaic.spread(q_ids, tile, 0), mosaic.spread(kv_ids, tile, 1))
        return tuple(hopper.mask_tile(x, rows, cols, ids[0], ids[1], plan.offset) for x in xs)

    def scores(j: jax.Array, slot: jax.Array) -> tuple[jax.Array, ...]:
        plgpu.barrier_wait(refs.k_ready.at[slot])
        s = mosaic.products(
            *((refs.q_smem.at[wg, t], refs.k_smem.at[slot, t]) for t in range(plan.views))
        )
        if not segments:  # the ids of the keys are released with them
            plgpu.barrier_arrive(refs.k_free.at[slot])
        xs = tuple(x - tau for x in s)
        if segments:
            xs = mask(xs, j, slot)
            plgpu.commit_smem()  # read by threads, to be written by TMA
            plgpu.barrier_arrive(refs.k_free.at[slot])
        elif plan.offset is not None:
            edge = hopper.crosses(first, j * plan.keys, plan.keys, plan.offset)
            xs = lax.cond(edge, lambda xs: mask(xs, j, slot), lambda xs: xs, xs)
        return xs

    return scores


def _copy(plan: _Plan, refs: Any, b: Any, h: Any, last: Any) -> None:
    """Streams keys and values of one head, each with barriers of its own."""
    plgpu.set_max_registers(40, action="decrease")
    head = lax.div(h, jnp.int32(plan.group))

    def start(j: jax.Array, slot: jax.Array, wait: bool) -> None:
        own = pl.ds(j * plan.keys, plan.keys)
        copies = [
            (refs.k.at[t * plan.B + b, own, head], refs.k_smem.at[slot, t])
            for t in range(plan.views)
        ]
        if refs.kv_ids is not None:
            copies += [(refs.kv_ids.at[b, own], refs.kv_ids_smem.at[slot])]
        if wait:
            plgpu.barrier_wait(refs.k_free.at[slot])
        mosaic.fetch(copies, refs.k_ready.at[slot])
        if wait:
            plgpu.barrier_wait(refs.v_free.at[slot])
        mosaic.fetch([(refs.v.at[b, own, head], refs.v_smem.at[slot])], refs.v_ready.at[slot])

    def drain(slot: jax.Array) -> None:
        plgpu.barrier_wait(refs.k_free.at[slot])
        plgpu.barrier_wait(refs.v_free.at[slot])

    mosaic.ring(plan.stages, last, start, drain)


def flat(x: jax.Array) -> jax.Array:
    """[2, B, ...] to [2 B, ...]: a copy by TMA has at most five dims."""
    return x.reshape(-1, *x.shape[2:])
