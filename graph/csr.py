# SPDX-License-Identifier: Apache-2.0
"""Undirected graphs in compressed sparse rows."""

from typing import NamedTuple

import numpy as np

CHUNK = 1 << 22  # edges worked on at a time: bounds the temporary memory of a large graph
LIMIT = np.iinfo(np.int32).max


class CSR(NamedTuple):
    """Both directions of every edge, without loops and repeats.

    indptr: int32 [V + 1], int64 where 2^31 entries or more are stored; indices: int32 [entries],
    ascending within each row. NumPy on the host, jax arrays on a device.
    """

    indptr: np.ndarray
    indices: np.ndarray

    @property
    def num_nodes(self) -> int:
        return len(self.indptr) - 1


class Cleaned(NamedTuple):
    """edges: int32 [E, 2], u < v, ascending, no repeats; loops, duplicates: rows left out."""

    edges: np.ndarray
    loops: int
    duplicates: int


def check_ids(edges: np.ndarray, num_nodes: int, what: str = "edges") -> None:
    """Raises ValueError: not integers [.., 2], a negative id, or one >= num_nodes (an id of exactly
    num_nodes and none of 0 is the mark of 1-based ids, and is named so)."""
    if edges.shape[-1:] != (2,) or not np.issubdtype(edges.dtype, np.integer):
        raise ValueError(f"{what}: integers [.., 2] wanted, got {edges.dtype} {edges.shape}")
    if not edges.size:
        return
    low, high = int(edges.min()), int(edges.max())
    if low < 0:
        raise ValueError(f"{what}: node id {low} is negative; ids are 0 .. {num_nodes - 1}")
    if high >= num_nodes:
        based = low >= 1 and high == num_nodes
        hint = "; these ids count from 1: subtract 1 from each" if based else ""
        raise ValueError(
            f"{what}: node id {high} in a graph of {num_nodes} nodes (0 .. {num_nodes - 1}){hint}"
        )


def clean(edges: np.ndarray, num_nodes: int) -> Cleaned:
    """Edges in either order, loops and repeats among them -> each undirected edge once.

    Raises:
        ValueError: see `check_ids`; num_nodes >= 2^31.
    """
    if not 0 <= num_nodes <= LIMIT:
        raise ValueError(f"num_nodes={num_nodes} does not fit int32 ids")
    check_ids(edges, num_nodes)
    keys = np.empty(len(edges), np.int64)  # u * V + v
    filled = 0
    for at in range(0, len(edges), CHUNK):
        u, v = edges[at : at + CHUNK].astype(np.int64).T
        part = (np.minimum(u, v) * num_nodes + np.maximum(u, v))[u != v]
        keys[filled : filled + len(part)] = part
        filled += len(part)
    keys, loops = keys[:filled], len(edges) - filled
    keys.sort()
    first = np.ones(len(keys), bool)
    np.not_equal(keys[1:], keys[:-1], out=first[1:])
    keys = keys[first]
    out = np.empty((len(keys), 2), np.int32)
    for at in range(0, len(keys), CHUNK):
        part = slice(at, at + CHUNK)
        out[part, 0], out[part, 1] = np.divmod(keys[part], max(num_nodes, 1))
    return Cleaned(out, loops, len(edges) - loops - len(keys))


def build(edges: np.ndarray, num_nodes: int) -> CSR:
    """CSR of cleaned edges int [E, 2] (u < v, no repeats), in memory linear in E.

    Raises:
        ValueError: see `check_ids`; loops or repeats (`clean` takes them out).
    """
    check_ids(edges, num_nodes)
    entries = 2 * len(edges)
    keys = np.empty(entries, np.int64)  # row * V + column of both directions
    for at in range(0, len(edges), CHUNK):
        part = edges[at : at + CHUNK].astype(np.int64)
        if (part[:, 0] == part[:, 1]).any():
            raise ValueError("build: edges hold a loop; clean them first")
        keys[2 * at : 2 * at + 2 * len(part) : 2] = part[:, 0] * num_nodes + part[:, 1]
        keys[2 * at + 1 : 2 * at + 2 * len(part) : 2] = part[:, 1] * num_nodes + part[:, 0]
    keys.sort()
    if (keys[1:] == keys[:-1]).any():
        raise ValueError("build: edges hold repeats; clean them first")
    starts = np.arange(num_nodes + 1, dtype=np.int64) * num_nodes
    indptr = np.searchsorted(keys, starts).astype(np.int32 if entries <= LIMIT else np.int64)
    indices = np.empty(entries, np.int32)
    for at in range(0, entries, CHUNK):
        part = slice(at, at + CHUNK)
        indices[part] = keys[part] % max(num_nodes, 1)
    return CSR(indptr, indices)


def degrees(graph: CSR) -> np.ndarray:
    """Neighbours of each node, [V]."""
    return np.diff(graph.indptr)


def edges_of(graph: CSR) -> np.ndarray:
    """int32 [E, 2], u < v, ascending: inverse of `build`."""
    entries = len(graph.indices)
    out, filled = np.empty((entries // 2, 2), np.int32), 0
    for at in range(0, entries, CHUNK):
        ends = graph.indices[at : at + CHUNK]
        rows = np.searchsorted(graph.indptr, np.arange(at, at + len(ends)), "right") - 1
        upper = np.flatnonzero(rows < ends)
        part = slice(filled, filled + len(upper))
        out[part, 0], out[part, 1] = rows[upper], ends[upper]
        filled += len(upper)
    return out


def contains(graph: CSR, pairs: np.ndarray) -> np.ndarray:
    """Whether each of pairs int [.., 2] is an edge, bool [..]; memory linear in the pairs.

    A binary search of v in u's row for all pairs at once.
    """
    u, v = pairs[..., 0], pairs[..., 1]
    low, stop = graph.indptr[u].astype(np.int64), graph.indptr[u + 1].astype(np.int64)
    end = stop
    last = max(len(graph.indices) - 1, 0)
    if not len(graph.indices):
        return np.zeros(u.shape, bool)
    while (low < end).any():
        middle = (low + end) // 2
        below = (graph.indices[np.minimum(middle, last)] < v) & (low < end)
        end = np.where(below | (low >= end), end, middle)
        low = np.where(below, middle + 1, low)
    return (low < stop) & (graph.indices[np.minimum(low, last)] == v)
