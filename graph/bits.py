# SPDX-License-Identifier: Apache-2.0
"""Adjacency matrices as bits: neighbour j of row i is bit j % 32 of word j // 32."""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

WORD = 32
Array = TypeVar("Array", jax.Array, np.ndarray)


def words(columns: int) -> int:
    """Words that hold `columns` bits."""
    return -(-columns // WORD)


def _shifts(axes: int, xp: Any) -> Any:
    return xp.arange(WORD, dtype=xp.uint32).reshape((1,) * axes + (WORD,))


def pack(adj: Array) -> Array:
    """bool [..., N] -> uint32 [..., ceil(N / 32)]; NumPy stays NumPy."""
    xp: Any = np if isinstance(adj, np.ndarray) else jnp
    spare = -adj.shape[-1] % WORD
    wide = xp.pad(adj.astype(xp.uint32), [(0, 0)] * (adj.ndim - 1) + [(0, spare)])
    wide = wide.reshape(*adj.shape[:-1], -1, WORD)
    return (wide << _shifts(adj.ndim, xp)).sum(axis=-1, dtype=xp.uint32)


def unpack(packed: Array, columns: int) -> Array:
    """uint32 [..., W] -> bool [..., columns], columns <= 32 W; inverse of `pack`."""
    xp: Any = np if isinstance(packed, np.ndarray) else jnp
    if not 0 < columns <= WORD * packed.shape[-1]:
        raise ValueError(f"columns={columns}: {packed.shape[-1]} words hold 1 .. {WORD} times that")
    out = (packed[..., None] >> _shifts(packed.ndim, xp)) & xp.uint32(1)
    return out.reshape(*packed.shape[:-1], -1)[..., :columns].astype(bool)
