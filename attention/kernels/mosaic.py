# SPDX-License-Identifier: Apache-2.0
"""What differs between jax 0.10.2, 0.11.2 and 0.12 in Mosaic GPU, and idioms the kernels share.

`plgpu.load` takes an index first in 0.10.2 and none in 0.12; the public interpreter of Mosaic GPU
exists from 0.11 on. Everything else the kernels use has one spelling in all three: out_type,
scratch_types, ref.transpose((1, 0)), wgmma, TMA copies and barriers.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

SMEM_BYTES = 232_448  # shared memory of a Hopper block; Mosaic GPU refuses more at lowering
WARPGROUPS = 2  # that compute; one more copies
ROWS = 64  # rows of a wgmma tile of one warpgroup
_INDEXED = inspect.signature(plgpu.load).parameters.get("idx")
_LOAD_NEEDS_INDEX = _INDEXED is not None and _INDEXED.default is inspect.Parameter.empty


def load(ref: Any, layout: Any = None) -> jax.Array:
    """plgpu.load of the whole ref, which may be `ref.at[...]`, in any supported jax."""
    return plgpu.load(ref, *([()] if _LOAD_NEEDS_INDEX else []), layout=layout)


def interpreter(**params: Any) -> Any:
    """Parameters of the Mosaic GPU interpreter, or None where jax has no public one."""
    make = getattr(plgpu, "InterpretGPUParams", None)
    return make(**params) if make else None


def operand(shape: Sequence[int], dtype: Any) -> Any:
    """Shared memory that TMA fills and wgmma reads: rows of 128 bytes, tiled by 8 and swizzled."""
    columns = 128 // jnp.dtype(dtype).itemsize
    transforms = (plgpu.TilingTransform((8, columns)), plgpu.SwizzleTransform(128))
    return plgpu.SMEM(tuple(shape), dtype, transforms=transforms)


def rows(shape: Sequence[int], dtype: Any = jnp.float32) -> Any:
    """Plain shared memory, for vectors along rows."""
    return plgpu.SMEM(tuple(shape), dtype)


def launch(
    body: Callable[[Any], None],
    *,
    name: str,
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Any],
    scratch: Mapping[str, Any],
    grid: tuple[int, ...],
    grid_names: tuple[str, ...],
    interpret: Any,
) -> tuple[jax.Array, ...]:
    """Runs a kernel of two computing warpgroups and one that copies, axis "wg".

    Args:
        body: takes one namespace with a ref of every name; None where nothing was given.
        inputs, outputs, scratch: by name, arrays, ShapeDtypeStructs and memory types, or None.
        interpret: None or `interpreter()`.
    """
    named = [
        {k: x for k, x in part.items() if x is not None} for part in (inputs, outputs, scratch)
    ]
    absent = dict.fromkeys([*inputs, *outputs, *scratch])

    def run(*refs: Any) -> None:
        names = [k for part in named for k in part]
        body(SimpleNamespace(**absent | dict(zip(names, refs, strict=True))))

    call = plgpu.kernel(
        run,
        out_type=tuple(named[1].values()),
        scratch_types=list(named[2].values()),
        grid=grid,
        grid_names=grid_names,
        num_threads=WARPGROUPS + 1,
        thread_name="wg",
        kernel_name=name,
        interpret=interpret,
    )
    return call(*named[0].values())


def ring(stages: int, total: jax.Array, start: Callable[..., None], drain: Callable[..., None]):
    """The copying warpgroup's walk over `total` tiles, `stages` of them in flight.

    Args:
        start: (n, slot, wait) -> None copies tile n to its slot, after the slot is free if `wait`.
        drain: (slot) -> None waits for the slot to be free; the last tiles of the ring end so, for
            who waits on a barrier must see all its phases.
    """
    slot = lambda n: lax.rem(n, jnp.int32(stages))
    filled = jnp.minimum(total, stages)
    pl.loop(jnp.int32(0), filled)(lambda n: start(n, slot(n), False))
    pl.loop(filled, total)(lambda n: start(n, slot(n), True))
    pl.loop(total - filled, total)(lambda n: drain(slot(n)))


def fetch(pairs: Sequence[tuple[Any, Any]], barrier: Any) -> None:
    """Starts TMA copies of (source in global, target in shared memory); each arrives once."""
    for source, target in pairs:
        plgpu.copy_gmem_to_smem(source, target, barrier)


def zeros(shape: tuple[int, ...], layout: Any = plgpu.Layout.WGMMA) -> jax.Array:
    """float32 zeros in registers."""
    return plgpu.layout_cast(jnp.zeros(shape, jnp.float32), layout)


def products(*pairs: tuple[Any, Any]) -> tuple[jax.Array, ...]:
    """a @ b.T of pairs of shared-memory tiles [m, d] and [n, d], one wait for all of them."""

    def run(*accumulators: Any) -> tuple[jax.Array, ...]:
        for acc, (a, b) in zip(accumulators, pairs, strict=True):
            plgpu.wgmma(acc, a, b.transpose((1, 0)))
        return tuple(acc[...] for acc in accumulators)

    tiles = [plgpu.WGMMAAccumulatorRef((a.shape[0], b.shape[0]), jnp.float32) for a, b in pairs]
    return pl.run_scoped(run, *tiles)


def accumulate(
    *terms: tuple[jax.Array, jax.Array, Any], spill: Any, wg: jax.Array
) -> tuple[jax.Array, ...]:
    """acc + a @ b for (acc, a in registers, b in shared memory), one wait for all of them.

    spill: None, or shared memory [warpgroups, *a's shape]. The interpreter has no wgmma with an
        operand in registers and no run_state: there a goes through shared memory, and the product
        is added afterwards.
    """
    if spill is not None:
        results = []
        for acc, a, b in terms:
            spill.at[wg][...] = a
            plgpu.commit_smem()

            def run(total: Any, b: Any = b) -> jax.Array:
                plgpu.wgmma(total, spill.at[wg], b)
                return total[...]

            total = plgpu.WGMMAAccumulatorRef((acc.shape[0], acc.shape[1]), jnp.float32)
            results.append(acc + pl.run_scoped(run, total))
        return tuple(results)

    def run_all(accumulators: Any) -> None:
        for acc, (_, a, b) in zip(accumulators, terms, strict=True):
            plgpu.wgmma(acc, a, b)

    start: Any = tuple(plgpu.WGMMAAccumulatorRef.init(acc) for acc, _, _ in terms)
    return pl.run_state(run_all)(start)


def any_positive(tile: jax.Array, votes: Any) -> jax.Array:
    """Whether an entry of a [64, n] tile is > 0: the same bool in all 128 threads.

    votes: float32 [64] in shared memory, of this warpgroup alone. Pallas' own reduction across
    warps uses one scratch for the whole block, in which two warpgroups would race; here each warp
    reduces its rows and reads those of the others.
    """
    votes[...] = jnp.max(tile, axis=1)
    return jnp.max(load(votes, plgpu.Layout.WGMMA.reduce(0))) > 0


def iota(shape: tuple[int, int], axis: int) -> jax.Array:
    """int32 index along an axis of a tile in registers."""
    return plgpu.broadcasted_iota(jnp.int32, shape, axis, layout=plgpu.Layout.WGMMA)


def spread(x: jax.Array, shape: tuple[int, int], axis: int) -> jax.Array:
    """A vector along `axis` of a tile, repeated over the other one."""
    return lax.broadcast_in_dim(x, shape, [axis])
