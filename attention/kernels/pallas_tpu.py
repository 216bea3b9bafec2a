# SPDX-License-Identifier: Apache-2.0
"""Pallas backend for TPUs: both views, their difference and the product with v in one pass.

Grid (batch, head, query block, key block); the output block accumulates in scratch memory over key
blocks, which simply add: there is no running maximum and no normalizer. Key blocks that causality
hides reuse the block already there, so they cost no copy. A tile without survivors skips the
product with v, and its bit in the liveness bitmap lets the backward kernels skip it whole.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from attention import masks
from attention.kernels import Spec, partition, power
from attention.kernels import pallas_tpu_backward as backward
from attention.kernels import pallas_tpu_tiles as tiles
from attention.kernels.pallas_tpu_tiles import LANES, Plan

DTYPES = ("float32", "bfloat16")
IDS = ("BT", "BS")  # axes of segment ids
WORDS = ("BHX", "BHY")  # axes of the bitmap along keys and along queries


def covers(
    q: Any, k: Any, v: Any, *, q_segment_ids: Any, kv_segment_ids: Any, q_offset: Any, spec: Spec
) -> str:
    """ "" if the kernels compute this case, else why not."""
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dtype not in DTYPES:
            return f"{name} has dtype {x.dtype}, the TPU kernels take {' and '.join(DTYPES)}"
    if not isinstance(q_offset, int):
        return "q_offset is an array, the TPU kernels take one static int"
    return ""


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
    *,
    block_q: int | None = None,
    block_kv: int | None = None,
    interpret: Any = False,
) -> jax.Array:
    """Output [B, T, H, Dv] in v's dtype; the contract is in attention/kernels/__init__.py.

    Args:
        block_q, block_kv: rows and keys of a tile, multiples of 128 unless interpreted; T and S
            need not be multiples of them.
        interpret: True or pltpu.InterpretParams: run on any device, slowly.

    Raises:
        ValueError: blocks that the device cannot have, or a case that `covers` rules out.
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
        raise ValueError(reason)
    check_blocks(block_q, block_kv, interpret)
    ids = None
    if q_segment_ids is not None and kv_segment_ids is not None:
        ids = (jnp.asarray(q_segment_ids), jnp.asarray(kv_segment_ids))
    options = Options(spec, q_offset, block_q, block_kv, interpret, tiles.BITMAP_BYTES)
    return _core(q, k, v, tau, lam, ids, options)


def check_blocks(block_q: int | None, block_kv: int | None, interpret: Any) -> None:
    """Raises ValueError for blocks that no register of a device holds."""
    given = [block for block in (block_q, block_kv) if block is not None]
    if not interpret and any(block % LANES for block in given):
        raise ValueError(f"block_q={block_q} and block_kv={block_kv} must be multiples of {LANES}")


def make_plan(
    q: Any,
    k: Any,
    v: Any,
    segments: bool,
    q_offset: Any,
    spec: Spec,
    block_q: int | None,
    block_kv: int | None,
    interpret: Any,
) -> Plan:
    """Padded sizes and blocks. Float32 tiles are smaller: their products take more memory."""
    largest = 256 if v.dtype == jnp.float32 else 512
    _, B, T, H, D = q.shape
    S, K = k.shape[2:4]
    block_q = min(largest, T + -T % LANES) if block_q is None else block_q
    block_kv = min(largest, S + -S % LANES) if block_kv is None else block_kv
    return Plan(
        B=B,
        H=H,
        K=K,
        T=T + -T % block_q,
        S=S + -S % block_kv,
        D=D,
        Dv=v.shape[-1],
        block_q=block_q,
        block_kv=block_kv,
        offset=q_offset,
        causal=spec.causal,
        segments=segments,
        p=spec.p,
        skip=spec.skip,
        interpret=interpret,
        exact=v.dtype == jnp.float32,
        bitmap_bytes=tiles.BITMAP_BYTES,
    )


def operands(plan: Plan, q: Any, k: Any, v: Any, tau: Any, ids: Any) -> tuple[jax.Array, ...]:
    """Padded inputs with heads before rows: q [2, B, H, T, D], k [2, B, K, S, D], v [B, K, S, Dv],
    tau [B, H, 1, T], and if there are segments their ids [B, 1, T] and [B, 1, S].

    Padding never survives: padded keys and values are zero, padded rows have a threshold of 2.
    Rows of numbers keep their long axis last, where a register is 128 wide.
    """
    more_q, more_kv = plan.T - q.shape[2], plan.S - k.shape[2]
    arrays = (
        heads_first(q, more_q),
        heads_first(k, more_kv),
        heads_first(v, more_kv),
        jnp.pad(tau, ((0, 0), (0, 0), (0, more_q)), constant_values=2.0)[:, :, None],
    )
    if ids is None:
        return arrays
    q_ids = jnp.pad(ids[0], ((0, 0), (0, more_q)))[:, None]
    return (*arrays, q_ids, jnp.pad(ids[1], ((0, 0), (0, more_kv)))[:, None])


def heads_first(x: jax.Array, more: int) -> jax.Array:
    """[.., T, H, D] to [.., H, T + more, D]."""
    pad = [(0, 0)] * (x.ndim - 2) + [(0, more), (0, 0)]
    return jnp.pad(jnp.swapaxes(x, -3, -2), pad)


def heads_last(x: jax.Array, length: int) -> jax.Array:
    """Inverse of `heads_first`."""
    return jnp.swapaxes(x[..., :length, :], -3, -2)


def _kernel(plan: Plan, q, k, v, tau, lam, *refs: Any) -> None:
    """One tile of the forward pass."""
    num_ids = 2 if plan.segments else 0
    ids, refs = refs[:num_ids], refs[num_ids:]
    o, live, *scratch = refs if plan.skip else (refs[0], None, *refs[1:])
    total, tau_column, *ids_column = scratch
    h, i, j = (pl.program_id(axis) for axis in (1, 2, 3))

    @pl.when(j == 0)
    def _():
        total[...] = jnp.zeros_like(total)
        tau_column[...] = tiles.column(tau[...])
        if plan.segments:
            ids_column[0][...] = tiles.column(ids[0][...])

    if live is not None:
        live[0, j] = jnp.int32(0)

    @pl.when(j <= tiles.last_kv(plan, i))
    def _():
        q_ids = ids_column[0][...] if plan.segments else None
        kv_ids = ids[1][...] if plan.segments else None
        x = tiles.over_threshold(plan, i, j, q, k, tau_column[...], q_ids, kv_ids, keys_first=False)

        def accumulate() -> None:
            w = [power(jnp.maximum(view, 0.0), plan.p) for view in x]
            a = (w[0] - lam[h] * w[1]).astype(v.dtype)
            total[...] += tiles.dot(plan, a, v[...], (1, 0))
            if live is not None:
                live[0, j] = jnp.int32(1)

        if plan.skip:
            pl.when(tiles.is_live(plan, x))(accumulate)
        else:
            accumulate()

    @pl.when(j == plan.num_kv - 1)
    def _():
        o[...] = total[...].astype(o.dtype)


def run_forward(plan: Plan, inputs: Any, lam: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    """o [B, H, T, Dv], and the liveness of tiles, int32 [B, H, num_q, num_kv], None unless skip."""
    q, k, v, tau, *ids = inputs

    def kv(i: Any, j: Any) -> jax.Array:
        return jnp.minimum(j, tiles.last_kv(plan, i))

    def kv_head(h: Any) -> jax.Array:
        return tiles.divide(h, plan.group)

    bq, bk = plan.block_q, plan.block_kv
    in_specs = [
        pl.BlockSpec((2, None, None, bq, plan.D), lambda b, h, i, j: (0, b, h, i, 0)),
        pl.BlockSpec(
            (2, None, None, bk, plan.D), lambda b, h, i, j: (0, b, kv_head(h), kv(i, j), 0)
        ),
        pl.BlockSpec((None, None, bk, plan.Dv), lambda b, h, i, j: (b, kv_head(h), kv(i, j), 0)),
        pl.BlockSpec((None, None, 1, bq), lambda b, h, i, j: (b, h, 0, i)),
        tiles.scalars(),
    ]
    scratch: list[Any] = [
        pltpu.VMEM((bq, plan.Dv), jnp.float32),
        pltpu.VMEM((bq, 1), jnp.float32),
    ]
    if plan.segments:
        in_specs += [
            pl.BlockSpec((None, 1, bq), lambda b, h, i, j: (b, 0, i)),
            pl.BlockSpec((None, 1, bk), lambda b, h, i, j: (b, 0, kv(i, j))),
        ]
        scratch.append(pltpu.VMEM((bq, 1), jnp.int32))
    out_specs = [pl.BlockSpec((None, None, bq, plan.Dv), lambda b, h, i, j: (b, h, i, 0))]
    out_shape = [jax.ShapeDtypeStruct((plan.B, plan.H, plan.T, plan.Dv), v.dtype)]
    if plan.skip:
        out_specs.append(
            pl.BlockSpec(
                (None, None, None, 1, plan.num_kv),
                lambda b, h, i, j: (b, h, i, 0, 0),
                memory_space=pltpu.SMEM,
            )
        )
        shape = (plan.B, plan.H, plan.num_q, 1, plan.num_kv)
        out_shape.append(jax.ShapeDtypeStruct(shape, jnp.int32))
    pairs = plan.B * plan.H * plan.T * plan.S // (2 if plan.causal else 1)
    o, *live = pl.pallas_call(
        partial(_kernel, plan),
        grid=(plan.B, plan.H, plan.num_q, plan.num_kv),
        in_specs=in_specs,
        out_specs=out_specs,
        out_shape=out_shape,
        scratch_shapes=scratch,
        compiler_params=tiles.compiler_params("parallel", "parallel", "parallel", "arbitrary"),
        cost_estimate=pl.CostEstimate(
            flops=pairs * (4 * plan.D + 2 * plan.Dv),
            bytes_accessed=sum(x.size * x.dtype.itemsize for x in (q, k, v, v)),
            transcendentals=0,
        ),
        interpret=plan.interpret,
        name="tda_forward",
    )(q, k, v, tau, lam, *ids)
    return o, live[0][:, :, :, 0] if live else None


class Options(NamedTuple):
    """What a call is compiled for besides its shapes, hashable."""

    spec: Spec
    offset: Any  # an int: `covers` has seen to it
    block_q: int | None
    block_kv: int | None
    interpret: Any
    bitmap_bytes: int  # scalar memory that bitmaps of a device may take


def _plan(options: Options, q: Any, k: Any, v: Any, segments: bool) -> Plan:
    spec, offset, block_q, block_kv, interpret, bitmap_bytes = options
    plan = make_plan(q, k, v, segments, offset, spec, block_q, block_kv, interpret)
    return plan._replace(bitmap_bytes=bitmap_bytes)


@partial(jax.custom_vjp, nondiff_argnums=(6,))
def _core(q: Any, k: Any, v: Any, tau: Any, lam: Any, ids: Any, options: Options) -> jax.Array:
    return _forward(q, k, v, tau, lam, ids, options)[0]


def _forward(q: Any, k: Any, v: Any, tau: Any, lam: Any, ids: Any, options: Options):
    """The residuals are the inputs and the bitmap, packed for each of the two walks."""
    layout = partition.Layout(
        operands=("VBTHD", "VBSKD", "BSKE", "BHT", "H", *(() if ids is None else IDS)),
        results=("BTHE", *(WORDS if options.spec.skip else ())),
    )
    inputs = (q, k, v, tau, lam, *(ids or ()))
    is_simulated = not isinstance(options.interpret, bool)
    o, *words = partition.run(_forward_part, options, layout, inputs, is_simulated=is_simulated)
    return o, (q, k, v, tau, lam, ids, tuple(words))


def _forward_part(options: Options, q: Any, k: Any, v: Any, tau: Any, lam: Any, *ids: Any):
    """o, and the bitmap along keys and along queries where tiles are skipped."""
    plan = _plan(options, q, k, v, bool(ids))
    o, live = run_forward(plan, operands(plan, q, k, v, tau, ids or None), lam)
    o = heads_last(o, q.shape[2])
    if live is None:
        return (o,)
    # Batch and heads in front: on a mesh the words are split as the tiles are.
    by_row = tiles.pack(live).reshape(plan.B, plan.H, -1)
    by_key = tiles.pack(jnp.swapaxes(live, 2, 3)).reshape(plan.B, plan.H, -1)
    return o, by_row, by_key


def _backward(options: Options, residuals: Any, g: Any):
    q, k, v, tau, lam, ids, words = residuals
    layout = partition.Layout(
        operands=(
            *("BTHE", "VBTHD", "VBSKD", "BSKE", "BHT", "H"),
            *(() if ids is None else IDS),
            *(WORDS if options.spec.skip else ()),
        ),
        results=("VBTHD", "VBSKD", "BSKE", "BHT", "BH"),
    )
    inputs = (g, q, k, v, tau, lam, *(ids or ()), *words)
    is_simulated = not isinstance(options.interpret, bool)
    dq, dk, dv, dtau, dlam = partition.run(
        _backward_part, options, layout, inputs, is_simulated=is_simulated
    )
    return dq, dk, dv, dtau, dlam.sum(0), None


def _backward_part(
    options: Options, g: Any, q: Any, k: Any, v: Any, tau: Any, lam: Any, *others: Any
):
    """dq, dk, dv, dtau, and dlam of every sequence; others are ids, then words, where there are."""
    num_words = len(WORDS) if options.spec.skip else 0
    ids = others[: len(others) - num_words]
    words = others[len(ids) :]
    plan = _plan(options, q, k, v, bool(ids))
    T, S = q.shape[2], k.shape[2]
    inputs = operands(plan, q, k, v, tau, ids or None)
    grads = heads_first(g.astype(v.dtype), plan.T - T)
    by_row, by_key = (x.reshape(-1) for x in words) if plan.bitmap else (None, None)
    dq, dtau, dlam = backward.run_dq(plan, inputs, lam, grads, by_row)
    dk, dv = backward.run_dkv(plan, inputs, lam, grads, by_key)
    return (
        heads_last(dq, T),
        heads_last(dk, S),
        heads_last(dv, S),
        dtau[:, :, 0, :T],
        dlam.sum((2, 3)),
    )


_core.defvjp(_forward, _backward)
