# SPDX-License-Identifier: Apache-2.0
"""Small graphs for tests, and subgraphs of links by brute force."""

from collections.abc import Sequence

import numpy as np

from graph import csr
from graph.sample import LinkBatch


def cycle(length: int) -> np.ndarray:
    """bool [length, length]: 0 - 1 - ... - 0."""
    adj = np.zeros((length, length), bool)
    for i in range(length):
        adj[i, (i + 1) % length] = adj[(i + 1) % length, i] = True
    return adj


def random_graph(nodes: int, density: float, seed: int) -> np.ndarray:
    """bool [nodes, nodes], symmetric, no loops."""
    upper = np.triu(np.random.default_rng(seed).random((nodes, nodes)) < density, 1)
    return upper | upper.T


def to_csr(adj: np.ndarray) -> csr.CSR:
    return csr.build(np.argwhere(np.triu(adj, 1)).astype(np.int32), len(adj))


def reached(adj: np.ndarray, root: int, hops: int) -> set[int]:
    found = {root}
    for _ in range(hops):
        found |= {int(v) for u in found for v in np.flatnonzero(adj[u])}
    return found


def words(adj: np.ndarray) -> np.ndarray:
    """uint32 [N, ceil(N / 32)], bit by bit."""
    out = np.zeros((len(adj), -(-len(adj) // 32)), np.uint32)
    for i, j in np.argwhere(adj).tolist():
        out[i, j // 32] |= np.uint32(1 << (j % 32))
    return out


def one(adj: np.ndarray, s: int, t: int, hops: int, slots: int, seed: int | None) -> LinkBatch:
    """Complete subgraph within `hops` of s or t, the edge s - t taken out first; unbatched.

    Tokens behind the roots come in ascending order of ids, or shuffled by `seed`.
    """
    adj = adj.copy()
    adj[s, t] = adj[t, s] = False
    rest = sorted((reached(adj, s, hops) | reached(adj, t, hops)) - {s, t})
    if seed is not None:
        rest = np.random.default_rng([seed, s, t]).permutation(rest).astype(int).tolist()
    ids = [s, t, *rest]
    if len(ids) > slots:
        raise ValueError(f"slots={slots} for {len(ids)} tokens")
    local = np.zeros((slots, slots), bool)
    local[: len(ids), : len(ids)] = adj[np.ix_(ids, ids)]
    padded = np.full(slots, -1, np.int32)
    padded[: len(ids)] = ids
    return LinkBatch(words(local), np.int32(len(ids)), padded, np.int32(0))


def links(
    adj: np.ndarray,
    pairs: Sequence[tuple[int, int]],
    hops: int = 1,
    slots: int = 8,
    seed: int | None = None,
) -> LinkBatch:
    """NumPy batch of `one` for each pair."""
    return stack([one(adj, s, t, hops, slots, seed) for s, t in pairs])


def stack(rows: Sequence[LinkBatch]) -> LinkBatch:
    return LinkBatch(*(np.stack(column) for column in zip(*rows, strict=True)))


def dense(batch: LinkBatch) -> np.ndarray:
    """bool [B, N, N] of the bits, bit by bit."""
    B, N = batch.ids.shape
    out = np.zeros((B, N, N), bool)
    for b, i, j in np.ndindex(B, N, N):
        out[b, i, j] = bool((int(batch.adj_bits[b, i, j // 32]) >> (j % 32)) & 1)
    return out
