# SPDX-License-Identifier: Apache-2.0
"""Metrics of link prediction, the same for heuristics and models. NumPy, on the host.

Two things are called Hits@K and are kept apart by their keys:

- `hits@K`: share of positives whose rank among their negatives is at most K, ties in the middle;
- `ogb_hits@K`: share of positives strictly above the K-th largest of one shared list of negatives,
  1 where the list is shorter than K (the rule of OGB's evaluator).

MRR depends on the list of negatives as much as on the scores: numbers of different protocols
(shared, private, how many) do not compare.
"""

from collections.abc import Callable

import numpy as np

HITS = (1, 3, 10, 20, 50, 100)
OGB_HITS = (20, 50, 100)

Scatter = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def _checked(pos: np.ndarray, neg: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    pos, neg = np.asarray(pos), np.asarray(neg)
    if pos.ndim != 1 or not len(pos):
        raise ValueError(f"scores of positives: [P] with P >= 1 is expected, got {pos.shape}")
    if neg.ndim not in (1, 2) or not neg.size or (neg.ndim == 2 and len(neg) != len(pos)):
        raise ValueError(
            f"scores of negatives: [M], shared, or [{len(pos)}, K], private, is expected, got "
            f"{neg.shape}"
        )
    if np.isnan(pos).any() or np.isnan(neg).any():
        raise ValueError("scores hold NaN: nothing can be ranked by them")
    return pos, neg


def ranks(pos: np.ndarray, neg: np.ndarray) -> np.ndarray:
    """float64 [P], from 1: 1 + (#{neg > pos} + #{neg >= pos}) / 2, so ties share the middle.

    Args:
        pos: scores [P]. neg: [M], shared by all positives, or [P, K], private.

    Raises:
        ValueError: other shapes, none of either, NaN.
    """
    pos, neg = _checked(pos, neg)
    if neg.ndim == 2:
        above = np.count_nonzero(neg > pos[:, None], axis=1)
        not_below = np.count_nonzero(neg >= pos[:, None], axis=1)
    else:
        ordered = np.sort(neg)
        above = len(neg) - np.searchsorted(ordered, pos, "right")
        not_below = len(neg) - np.searchsorted(ordered, pos, "left")
    return 1 + (above + not_below) / 2


def mrr(pos: np.ndarray, neg: np.ndarray) -> float:
    """Mean of 1 / rank, 0 .. 1; shapes and errors as of `ranks`."""
    return float(np.mean(1 / ranks(pos, neg)))


def hits(pos: np.ndarray, neg: np.ndarray, k: int) -> float:
    """Share of positives of rank <= k, 0 .. 1; shapes and errors as of `ranks`."""
    return float(np.mean(ranks(pos, neg) <= k))


def ogb_hits(pos: np.ndarray, neg: np.ndarray, k: int) -> float:
    """Share of positives [P] above the k-th largest of neg [M], 0 .. 1; 1 where M < k.

    Raises:
        ValueError: private negatives, for which the rule has no meaning; see `ranks`.
    """
    pos, neg = _checked(pos, neg)
    if neg.ndim != 1:
        raise ValueError(f"ogb_hits wants one shared list of negatives, got {neg.shape}")
    if len(neg) < k:
        return 1.0
    return float(np.mean(pos > np.partition(neg, len(neg) - k)[len(neg) - k]))


def auc(pos: np.ndarray, neg: np.ndarray) -> float:
    """Probability that a positive scores above a negative, ties half: area under the ROC curve.

    Private negatives are pooled [our choice].
    """
    pos, neg = _checked(pos, neg)
    ordered = np.sort(neg, axis=None)
    below = np.searchsorted(ordered, pos, "left").astype(float)
    not_above = np.searchsorted(ordered, pos, "right")
    return float(np.mean(below + not_above) / (2 * len(ordered)))


def average_precision(pos: np.ndarray, neg: np.ndarray) -> float:
    """Sum over distinct scores, from the largest, of (gain in recall) x (precision there).

    Equal scores are one threshold. Private negatives are pooled [our choice].
    """
    pos, neg = _checked(pos, neg)
    scores = np.concatenate([pos, neg.ravel()])
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    true_positives = np.cumsum(order < len(pos))[ends]
    return float(
        np.sum(np.diff(true_positives, prepend=0) / len(pos) * true_positives / (ends + 1))
    )


def summarize(pos: np.ndarray, neg: np.ndarray) -> dict[str, float]:
    """All metrics of one split, 0 .. 1: auc, ap, mrr, hits@K, and ogb_hits@K where the negatives
    are shared; shapes and errors as of `ranks`."""
    pos, neg = _checked(pos, neg)
    rank = ranks(pos, neg)
    out = {
        "auc": auc(pos, neg),
        "ap": average_precision(pos, neg),
        "mrr": float(np.mean(1 / rank)),
    } | {f"hits@{k}": float(np.mean(rank <= k)) for k in HITS}
    if neg.ndim == 1:
        out |= {f"ogb_hits@{k}": ogb_hits(pos, neg, k) for k in OGB_HITS}
    return out


def unique_pairs(
    pos: np.ndarray, neg: np.ndarray, directed: bool = False
) -> tuple[np.ndarray, Scatter]:
    """What has to be scored, each pair once, and how the scores go back.

    Args:
        pos: int [P, 2]. neg: int [M, 2] or [P, K, 2]. directed: whether (u, v) and (v, u) differ.

    Returns: pairs int32 [U, 2], ascending, u <= v unless directed; and scores [U] -> (scores of
        pos [P], of neg [M] or [P, K]). With a score that does not mind the order of a pair this
        gives what scoring every pair would.
    """
    every = np.concatenate([pos.reshape(-1, 2), neg.reshape(-1, 2)])
    if not directed:
        every = np.sort(every, axis=1)
    width = int(every.max(initial=0)) + 1
    keys, where = np.unique(every[:, 0].astype(np.int64) * width + every[:, 1], return_inverse=True)
    pairs = np.stack(np.divmod(keys, width), axis=1).astype(np.int32)
    where, count = where.reshape(-1), len(pos)

    def scatter(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if len(scores) != len(pairs):
            raise ValueError(f"{len(scores)} scores for {len(pairs)} pairs")
        return scores[where[:count]], scores[where[count:]].reshape(neg.shape[:-1])

    return pairs, scatter
