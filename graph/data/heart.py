# SPDX-License-Identifier: Apache-2.0
"""Hard negatives as HeaRT makes them (Li et al. 2023), from the graph alone.

    python -m graph.data.heart NAME [--root DIR] [--epsilon E]     overlap with the file's own

For a link (u, v): u with `count` nodes that resource allocation or personalised PageRank put near
it, then as many with v. A node's place is the better of its two ranks (rank 1 is the highest
score, ties take the smallest rank, scores of 0 come last). The node itself, its partner and its
known neighbours are left out; where too few have a score, nodes without one are drawn (seed 42).

The published files also rank by the features of nodes, and carry exclusions over from link to link
by accident; so the same structure comes out, not the same negatives.
"""

import argparse
import os
import sys
from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp

from graph import csr, heuristics
from graph.csr import CSR

EPSILON = {"cora": 1e-7, "citeseer": 1e-7, "ogbl-ppa": 5e-6, "ogbl-citation2": 5e-5}
"""Bound of the push by graph; 1e-5 for all others."""
BATCH = 512  # nodes scored at a time


def negatives(
    graph: CSR,
    pos: np.ndarray,
    excluded: CSR | None = None,
    count: int = 250,
    epsilon: float = 1e-5,
    seed: int = 42,
) -> np.ndarray:
    """int32 [P, 2 * count, 2]: first `count` pairs (u, w), then as many (w, v), for pos [P, 2].

    Args:
        graph: what scores are made from (training edges).
        excluded: whose neighbors are left out, by default `graph` (HeaRT adds validation edges for
            the test).
        epsilon: of the push.

    Among nodes of one rank the choice is random [our choice]. Both halves may name the same pair.

    Raises:
        ValueError: fewer than `count` nodes are left for some end.
    """
    excluded = excluded or graph
    csr.check_ids(pos, graph.num_nodes, "pos")
    out = np.empty((len(pos), 2 * count, 2), np.int32)
    out[:, :count, 0], out[:, count:, 1] = pos[:, :1], pos[:, 1:]
    nodes, which = np.unique(pos, return_inverse=True)
    which = which.reshape(pos.shape)
    matrix = heuristics.adjacency(graph)
    shrunk = sp.csr_array(sp.diags_array(1 / np.maximum(csr.degrees(graph), 1)) @ matrix)
    for at in range(0, len(nodes), BATCH):
        batch = nodes[at : at + BATCH]
        allocation = sp.csr_array(matrix[batch] @ shrunk)
        rank = heuristics.ppr_push(graph, batch, epsilon=epsilon)
        for row, end in np.argwhere((which >= at) & (which < at + BATCH)).tolist():
            i, node = int(which[row, end]) - at, pos[row, end]
            rng = np.random.default_rng([seed, row, end])
            barred = excluded.indices[excluded.indptr[node] : excluded.indptr[node + 1]]
            barred = np.concatenate([barred, pos[row]])
            scored = [_row(allocation, i), _row(rank, i)]
            chosen = _nearest(scored, graph.num_nodes, barred, count, rng)
            half = slice(count) if end == 0 else slice(count, None)
            out[row, half, 1 - end] = chosen
    return out


def _row(matrix: sp.csr_array, i: int) -> tuple[np.ndarray, np.ndarray]:
    """(columns, values) of row i."""
    part = slice(matrix.indptr[i], matrix.indptr[i + 1])
    return matrix.indices[part], matrix.data[part]


def _nearest(
    scored: Sequence[tuple[np.ndarray, np.ndarray]],
    num_nodes: int,
    barred: np.ndarray,
    count: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """[count] nodes by the better of their ranks; scored: (nodes, their scores) of each kind."""
    places = np.full(num_nodes, np.inf)
    for columns, values in scored:
        free = (values > 0) & ~np.isin(columns, barred)
        columns, values = columns[free], values[free]
        ordered = np.sort(-values)
        places[columns] = np.minimum(places[columns], np.searchsorted(ordered, -values) + 1)
    nearest = np.flatnonzero(np.isfinite(places))
    nearest = nearest[np.lexsort((rng.random(len(nearest)), places[nearest]))][:count]
    if len(nearest) < count:
        rest = np.isinf(places)
        rest[barred] = False
        others = np.flatnonzero(rest)
        if len(others) < count - len(nearest):
            raise ValueError(
                f"{count} negatives are wanted for an end that has {len(nearest) + len(others)} "
                "nodes it is not linked to: choose a smaller count"
            )
        nearest = np.append(nearest, rng.choice(others, count - len(nearest), replace=False))
    return nearest


def overlap(ours: np.ndarray, theirs: np.ndarray, num_nodes: int) -> float:
    """Mean over links of the share of `theirs` [P, K, 2] that `ours` [P, K', 2] has too."""
    shares = []
    for a, b in zip(ours.astype(np.int64), theirs.astype(np.int64), strict=True):
        keys = [np.unique(x[:, 0] * num_nodes + x[:, 1]) for x in (a, b)]
        shares.append(np.isin(keys[1], keys[0]).mean())
    return float(np.mean(shares))


def main(argv: list[str] | None = None) -> int:
    """Prints, for valid and test of a file with HeaRT's negatives, how many of them come out."""
    from graph.data import npz  # here, as npz is no part of the generator

    parser = argparse.ArgumentParser(prog="python -m graph.data.heart", description=__doc__)
    parser.add_argument("name", help="of <root>/graph/<name>.npz")
    parser.add_argument("--root", default=os.environ.get("BANYAN_DATA", ""))
    parser.add_argument("--epsilon", type=float, default=0.0, help="bound of the push")
    flags = parser.parse_args(argv)
    try:
        arrays, _, path = npz.read_split(flags.name, flags.root, 0)
        if "heart_test_neg" not in arrays:
            raise ValueError(f"{path} holds no heart_test_neg to compare with")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    num_nodes = int(arrays["num_nodes"])
    edges = csr.clean(arrays["train_pos"], num_nodes).edges
    graph = csr.build(edges, num_nodes)
    both = np.concatenate([edges, csr.clean(arrays["valid_pos"], num_nodes).edges])
    with_valid = csr.build(csr.clean(both, num_nodes).edges, num_nodes)
    epsilon = flags.epsilon or EPSILON.get(flags.name, 1e-5)
    for side, seen in (("valid", graph), ("test", with_valid)):
        theirs = arrays[f"heart_{side}_neg"]
        ours = negatives(graph, arrays[f"{side}_pos"], seen, theirs.shape[1] // 2, epsilon)
        print(
            f"{flags.name} {side}: {overlap(ours, theirs, num_nodes):.1%} of the shipped negatives"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
