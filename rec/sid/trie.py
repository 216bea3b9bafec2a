# SPDX-License-Identifier: Apache-2.0
"""The prefixes of a catalogue's SIDs as arrays: which code may come next, in one gather.

Nodes of a depth are numbered in lexicographic order of their prefixes, so the children of a node
are neighbours and their codes ascend (compressed sparse rows). Levels with few nodes also have a
dense table. The layout follows the idea of STATIC (Google, 2026), whose deep levels are also read
in windows of a fixed size; here every level has its own arrays.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rec.sid import table

DENSE_LIMIT = 2**20  # nodes times codes up to which a level has a dense table (4 MiB)


class Trie(NamedTuple):
    """Arrays, int32. L levels; depth 0 has the root alone, depth L the leaves.

    first: L arrays [nodes_l + 1]; node n of depth l owns nodes first[l][n] .. first[l][n + 1] - 1
        of depth l + 1.
    token: L arrays [nodes_{l+1} + branching_l]; the code that leads to each node of depth l + 1,
        then zeros, so that a window never leaves the array.
    dense: L arrays [nodes_l, W_l] of child nodes or -1; [0, W_l] where a level is not dense.
    leaf_first: [leaves + 1]; leaf n has the items leaf_items[leaf_first[n]:leaf_first[n + 1]].
    leaf_items: [N], ascending within a leaf.
    """

    first: tuple[jax.Array, ...]
    token: tuple[jax.Array, ...]
    dense: tuple[jax.Array, ...]
    leaf_first: jax.Array
    leaf_items: jax.Array


class TrieShape(NamedTuple):
    """What must not be traced: codes per level, most children of a node per level, dense or not."""

    sizes: tuple[int, ...]
    branching: tuple[int, ...]
    dense: tuple[bool, ...]


def _sorted_rows(sids: np.ndarray, sizes: tuple[int, ...]) -> np.ndarray:
    """Item ids in lexicographic order of their SIDs, equal ones by id."""
    room = 1
    for size in sizes:
        room *= size
    if room >= 2**63:
        return np.lexsort(sids.T[::-1])
    key = np.zeros(len(sids), np.int64)
    for level, size in enumerate(sizes):
        key = key * size + sids[:, level]
    return np.argsort(key, kind="stable")


def build(
    sids: np.ndarray, sizes: tuple[int, ...], dense_limit: int = DENSE_LIMIT
) -> tuple[Trie, TrieShape]:
    """The trie of a catalogue, built on the host.

    Args:
        sids: int32 [N, L], N >= 1; items may share one.
        sizes: codes per level.
        dense_limit: a level of nodes * codes up to this gets a dense table.

    Raises:
        ValueError: a table that does not fit sizes.
    """
    table.check(sids, sizes)
    order = _sorted_rows(sids, sizes)
    rows = sids[order]
    starts = np.zeros(len(rows), bool)  # rows that open a node of the depth at hand
    starts[0] = True
    node = np.zeros(len(rows), np.int64)  # of each row, at the depth at hand
    first, token, dense, branching, is_dense = [], [], [], [], []
    nodes = 1
    for level, size in enumerate(sizes):
        starts[1:] |= rows[1:, level] != rows[:-1, level]
        parent, codes = node[starts], rows[starts, level]
        children = np.bincount(parent, minlength=nodes)
        branching.append(int(children.max()))
        first.append(np.concatenate([[0], np.cumsum(children)]))
        token.append(np.concatenate([codes, np.zeros(branching[-1], np.int32)]))
        is_dense.append(nodes * size <= dense_limit)
        grid = np.full((nodes if is_dense[-1] else 0, size), -1, np.int32)
        if is_dense[-1]:
            grid[parent, codes] = np.arange(len(parent))
        dense.append(grid)
        node, nodes = np.cumsum(starts) - 1, len(parent)
    leaf_first = np.concatenate([[0], np.cumsum(np.bincount(node, minlength=nodes))])

    def device(array: np.ndarray) -> jax.Array:
        return jnp.asarray(array, jnp.int32)

    trie = Trie(
        first=tuple(map(device, first)),
        token=tuple(map(device, token)),
        dense=tuple(map(device, dense)),
        leaf_first=device(leaf_first),
        leaf_items=device(order),
    )
    return trie, TrieShape(tuple(map(int, sizes)), tuple(branching), tuple(is_dense))


def _span(trie: Trie, level: int, nodes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(first child, one past the last) of nodes [...]; an empty span for nodes below 0."""
    at = jnp.maximum(nodes, 0)
    start, stop = trie.first[level][at], trie.first[level][at + 1]
    return start, jnp.where(nodes >= 0, stop, start)


def children(
    trie: Trie, shape: TrieShape, level: int, nodes: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What may follow nodes of depth `level`, K = shape.branching[level] places each.

    Args:
        trie, shape: of `build`.
        level: 0 .. L - 1.
        nodes: int32 [...], -1 for none.

    Returns:
        (codes int32 [..., K], 0 where there is none; child nodes int32 [..., K], -1 where there
        is none; valid bool [..., K]); codes ascend.
    """
    start, stop = _span(trie, level, nodes)
    offsets = np.arange(shape.branching[level], dtype=np.int32)
    at = start[..., None] + offsets.reshape((1,) * start.ndim + offsets.shape)
    valid = at < stop[..., None]
    return jnp.where(valid, trie.token[level][at], 0), jnp.where(valid, at, -1), valid


def mask(trie: Trie, shape: TrieShape, level: int, nodes: jax.Array) -> jax.Array:
    """Which codes may follow: nodes int32 [...] of depth `level` -> bool [..., W]."""
    size = shape.sizes[level]
    if shape.dense[level]:
        return (trie.dense[level][jnp.maximum(nodes, 0)] >= 0) & (nodes >= 0)[..., None]
    codes, _, valid = children(trie, shape, level, nodes.reshape(-1))
    rows = jnp.arange(codes.shape[0])[:, None]
    places = jnp.where(valid, codes, size)  # beyond the row: dropped
    out = jnp.zeros((codes.shape[0], size), bool).at[rows, places].set(True, mode="drop")
    return out.reshape((*nodes.shape, size))


def step(
    trie: Trie, shape: TrieShape, level: int, nodes: jax.Array, tokens: jax.Array
) -> jax.Array:
    """Child nodes: nodes of depth `level` and codes, int32 [...] both -> int32 [...], -1 where
    there is no such child (nodes below 0 and codes out of range have none)."""
    if shape.dense[level]:
        inside = (nodes >= 0) & (tokens >= 0) & (tokens < shape.sizes[level])
        child = trie.dense[level][jnp.maximum(nodes, 0), jnp.where(inside, tokens, 0)]
        return jnp.where(inside, child, -1)
    low, stop = _span(trie, level, nodes)
    high = stop
    for _ in range(shape.branching[level].bit_length()):
        middle = (low + high) // 2
        less = (trie.token[level][middle] < tokens) & (low < high)
        low, high = jnp.where(less, middle + 1, low), jnp.where(less, high, middle)
    child = (low < stop) & (trie.token[level][low] == tokens)
    return jnp.where(child, low, -1)


def continuations(trie: Trie, shape: TrieShape, sids: jax.Array) -> list[jax.Array]:
    """Codes that may follow the first l digits of SIDs int32 [N, L]: L times bool [N, W_l]."""
    nodes = jnp.zeros(len(sids), jnp.int32)
    out = []
    for level in range(len(shape.sizes)):
        out.append(mask(trie, shape, level, nodes))
        nodes = step(trie, shape, level, nodes, sids[:, level])
    return out


def walk(trie: Trie, shape: TrieShape, sids: jax.Array) -> jax.Array:
    """Leaves of SIDs: int32 [..., L] -> int32 [...], -1 for one that is in no catalogue row."""
    nodes = jnp.zeros(sids.shape[:-1], jnp.int32)
    for level in range(len(shape.sizes)):
        nodes = step(trie, shape, level, nodes, sids[..., level])
    return nodes
