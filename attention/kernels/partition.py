# SPDX-License-Identifier: Apache-2.0
"""Runs kernels on a mesh: every device computes its own sequences and heads.

XLA cannot split what is inside a kernel: Mosaic TPU refuses to lower for several devices, and on
GPUs every device would gather the whole operands. `run` tells the partitioner how to split a call,
so callers need neither a mesh nor `shard_map`: the operands' own shardings decide. Axes of the mesh
are of type Auto. Batch stays split as it is where the devices divide it, and heads where they
divide the key heads, so that the query heads of one key head stay together; all other axes are
gathered. No device needs another one inside a kernel. Sums over the batch, as that of the gradient
of lam, belong outside: XLA adds the parts of the devices there.

An axis is named by a letter: B batch, H query heads, K key heads; all other letters are never
split.
"""

import hashlib
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import Mesh, NamedSharding, PartitionSpec

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
            split call cannot have: it runs whole.
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


def _call(
    function: Function, static: Any, layout: Layout, operands: tuple[jax.Array, ...]
) -> tuple[jax.Array, ...]:
    return function(static, *operands)


def _partition(
    function: Function,
    static: Any,
    layout: Layout,
    mesh: Mesh,
    operands: tuple[tuple[jax.ShapeDtypeStruct, ...]],
    results: tuple[jax.ShapeDtypeStruct, ...],
) -> Any:
    """Mesh, function of the parts, and shardings, as `custom_partitioning` wants them."""
    (structs,) = operands
    axes = split_axes(mesh, layout, structs)

    def shard(letters: str) -> NamedSharding:
        return NamedSharding(mesh, PartitionSpec(*(axes.get(letter) for letter in letters)))

    def call_part(operands: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        return tuple(function(static, *operands))

    in_shardings = (tuple(shard(letters) for letters in layout.operands),)
    return mesh, call_part, tuple(shard(letters) for letters in layout.results), in_shardings


def split_axes(
    mesh: Mesh, layout: Layout, operands: Sequence[jax.ShapeDtypeStruct]
) -> dict[str, tuple[str, ...]]:
    """Axes of the mesh by letter, as the first operand has them that is split along the letter.

    An axis whose devices do not divide the sequences, or the key heads, is left out: those devices
    compute the same.
    """
    found: dict[str, tuple[Any, ...]] = {"B": (), "K": (), "H": ()}
    sizes = {"B": 1, "K": 1}
    for letters, operand in zip(layout.operands, operands, strict=True):
        spec = operand.sharding.spec
        for letter, size, entry in zip(letters, operand.shape, spec, strict=False):
            names = () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)
            if letter in sizes:
                sizes[letter] = size
            if letter in found:
                found[letter] = found[letter] or names
    batch = _dividing(mesh, found["B"], sizes["B"])
    heads = [name for name in found["K"] or found["H"] if name not in batch]
    heads = _dividing(mesh, heads, sizes["K"])
    return {"B": batch, "H": heads, "K": heads}


def _dividing(mesh: Mesh, names: Sequence[str], size: int) -> tuple[str, ...]:
    """The leading names whose devices together divide `size`."""
    kept: tuple[str, ...] = ()
    parts = 1
    for name in names:
        parts *= mesh.shape[name]
        if size % parts:
            break
        kept = (*kept, name)
    return kept


def _rule(
    function: Function,
    static: Any,
    layout: Layout,
    mesh: Mesh,
    operands: Sequence[Any],
    results: Sequence[Any],
) -> tuple[str, dict[str, Any]]:
    """How shardings propagate: along batch and key heads, which lead the query heads."""
    sizes: dict[str, int] = {}
    for letters, operand in zip(layout.operands, operands, strict=True):
        sizes |= dict(zip(letters, operand.shape, strict=True))
    group = sizes["H"] // sizes["K"]
    # A factor of size 1 may stand alone only; one key head leaves nothing to split.
    query_heads = "K" if group == 1 else "H" if sizes["K"] == 1 else "(K G)"

    def name_factors(letters: str) -> str:
        return " ".join(query_heads if letter == "H" else letter for letter in letters)

    sides = [", ".join(map(name_factors, side)) for side in (layout.operands, layout.results)]
    # Shardy wants them in the order in which the rule names them.
    letters = dict.fromkeys("".join((*layout.operands, *layout.results)))
    options: dict[str, Any] = {"G": group} if "G" in query_heads else {}
    # The letter of query heads is a factor only where it is one that cannot be split.
    is_split = {"B": True, "K": True, "H": query_heads != "H"}
    unsplit = tuple(letter for letter in letters if not is_split.get(letter, False))
    options["need_replication_factors"] = unsplit
    return " -> ".join(sides), options


_partitioned = custom_partitioning(_call, static_argnums=(0, 1, 2))
_partitioned.def_partition(_partition, sharding_rule=_rule)


@cache
def _jit(function: Function, static: Any, layout: Layout) -> Callable[..., Any]:
    """The split call as a function of its operands; outside of jit it is split like inside.

    XLA sees a pointer where the kernels will be, and pointers are used again: two programs that
    differ only in `static` would have one key in the cache of compiled programs. The name of the
    function is part of the key.
    """

    def call(*operands: jax.Array) -> tuple[jax.Array, ...]:
        return _partitioned(function, static, layout, operands)

    digest = hashlib.sha256(repr((function.__module__, static, layout)).encode()).hexdigest()
    call.__name__ = f"{function.__name__.strip('_')}_{digest[:12]}"
    return jax.jit(call)
