# SPDX-License-Identifier: Apache-2.0
"""Mesh from config, path rules to shardings, host batches to global arrays."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from experiments.runner.errors import UserError

AXES = ("data", "model")
Rules = Sequence[tuple[str, PartitionSpec]]


def make_mesh(shape: Sequence[int]) -> Mesh:
    """Mesh with axes (data, model); one entry may be -1 and is filled with what is left.

    Raises:
        UserError: the shape does not multiply to the number of devices.
    """
    count = jax.device_count()
    fixed = math.prod(n for n in shape if n != -1)
    sizes = tuple(count // max(fixed, 1) if n == -1 else n for n in shape)
    if len(sizes) != len(AXES) or min(sizes) < 1 or math.prod(sizes) != count:
        raise UserError(
            f"config.mesh={tuple(shape)} does not fit {count} device(s): (data, model) must "
            f"multiply to {count}; use (-1, 1) to put all on data"
        )
    # Auto axes: with explicit ones an ordinary linen embedding does not trace.
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def leaf_paths(tree: Any) -> dict[str, Any]:
    """{"/"-joined path: leaf}."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(p, simple=True, separator="/"): leaf for p, leaf in leaves}


def match(rules: Rules, path: str, default: PartitionSpec) -> PartitionSpec:
    """Spec of the first rule whose regex matches the whole path."""
    return next((spec for regex, spec in rules if re.fullmatch(regex, path)), default)


def shardings(
    mesh: Mesh, rules: Rules, abstract: Any, prefix: str = "", *, exact: bool = True
) -> Any:
    """Tree of NamedSharding for a tree of shapes.

    Args:
        prefix: "" for the state (default: replicated), "batch/" for a batch (default: P("data")).
        exact: False replicates what is not divisible instead of refusing it.

    Raises:
        UserError: a dimension is not divisible by the axes it is put on.
    """
    default = PartitionSpec("data") if prefix else PartitionSpec()

    def one(path: Any, leaf: Any) -> NamedSharding:
        name = prefix + jax.tree_util.keystr(path, simple=True, separator="/")
        spec = match(rules, name, default)
        if len(spec) > len(leaf.shape):
            spec = PartitionSpec()  # a rule for matrices leaves vectors and scalars replicated
        for dim, axes in enumerate(spec):
            names = () if axes is None else (axes,) if isinstance(axes, str) else tuple(axes)
            parts = math.prod(mesh.shape[a] for a in names)
            if leaf.shape[dim] % parts:
                if not exact:
                    return NamedSharding(mesh, PartitionSpec())
                raise UserError(
                    f"{name}: dimension {dim} of {tuple(leaf.shape)} is not divisible by the "
                    f"{parts} devices of {names}; change the batch size or config.mesh"
                )
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(one, abstract)


def fsdp_rules(abstract: Any, mesh: Mesh, min_bytes: int = 4 << 20) -> Rules:
    """Rules that put the largest divisible dimension of every big leaf on the data axis."""
    size = mesh.shape["data"]
    rules = []
    for path, leaf in leaf_paths(abstract).items():
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            continue
        dims = [d for d, n in enumerate(leaf.shape) if n % size == 0]
        if not dims or math.prod(leaf.shape) * leaf.dtype.itemsize < min_bytes:
            continue
        best = max(dims, key=lambda d: leaf.shape[d])
        spec = PartitionSpec(*("data" if d == best else None for d in range(best + 1)))
        rules.append((re.escape(path), spec))
    return tuple(rules)


def process_rows(mesh: Mesh, num_rows: int) -> tuple[int, int]:
    """Rows [lo, hi) of a batch of `num_rows`, split over the data axis, that this process holds.

    Processes that differ only along the model axis hold the same rows.
    """
    parts = mesh.shape["data"]
    mine = jax.process_index()
    if num_rows % parts:
        raise UserError(f"a batch of {num_rows} rows is not divisible by {parts} devices of 'data'")
    held = [i for i, row in enumerate(mesh.devices) if any(d.process_index == mine for d in row)]
    if held != list(range(held[0], held[-1] + 1)):
        return 0, num_rows  # not one block: build the whole batch
    return held[0] * num_rows // parts, (held[-1] + 1) * num_rows // parts


class Feed:
    """Puts host batches on the mesh; a leaf that is last step's object is not sent again."""

    def __init__(self, mesh: Mesh, rules: Rules) -> None:
        self._mesh = mesh
        self._rules = rules
        self._sent: dict[str, tuple[np.ndarray, jax.Array]] = {}
        self._known: dict[tuple[str, tuple[int, ...]], NamedSharding] = {}

    def sharding(self, name: str, shape: tuple[int, ...]) -> NamedSharding:
        if (name, shape) not in self._known:  # matching the rules costs more than a small copy
            leaf = jax.ShapeDtypeStruct(shape, np.float32)
            found = shardings(self._mesh, self._rules, {name: leaf}, "batch/")[name]
            self._known[name, shape] = found
        return self._known[name, shape]

    def _split(self, name: str, leaf: np.ndarray) -> bool:
        """Whether the rows of a leaf are spread over the data axis; a scalar has none."""
        spec = match(self._rules, f"batch/{name}", PartitionSpec("data"))
        return len(spec) <= np.ndim(leaf) and bool(spec) and spec[0] == "data"

    def rows(self, batch: Mapping[str, np.ndarray]) -> tuple[int, int] | None:
        """Rows of a whole batch this process needs; None if no leaf is split over data.

        Raises:
            UserError: leaves that are split have different numbers of rows.
        """
        counts = {name: leaf.shape[0] for name, leaf in batch.items() if self._split(name, leaf)}
        if len(set(counts.values())) > 1:
            raise UserError(
                f"leaves of the batch that are split over 'data' differ in rows: {counts}; several "
                "processes need one number (give the others a rule that replicates them)"
            )
        return process_rows(self._mesh, next(iter(counts.values()))) if counts else None

    def put(self, batch: Mapping[str, np.ndarray], rows: tuple[int, int] | None) -> dict[str, Any]:
        """Global arrays of a batch.

        Args:
            rows: None if `batch` is whole on this process, else the rows of the leaves sharded
                over data that it holds.
        """
        out = {}
        for name, leaf in batch.items():
            sent = self._sent.get(name)
            if sent is None or sent[0] is not leaf:
                sent = (leaf, self._place(name, leaf, rows))
                self._sent[name] = sent
            out[name] = sent[1]
        return out

    def _place(self, name: str, leaf: np.ndarray, rows: tuple[int, int] | None) -> jax.Array:
        if rows is None or not self._split(name, leaf):
            sharding = self.sharding(name, leaf.shape)
            return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])
        parts = self._mesh.shape["data"]
        lo, hi = process_rows(self._mesh, parts)
        per_device = leaf.shape[0] // (hi - lo)
        shape = (per_device * parts, *leaf.shape[1:])
        low = lo * per_device

        def block(index: Any) -> np.ndarray:
            first, *rest = index
            start, stop, _ = first.indices(shape[0])
            return leaf[(slice(start - low, stop - low), *rest)]

        return jax.make_array_from_callback(shape, self.sharding(name, shape), block)
