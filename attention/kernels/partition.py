# SPDX-License-Identifier: Apache-2.0
"""Runs kernels on a mesh: every device computes its own sequences and heads.

XLA cannot split what is inside a kernel: Mosaic TPU refuses to lower for several devices, and on
GPUs every device would gather the whole operands. So a call of a kernel is one primitive, which
becomes a `shard_map` where a program for several devices is lowered: only there is the mesh known
of callers who never name it. Not `custom_partitioning`, which follows the operands' shardings on
CPUs and GPUs: libtpu has no such thing ("Custom emitter for CustomSPMDPartitioning not found").

The mesh axis "model" splits heads where it divides the key heads, so that the query heads of one
key head stay together; all other axes split the batch as far as they divide it. Along an axis that
divides nothing all devices compute the same. Operands that lie otherwise are moved. No device needs
another one inside a kernel; sums over the batch, as that of the gradient of lam, belong outside,
where XLA adds the parts of the devices. Axes of the mesh are of type Auto. Inside a `shard_map` of
the caller the kernels take what they are given.

An axis of an array is named by a letter: B batch, H query heads, K key heads; all other letters are
never split.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax
from jax._src import dispatch
from jax.core import ShapedArray
from jax.custom_batching import custom_vmap
from jax.extend.core import Primitive
from jax.interpreters import mlir
from jax.sharding import PartitionSpec

HEADS_AXIS = "model"
Function = Callable[..., tuple[jax.Array, ...]]


class Layout(NamedTuple):
    """Axes of all arrays of a call, one letter an axis; hashable."""

    operands: tuple[str, ...]
    results: tuple[str, ...]


def run(
    function: Function,
    static: Any,
    layout: Layout,
    operands: Sequence[jax.Array],
    *,
    is_simulated: bool = False,
) -> tuple[jax.Array, ...]:
    """function(static, *operands), on a mesh once per device with its part of every operand.

    Under `vmap` the calls run one after another. Not differentiable: for the inside of a
    `custom_vjp`.

    Args:
        function: a function of a module, for it is a key of caches; sizes come from its operands.
        static: hashable.
        is_simulated: whether kernels run in a simulator of the device, whose ordered effects a
            primitive cannot have: the call is not split.
    """
    if is_simulated:
        return tuple(function(static, *operands))

    @custom_vmap
    def call(*operands: jax.Array) -> tuple[jax.Array, ...]:
        return _jit(function, static, layout)(*operands)

    @call.def_vmap
    def call_in_turn(
        axis_size: int, in_batched: Sequence[bool], *operands: jax.Array
    ) -> tuple[tuple[jax.Array, ...], tuple[bool, ...]]:
        def call_one(index: jax.Array) -> tuple[jax.Array, ...]:
            pairs = zip(operands, in_batched, strict=True)
            return call(*(x[index] if is_batched else x for x, is_batched in pairs))

        results = lax.map(call_one, np.arange(axis_size, dtype=np.int32))
        return results, (True,) * len(layout.results)

    return call(*operands)


def split_axes(mesh: Any, layout: Layout, operands: Sequence[Any]) -> dict[str, tuple[str, ...]]:
    """Names of the mesh axes that split a letter.

    Args:
        mesh: anything with a `shape` by name.
        operands: anything with shapes.
    """
    sizes: dict[str, int] = {}
    for letters, operand in zip(layout.operands, operands, strict=True):
        sizes |= dict(zip(letters, operand.shape, strict=True))
    batch = [name for name in mesh.shape if name != HEADS_AXIS]
    heads = [name for name in mesh.shape if name == HEADS_AXIS]
    head_axes = _dividing(mesh, heads, sizes["K"])
    return {"B": _dividing(mesh, batch, sizes["B"]), "H": head_axes, "K": head_axes}


def _dividing(mesh: Any, names: Sequence[str], size: int) -> tuple[str, ...]:
    """The names whose devices together divide `size`, from the first on."""
    kept: tuple[str, ...] = ()
    parts = 1
    for name in names:
        if size % (parts * mesh.shape[name]) == 0:
            kept = (*kept, name)
            parts *= mesh.shape[name]
    return kept


_call = Primitive("call_on_mesh")
_call.multiple_results = True


@_call.def_abstract_eval
def _shapes(*operands: Any, function: Function, static: Any, layout: Layout) -> list[ShapedArray]:
    structs = (jax.ShapeDtypeStruct(x.shape, x.dtype) for x in operands)
    results = jax.eval_shape(partial(function, static), *structs)
    return [ShapedArray(x.shape, x.dtype) for x in results]


def _lower(ctx: Any, *operands: Any, function: Function, static: Any, layout: Layout) -> Any:
    """The call as it is for one device, else inside a `shard_map`."""
    call: Callable[..., Any] = partial(function, static)
    # Known of a program for several devices that no `shard_map` has split yet.
    mesh = getattr(ctx.module_context.axis_context, "abstract_mesh", None)
    if mesh is not None and mesh.size > 1:
        axes = split_axes(mesh, layout, ctx.avals_in)

        def specs(side: Sequence[str]) -> tuple[PartitionSpec, ...]:
            return tuple(PartitionSpec(*(axes.get(x) or None for x in letters)) for letters in side)

        call = jax.shard_map(
            call,
            mesh=mesh,
            in_specs=specs(layout.operands),
            out_specs=specs(layout.results),
            check_vma=False,  # Pallas calls carry no types of varying axes
        )
    return mlir.lower_fun(lambda *x: list(call(*x)), multiple_results=True)(ctx, *operands)


mlir.register_lowering(_call, _lower)
# Lowering gets to see the mesh only if a primitive asks for devices, and jax has no public way to.
dispatch.prim_requires_devices_during_lowering.add(_call)


@cache
def _jit(function: Function, static: Any, layout: Layout) -> Callable[..., Any]:
    """The primitive as a function of operands; outside of jit it is split like inside."""

    def call(*operands: jax.Array) -> tuple[jax.Array, ...]:
        return tuple(_call.bind(*operands, function=function, static=static, layout=layout))

    return jax.jit(call)
