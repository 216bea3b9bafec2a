# SPDX-License-Identifier: Apache-2.0
"""What a tokenizer reads of an item beside its text: how it occurs with others in training.

With c(i, j) how often two items stand within five places of each other in a training sequence,
direct neighbors counted three times, PPMI = max(log(c(i, j) c / (c(i) c(j))), 0) (Levy and
Goldberg 2014), and its truncated SVD U S V^T gives the vectors U sqrt(S). Codes of text alone say
what an item is, not who buys it; residual k-means on both, each of length 1, says both [our
choice].
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp
from scipy.sparse.linalg import svds

from rec.baselines import scorers
from rec.data.sequences import Sequences
from rec.names import SID_SOURCES

RANK = 64
DIRECT = 3  # weight of direct neighbors
DENSE = 2000  # items up to which all singular vectors are computed


def ppmi(train: Sequences) -> sp.csr_matrix:
    """float64 [N, N], symmetric, zero where two items never stand near each other."""
    direct = scorers.successors(train).astype(np.float64)
    counts = scorers.neighbors(train).astype(np.float64) + (DIRECT - 1) * (direct + direct.T)
    counts = sp.coo_matrix(counts)
    sums = np.asarray(counts.sum(axis=1)).ravel()
    expected = sums[counts.row] * sums[counts.col] / max(sums.sum(), 1.0)
    values = np.maximum(np.log(counts.data / expected), 0.0)
    return sp.csr_matrix((values, (counts.row, counts.col)), counts.shape)


def cooccurrence(train: Sequences, rank: int = RANK) -> np.ndarray:
    """Vectors float32 [N, rank] of training items; 0 for an item without neighbors, and in columns
    beyond the number of items."""
    matrix = ppmi(train)
    N = train.num_items
    kept = min(rank, N)
    if N > DENSE:
        parts: Any = svds(matrix, k=kept, v0=np.ones(N))
        left, values, _ = parts
        order = np.argsort(-values)
        left, values = left[:, order], values[order]
    else:
        left, values, _ = np.linalg.svd(matrix.toarray())
    vectors = left[:, :kept] * np.sqrt(values[:kept])
    vectors[np.asarray(abs(matrix).sum(axis=1)).ravel() == 0] = 0.0  # the SVD may put any there
    return np.pad(vectors, ((0, 0), (0, rank - kept))).astype(np.float32)


def join(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Rows of all parts side by side, each of length 1 (or 0): float32 [N, sum of widths]."""
    lengths = [np.linalg.norm(x, axis=1, keepdims=True) for x in parts]
    units = [x / np.where(n > 0, n, 1.0) for x, n in zip(parts, lengths, strict=True)]
    return np.concatenate(units, axis=1).astype(np.float32)


def inputs(name: str, text: np.ndarray, train: Sequences) -> tuple[np.ndarray, tuple[int, ...]]:
    """What a tokenizer reads, float32 [N, D], and the widths of its sources, () for one.

    Args:
        name: of SID_SOURCES; "text" is the vectors as they are.
        text: float32 [N, d].
        train: training sequences alone.

    Raises:
        ValueError: another name.
    """
    if name not in SID_SOURCES:
        raise ValueError(f"sources={name!r}: must be one of {SID_SOURCES}")
    if name == "text":
        return text, ()
    vectors = cooccurrence(train)
    return join([text, vectors]), (text.shape[1], vectors.shape[1])
