# SPDX-License-Identifier: Apache-2.0
"""Low-rank adapters (Hu et al. 2022): W x + scale * B (A x), scale = alpha / r, B = 0 at first.

Adapters are a tree of their own, {matrix: {"a": [L, in, r], "b": [L, r, out]}}: optimize and save
them alone, and give `forward` lora=None for the base model, without a second copy of weights.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from attention.lm.model import Adapters, Params

TARGETS = ("q", "k", "v", "o", "gate", "up", "down")


def _group(name: str) -> str:
    return "attn" if name in ("q", "k", "v", "o") else "mlp"


def init(
    key: jax.Array, params: Params, *, rank: int, targets: Iterable[str] = ("q", "v")
) -> dict[str, dict[str, jax.Array]]:
    """Adapters of `rank` for the matrices `targets` of every layer; float32.

    A is normal with variance 1 / in [our choice], B is 0: the model starts unchanged.

    Raises:
        ValueError: rank < 1, or a target that the model does not have.
    """
    if rank < 1:
        raise ValueError(f"rank={rank}: must be at least 1")
    adapters = {}
    for number, name in enumerate(targets):
        matrices = params["blocks"][_group(name)] if name in TARGETS else {}
        if name not in matrices:
            raise ValueError(f"targets: {name!r} is no matrix of this model ({', '.join(TARGETS)})")
        L, inner, outer = matrices[name].shape
        a = jax.random.normal(jax.random.fold_in(key, number), (L, inner, rank)) * inner**-0.5
        adapters[name] = {"a": a, "b": jnp.zeros((L, rank, outer))}
    return adapters


def merge(params: Params, adapters: Adapters, scale: int | float) -> Params:
    """Params with scale * A B added to every adapted matrix."""
    blocks = {group: dict(leaves) for group, leaves in params["blocks"].items()}
    for name, adapter in adapters.items():
        matrices = blocks[_group(name)]
        change = scale * jnp.einsum("lir,lro->lio", adapter["a"], adapter["b"])
        # In float32: a small change would be lost in a bfloat16 sum.
        adapted = matrices[name].astype(jnp.float32) + change
        matrices[name] = adapted.astype(matrices[name].dtype)
    return {**params, "blocks": blocks}


def unmerge(params: Params, adapters: Adapters, scale: int | float) -> Params:
    """Undoes `merge`, to rounding."""
    return merge(params, adapters, -scale)


def count(adapters: Mapping[str, Any]) -> int:
    """Number of adapter parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(adapters))
