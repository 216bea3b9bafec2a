# SPDX-License-Identifier: Apache-2.0
"""Who can be served by one hop: U+ and U- (the memorisation analysis of IIRG).

O(u) is the set of the 50 most frequent direct successors, in training, over all items of the
history, with multiplicity; ties by training popularity, then by a fixed random order. U+ are the
queries whose target is in O(u). The history of a test query includes the validation item; counts
come from training alone. Items of the history are not taken out of O(u) [our choice].
"""

import numpy as np
import scipy.sparse as sp

from rec.baselines.scorers import counts, product, successors, weights
from rec.data.sequences import Queries, Sequences, select

LIMIT = 50
ROWS = 4096  # queries worked on at a time


def reachable(
    train: Sequences,
    queries: Queries,
    limit: int = LIMIT,
    matrix: sp.csr_matrix | None = None,
    seed: int = 0,
) -> np.ndarray:
    """bool [Q]: U+, whether the target is in O(u).

    Args:
        limit: size of O(u), 0 for all successors.
        matrix: [N, N] counts to reach by; successors unless given (`scorers.neighbors` gives the
            window of 5).
    """
    matrix = successors(train) if matrix is None else matrix
    tie_rank = _tie_rank(counts(train), seed)
    is_reachable = np.zeros(len(queries.targets), bool)
    for start in range(0, len(is_reachable), ROWS):
        rows = np.arange(start, min(start + ROWS, len(is_reachable)))
        hops = _hops(select(queries.history, rows), matrix)
        is_reachable[rows] = _reached(hops, queries.targets[rows], tie_rank, limit)
    return is_reachable


def _hops(history: Sequences, matrix: sp.csr_matrix) -> sp.csr_matrix:
    """float32 [B, N]: how often an item follows any of the history."""
    hops = product(weights(history, 1.0), matrix)
    hops.eliminate_zeros()
    return hops


def _reached(
    hops: sp.csr_matrix, targets: np.ndarray, tie_rank: np.ndarray, limit: int
) -> np.ndarray:
    """bool [B]: the target is among the `limit` largest of its row. Counts what stands before it,
    which is quicker than sorting."""
    at = np.asarray(hops[np.arange(len(targets)), targets]).ravel()
    rows = np.repeat(np.arange(len(targets)), np.diff(hops.indptr))
    first = tie_rank[hops.indices] < tie_rank[targets][rows]
    before = (hops.data > at[rows]) | ((hops.data == at[rows]) & first)
    places = np.bincount(rows, before, len(targets))
    return (at > 0) & ((places < limit) | (limit == 0))


def candidates(
    train: Sequences, queries: Queries, limit: int = LIMIT, seed: int = 0
) -> sp.csr_matrix:
    """bool [Q, N], sparse: row q is O(u)."""
    hops = _hops(queries.history, successors(train))
    rows = np.repeat(np.arange(len(queries.targets)), np.diff(hops.indptr))
    ties = _tie_rank(counts(train), seed)[hops.indices]
    order = np.lexsort((ties, np.negative(hops.data), rows))
    place = np.arange(hops.nnz) - hops.indptr[rows]  # of sorted entries; rows stay where they are
    order = order[place < limit]
    where = (rows[order], hops.indices[order])
    return sp.csr_matrix(
        (np.ones(len(order), bool), where), (len(queries.targets), train.num_items)
    )


def _tie_rank(popularity: np.ndarray, seed: int) -> np.ndarray:
    """int64 [N]: 0 for the item that wins every tie."""
    chance = np.random.default_rng([seed, 0x0501]).permutation(len(popularity))
    rank = np.empty(len(popularity), np.int64)
    rank[np.lexsort((chance, -popularity))] = np.arange(len(popularity))
    return rank


def groups(plus: np.ndarray) -> dict[str, np.ndarray]:
    """Masks for `metrics.by_group`."""
    return {"U+": plus, "U-": ~plus}


def one_hop_ratio(items: np.ndarray, candidates: sp.csr_matrix) -> float:
    """Mean share of a list [Q, K] that is in O(u): how much a model repeats what it has counted.
    Entries of -1 count as not in it."""
    rows = np.repeat(np.arange(len(items)), items.shape[1])
    inside = np.asarray(candidates[rows, np.maximum(items, 0).ravel()]).ravel().astype(bool)
    return float((inside & (items.ravel() >= 0)).mean())
