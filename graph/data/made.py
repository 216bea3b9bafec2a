# SPDX-License-Identifier: Apache-2.0
"""Graphs made from a seed: one whose links can be predicted, one with the shape of large ones."""

import numpy as np

from graph import csr
from graph.data.raw import Raw, raw

CHUNK = 1 << 22  # edges drawn at a time


def planted(seed: int, num_nodes: int = 200, degree: int = 12, noise: float = 0.05) -> Raw:
    """Random geometric graph: points in the unit square, the nearest pairs of all linked, so that
    the ends of a link share neighbours; a share `noise` of the edges joins random nodes instead.
    About degree * num_nodes / 2 edges.

    Raises:
        ValueError: less than 3 nodes, a degree they cannot have, noise outside [0, 1).
    """
    if num_nodes < 3 or not 0 < degree < num_nodes - 1 or not 0 <= noise < 1:
        raise ValueError(
            f"planted graph: num_nodes={num_nodes} >= 3, 0 < degree={degree} < num_nodes - 1 and "
            f"0 <= noise={noise} < 1 are wanted"
        )
    rng = np.random.default_rng([seed, 0x6E0])
    points = rng.random((num_nodes, 2))
    u, v = np.triu_indices(num_nodes, 1)
    far = ((points[u] - points[v]) ** 2).sum(axis=1)
    count = num_nodes * degree // 2
    close = np.argsort(far, kind="stable")[: count - round(count * noise)]
    wild = rng.integers(0, num_nodes, (count - len(close), 2))
    return raw(np.concatenate([np.stack([u[close], v[close]], axis=1), wild]), num_nodes)


def chung_lu(num_nodes: int, num_edges: int, seed: int, exponent: float = 2.3) -> np.ndarray:
    """Cleaned edges int32 [num_edges, 2], expected degrees by a power law (Chung, Lu 2002).

    Each end of an edge is drawn by weight (rank + 1)^(-1 / (exponent - 1)), no weight above
    sqrt(2 E) expected edges, as the model needs; loops and repeats are drawn again. Which node has
    which rank is random. 24 bytes of memory an edge at the peak.

    Raises:
        ValueError: exponent <= 2 (no mean degree), more edges than a quarter of all pairs, or more
            nodes than have int32 ids.
    """
    if not exponent > 2:
        raise ValueError(f"exponent={exponent} must be above 2")
    if num_nodes > csr.LIMIT:
        raise ValueError(f"num_nodes={num_nodes} does not fit int32 ids, at most {csr.LIMIT}")
    if not 0 < num_edges <= num_nodes * (num_nodes - 1) // 8:
        raise ValueError(
            f"num_edges={num_edges} must be positive and at most a quarter of the pairs of "
            f"{num_nodes} nodes"
        )
    rng = np.random.default_rng([seed, 0xC1])
    weight = np.arange(1, num_nodes + 1, dtype=float) ** (-1 / (exponent - 1))
    weight = np.minimum(weight / weight.sum() * 2 * num_edges, np.sqrt(2 * num_edges))
    upto = np.cumsum(weight) / weight.sum()
    ids = rng.permutation(num_nodes).astype(np.int32)
    keys = np.zeros(0, np.int64)
    while len(keys) < num_edges:
        missing = num_edges - len(keys)
        keys = np.concatenate([keys, _draw(rng, upto, ids, missing + missing // 16 + 64)])
        keys.sort()
        first = np.ones(len(keys), bool)
        np.not_equal(keys[1:], keys[:-1], out=first[1:])
        keys = keys[first]
    if len(keys) > num_edges:
        spare = rng.choice(len(keys), len(keys) - num_edges, replace=False, shuffle=False)
        keys = np.delete(keys, spare)
    edges = np.empty((num_edges, 2), np.int32)
    for at in range(0, num_edges, CHUNK):
        part = slice(at, at + CHUNK)
        edges[part, 0], edges[part, 1] = np.divmod(keys[part], num_nodes)
    return edges


def _draw(rng: np.random.Generator, upto: np.ndarray, ids: np.ndarray, count: int) -> np.ndarray:
    """int64 keys u * V + v, u < v, of at most `count` pairs: loops are left out."""
    keys, filled = np.empty(count, np.int64), 0
    for at in range(0, count, CHUNK):
        rank = np.searchsorted(upto, rng.random((min(CHUNK, count - at), 2)), "right")
        ends = ids[np.minimum(rank, len(ids) - 1)].astype(np.int64)
        ends = ends[ends[:, 0] != ends[:, 1]]
        part = slice(filled, filled + len(ends))
        keys[part] = ends.min(axis=1) * len(ids) + ends.max(axis=1)
        filled += len(ends)
    return keys[:filled]


def chung_lu_graph(name: str) -> Raw:
    """The graph that `name` = "<nodes>-<edges>-<seed>" says.

    Raises:
        ValueError: another form of name, or sizes that `chung_lu` refuses.
    """
    parts = name.split("-")
    if len(parts) != 3 or not all(part.isdecimal() for part in parts):
        raise ValueError(
            f"name={name!r}: a Chung-Lu graph is named <nodes>-<edges>-<seed>, e.g. 10000-50000-0"
        )
    nodes, edges, seed = (int(part) for part in parts)
    edge_list = chung_lu(nodes, edges, seed)
    empty = np.zeros((nodes, 0), np.float32)
    names = [str(i) for i in range(nodes)]
    return Raw(edge_list, nodes, np.zeros(0), empty, names, {"loops": 0, "duplicates": 0})
