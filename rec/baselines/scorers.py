# SPDX-License-Identifier: Apache-2.0
"""Baselines that count. Each `<name>(train, ...)` fits and returns its scores: histories of B users
(Sequences) -> float32 [B, N]. Only training items are counted; sparse SciPy matrices throughout.

popularity     how often an item is in training
successor      how often an item follows the last item of the history
cooccurrence   shares of successors and of neighbors within 5 places, over the last 20 items
item_knn       cosine of the users who had both items
content        cosine of item vectors

Scores that tie are told apart by popularity times 1e-6 (1e-7 for item_knn), which is a hair
coarser than a second sort key: a difference of scores below that is overruled [our choice].
Masking of history and the rest of the protocol are those of `rec.metrics`.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from rec.data.sequences import Sequences

Scorer = Callable[[Sequences], np.ndarray]
DECAY = 0.7  # weight lost per step back from the newest item; picked once, never tuned


def counts(train: Sequences) -> np.ndarray:
    """int64 [N]: training interactions of each item."""
    return np.bincount(train.items, minlength=train.num_items)


def pair_counts(train: Sequences, distance: int) -> sp.csr_matrix:
    """float32 [N, N]: how often column item comes `distance` places after row item in a row."""
    rows = np.repeat(np.arange(train.num_users), train.lengths)
    same = rows[distance:] == rows[:-distance]
    first, second = train.items[:-distance][same], train.items[distance:][same]
    shape = (train.num_items, train.num_items)
    return sp.csr_matrix((np.ones(len(first), np.float32), (first, second)), shape)


def successors(train: Sequences) -> sp.csr_matrix:
    """float32 [N, N]: how often column item follows row item directly."""
    return pair_counts(train, 1)


def neighbors(train: Sequences, window: int = 5) -> sp.csr_matrix:
    """float32 [N, N]: how often two items stand within `window` places of each other; symmetric."""
    forward = pair_counts(train, 1)
    for distance in range(2, window + 1):
        forward = forward + pair_counts(train, distance)
    return sp.csr_matrix(forward + forward.T)


def weights(history: Sequences, decay: float | int = DECAY, limit: int = 0) -> sp.csr_matrix:
    """float32 [B, N]: decay ** age of the items of each history, newest first (age 0); of the last
    `limit` items alone where it is not 0. A repeated item adds up."""
    ages = np.repeat(history.offsets[1:], history.lengths) - 1 - np.arange(len(history.items))
    values = np.power(np.float64(decay), ages).astype(np.float32)
    if limit:
        values[ages >= limit] = 0
    shape = (history.num_users, history.num_items)
    # A copy: SciPy sorts indices in place, and these are the history itself.
    matrix = sp.csr_matrix((values, history.items, history.offsets), shape, copy=True)
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    return matrix


def product(left: sp.csr_matrix, right: sp.csr_matrix) -> sp.csr_matrix:
    return sp.csr_matrix(left @ right)


class _Items(NamedTuple):
    """Item-to-item scores, how a history is weighted, and what breaks ties; float32."""

    matrix: sp.csr_matrix
    ties: np.ndarray
    decay: float
    limit: int

    def __call__(self, history: Sequences) -> np.ndarray:
        scores = product(weights(history, self.decay, self.limit), self.matrix).toarray()
        scores += self.ties
        return scores


def _ties(train: Sequences, scale: float) -> np.ndarray:
    """float32 [N]."""
    return (scale * counts(train)).astype(np.float32)


def popularity(train: Sequences) -> Scorer:
    purchases = counts(train).astype(np.float32)
    return lambda history: np.tile(purchases, (history.num_users, 1))


def successor(train: Sequences) -> Scorer:
    """count(last item -> i) + 1e-6 popularity(i)."""
    return _Items(successors(train), _ties(train, 1e-6), 0.0, 1)


def shares(matrix: sp.csr_matrix) -> sp.csr_matrix:
    """Rows divided by their sums; empty rows stay empty."""
    sums = np.asarray(matrix.sum(1)).ravel()
    return sp.csr_matrix(matrix.multiply(1 / np.maximum(sums, 1)[:, None]))


def cooccurrence(train: Sequences, window: int = 5, limit: int = 20) -> Scorer:
    """Sum over the last `limit` items a of 0.7 ** age times the share of i among the successors of
    a plus its share among the neighbors of a (training-free peer of IIRG)."""
    matrix = shares(successors(train)) + shares(neighbors(train, window))
    return _Items(matrix.astype(np.float32), _ties(train, 1e-6), DECAY, limit)


def item_knn(train: Sequences) -> Scorer:
    """Sum over history items a of 0.7 ** age times the cosine of a and i over training users."""
    shape = (train.num_users, train.num_items)
    ones = np.ones(len(train.items), np.float32)
    users = sp.csr_matrix((ones, train.items, train.offsets), shape, copy=True)
    users.sum_duplicates()
    users.data[:] = 1
    norms = np.sqrt(np.maximum(np.asarray(users.sum(0)).ravel(), 1)).astype(np.float32)
    unit = sp.csr_matrix(users.multiply(1 / norms), dtype=np.float32)
    cosine = product(sp.csr_matrix(unit.T), unit)
    cosine.setdiag(0)
    cosine.eliminate_zeros()
    return _Items(cosine, _ties(train, 1e-7), DECAY, 0)


def content(train: Sequences, features: np.ndarray) -> Scorer:
    """Sum over history items a of 0.7 ** age times the inner product of the vectors [N, d] of a and
    i; of the training data nothing is used."""
    if len(features) != train.num_items:
        raise ValueError(f"{len(features)} item vectors for {train.num_items} items")
    return lambda history: np.asarray(weights(history) @ features @ features.T, np.float32)
