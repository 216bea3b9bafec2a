# SPDX-License-Identifier: Apache-2.0
"""What every sampler returns, and its packed bits."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from graph import csr

Array = jax.Array | np.ndarray


class LinkBatch(NamedTuple):
    """Induced subgraphs of B links in N slots, the query link itself taken out.

    adj_bits: uint32 [B, N, ceil(N / 32)], bit j % 32 of word j // 32 in row i says that tokens i
    and j are neighbours; n: int32 [B], tokens that are real (roots 0 and 1 always are); ids: int32
    [B, N] global node ids in slot order, -1 where empty; dropped: int32 [B], sampled nodes that
    found no slot.
    """

    adj_bits: Array
    n: Array
    ids: Array
    dropped: Array


def words(size: int) -> int:
    """Words that hold `size` bits."""
    return -(-size // 32)


def pack(adjacency: jax.Array) -> jax.Array:
    """bool [.., N] -> uint32 [.., ceil(N / 32)], bit j % 32 of word j // 32."""
    size = adjacency.shape[-1]
    wide = [(0, 0)] * (adjacency.ndim - 1) + [(0, words(size) * 32 - size)]
    bits = jnp.pad(adjacency, wide).reshape(*adjacency.shape[:-1], words(size), 32)
    place = jnp.arange(32, dtype=jnp.uint32).reshape((1,) * (bits.ndim - 1) + (32,))
    return (bits.astype(jnp.uint32) << place).sum(-1, dtype=jnp.uint32)


def unpack(bits: Array, size: int) -> jax.Array:
    """uint32 [.., ceil(size / 32)] -> bool [.., size], inverse of `pack`."""
    bits = jnp.asarray(bits)
    place = jnp.arange(32, dtype=jnp.uint32).reshape((1,) * bits.ndim + (32,))
    wide = (bits[..., None] >> place) & 1
    return wide.reshape(*bits.shape[:-1], bits.shape[-1] * 32)[..., :size].astype(bool)


def check_pairs(pairs: np.ndarray, num_nodes: int) -> None:
    """Raises ValueError: not integers [B, 2], an id out of range, or a link of a node to itself."""
    if pairs.ndim != 2:
        raise ValueError(f"links: integers [B, 2] wanted, got {pairs.dtype} {pairs.shape}")
    csr.check_ids(pairs, num_nodes, "links")
    loops = np.flatnonzero(pairs[:, 0] == pairs[:, 1])
    if len(loops):
        raise ValueError(
            f"links: link {int(loops[0])}, {pairs[loops[0]].tolist()}, joins a node to itself; "
            "leave such pairs out"
        )
