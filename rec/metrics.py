# SPDX-License-Identifier: Apache-2.0
"""Ranking metrics, the same for every recommender. NumPy, on the host.

Ranks start at 0. Rules that move numbers, all stated where they act:

- full ranking of the catalogue; items of the history are masked (`seen`) or not;
- of equal scores the lower internal id stands first;
- in a list of beams, invalid (-1) and repeated entries occupy ranks unless `filter_invalid`;
- `uni100` ranks the target among 100 uniform negatives: easier by an order of magnitude, and under
  a key of its own.

Keys: `test/recall@10`, `test/ndcg@10`, `test/mrr`, `test/coverage@10`; sampled ones end in
`/uni100`.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rec.data.sequences import Sequences

MISSED = np.int32(np.iinfo(np.int32).max)
"""Rank of a target that is not in the list at all."""


def masked(scores: np.ndarray, seen: Sequences | None) -> np.ndarray:
    """[Q, N] scores with -inf at the items of row q of `seen`; a copy.

    Raises:
        ValueError: NaN among the scores (a model that gives them would rank first everywhere).
    """
    if np.isnan(scores.min(initial=np.inf)):  # the minimum passes NaN on, without a mask
        raise ValueError("scores hold NaN: nothing can be ranked by them")
    if seen is None:
        return scores
    scores = scores.copy()
    scores[np.repeat(np.arange(len(scores)), seen.lengths), seen.items] = -np.inf
    return scores


def ranks(scores: np.ndarray, targets: np.ndarray, seen: Sequences | None = None) -> np.ndarray:
    """int32 [Q]: items that stand before the target, all of the catalogue being ranked.

    Args:
        scores: [Q, N], more is better. targets: int [Q].
        seen: row q holds the history of query q, which is masked. A target in its own history is
            masked too, and so ranked behind all that are not.
    """
    scores = masked(scores, seen)
    target = np.take_along_axis(scores, targets[:, None].astype(np.int64), 1)
    before = np.count_nonzero(scores > target, axis=1)
    equal = (scores == target) & (np.arange(scores.shape[1]) < targets[:, None])
    return (before + np.count_nonzero(equal, axis=1)).astype(np.int32)


def top(scores: np.ndarray, k: int, seen: Sequences | None = None) -> np.ndarray:
    """int32 [Q, k]: items in rank order under the same rules; -1 where fewer are not masked."""
    scores = masked(scores, seen)
    k = min(k, scores.shape[1])
    lowest = np.partition(scores, -k, axis=1)[:, -k]
    best = np.full((len(scores), k), -1, np.int32)
    for row, (line, bound) in enumerate(zip(scores, lowest, strict=True)):
        items = np.flatnonzero((line >= bound) & (line > -np.inf))
        items = items[np.argsort(-line[items], kind="stable")][:k]
        best[row, : len(items)] = items
    return best


def rank_in_list(
    items: np.ndarray,
    targets: np.ndarray,
    seen: Sequences | None = None,
    filter_invalid: bool = False,
) -> np.ndarray:
    """int32 [Q]: place of the target in a list (beams, best first), MISSED where it is absent.

    Args:
        items: int [Q, K], -1 for a beam that is no item. targets: int [Q].
        seen: histories whose items count as invalid.
        filter_invalid: take invalid and repeated entries out before counting; else they keep their
            places, as in GRID, PSID and ActionPiece (TIGER filters).
    """
    valid = items >= 0
    if seen is not None:
        is_seen = np.zeros((len(items), seen.num_items), bool)
        is_seen[np.repeat(np.arange(len(items)), seen.lengths), seen.items] = True
        valid &= ~np.take_along_axis(is_seen, np.maximum(items, 0), 1)
    hits = (items == targets[:, None]) & valid
    place = np.argmax(hits, axis=1)
    if filter_invalid:
        earlier = np.tril(np.ones((items.shape[1], items.shape[1]), bool), -1)
        repeated = ((items[:, :, None] == items[:, None, :]) & earlier).any(2)
        place_among_valid = np.cumsum(valid & ~repeated, axis=1) - 1
        place = np.take_along_axis(place_among_valid, place[:, None], 1)[:, 0]
    return np.where(hits.any(1), place, MISSED).astype(np.int32)


def uniform_ranks(
    scores: np.ndarray,
    targets: np.ndarray,
    seen: Sequences | None = None,
    num: int = 100,
    seed: int = 0,
) -> np.ndarray:
    """int32 [Q]: rank of the target among `num` items drawn without replacement, uniformly, from
    those that are neither target nor history. The tie rule is that of `ranks`.

    Raises:
        ValueError: a query has fewer than `num` such items.
    """
    rng = np.random.default_rng([seed, 0x0100])
    open_ = np.ones(scores.shape, bool)
    open_[np.arange(len(scores)), targets] = False
    if seen is not None:
        open_[np.repeat(np.arange(len(scores)), seen.lengths), seen.items] = False
    if (open_.sum(1) < num).any():
        raise ValueError(f"fewer than {num} items are left to draw negatives from")
    sampled_ranks = np.empty(len(scores), np.int32)
    for row, (line, target) in enumerate(zip(scores, targets, strict=True)):
        drawn = rng.choice(np.flatnonzero(open_[row]), num, replace=False)
        equal = (line[drawn] == line[target]) & (drawn < target)
        sampled_ranks[row] = np.sum(line[drawn] > line[target]) + np.sum(equal)
    return sampled_ranks


# ---------------------------------------------------------------------------- values per user


def recall(ranks: np.ndarray, k: int) -> np.ndarray:
    """float64 [Q]: 1 where the target is among the first k."""
    return (ranks < k).astype(float)


def ndcg(ranks: np.ndarray, k: int) -> np.ndarray:
    """float64 [Q]: 1 / log2(rank + 2) where the target is among the first k, else 0."""
    return np.where(ranks < k, 1 / np.log2(ranks + 2.0), 0.0)


def mrr(ranks: np.ndarray) -> np.ndarray:
    """float64 [Q]: 1 / (rank + 1); 0 where the target was not ranked."""
    return np.where(ranks == MISSED, 0.0, 1 / (ranks + 1.0))


def coverage(items: np.ndarray, num_items: int) -> float:
    """Share of the catalogue that is in anybody's list; items: int [Q, K], -1 for none."""
    return len(np.unique(items[items >= 0])) / num_items


def summarize(
    ranks: np.ndarray, ks: Sequence[int], prefix: str = "", suffix: str = ""
) -> dict[str, float]:
    """Means over users under `<prefix>recall@k<suffix>`, `ndcg@k` and `mrr`.

    Raises:
        ValueError: nobody to average over.
    """
    if not len(ranks):
        raise ValueError("no users to average over")
    values = {f"{prefix}recall@{k}{suffix}": recall(ranks, k) for k in ks}
    values |= {f"{prefix}ndcg@{k}{suffix}": ndcg(ranks, k) for k in ks}
    values[f"{prefix}mrr{suffix}"] = mrr(ranks)
    return {key: float(value.mean()) for key, value in values.items()}


# -------------------------------------------------------------------------------- uncertainty


class Interval(NamedTuple):
    low: float
    high: float


def bootstrap(
    values: np.ndarray, seed: int = 0, draws: int = 1000, level: float = 0.95
) -> Interval:
    """Percentile interval of the mean of values [Q] over users drawn with replacement."""
    if not len(values):
        raise ValueError("no users to draw from")
    means = [values[users].mean() for users in _draw_users(len(values), seed, draws)]
    return _percentiles(means, level)


def _draw_users(count: int, seed: int, draws: int) -> Iterator[np.ndarray]:
    """Yields `draws` samples of users with replacement, int [count] each."""
    rng = np.random.default_rng([seed, 0xB007])
    for _ in range(draws):
        yield rng.integers(count, size=count)


def _percentiles(statistics: list[float], level: float) -> Interval:
    low, high = np.quantile(statistics, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def paired_bootstrap(
    ours: np.ndarray, theirs: np.ndarray, seed: int = 0, draws: int = 1000, level: float = 0.95
) -> Interval:
    """Returns the interval of mean(ours) - mean(theirs), the same users being drawn for both."""
    if ours.shape != theirs.shape:
        raise ValueError(f"{len(ours)} and {len(theirs)} users: both must answer the same queries")
    return bootstrap(ours - theirs, seed, draws, level)


def ratio_bootstrap(
    ours: np.ndarray, theirs: np.ndarray, seed: int = 0, draws: int = 1000, level: float = 0.95
) -> Interval:
    """Returns the interval of mean(ours) / mean(theirs), the same users being drawn for both. Draws
    in which theirs are all 0 have no ratio and are left out.

    Args:
        ours, theirs: values per user [Q], at least 0.

    Raises:
        ValueError: other queries, or nothing to divide by.
    """
    if ours.shape != theirs.shape:
        raise ValueError(f"{len(ours)} and {len(theirs)} users: both must answer the same queries")
    if not theirs.any():
        raise ValueError("theirs are all 0: there is no ratio")
    ratios = []
    for users in _draw_users(len(ours), seed, draws):
        total = theirs[users].sum()
        if total > 0:
            ratios.append(ours[users].sum() / total)
    return _percentiles(ratios, level)


# ------------------------------------------------------------------------------------- groups

BUCKETS = ("head", "mid", "tail")


def popularity_buckets(counts: np.ndarray) -> np.ndarray:
    """int8 [N]: 0 head, 1 mid, 2 tail. Items in descending order of training count (ties to the
    lower id) are cut where a third and two thirds of all interactions are reached; an item never
    seen in training is tail."""
    order = np.argsort(-counts, kind="stable")
    before = np.cumsum(counts[order]) - counts[order]
    bucket = np.empty(len(counts), np.int8)
    bucket[order] = np.minimum(3 * before // max(counts.sum(), 1), 2)
    bucket[counts == 0] = 2
    return bucket


def by_group(
    ranks: np.ndarray,
    groups: Mapping[str, np.ndarray],
    ks: Sequence[int],
    prefix: str = "",
) -> dict[str, float]:
    """`summarize` of each group, a bool [Q] mask by name: `<prefix>recall@10/head`, and its share
    of the queries as `<prefix>share/head`. Empty groups have a share alone."""
    metrics = {}
    for name, mask in groups.items():
        metrics[f"{prefix}share/{name}"] = float(mask.mean())
        if mask.any():
            metrics |= summarize(ranks[mask], ks, prefix, f"/{name}")
    return metrics


def bucket_groups(counts: np.ndarray, targets: np.ndarray) -> dict[str, np.ndarray]:
    """Masks for `by_group`: queries whose target is head, mid or tail."""
    bucket = popularity_buckets(counts)[targets]
    return {name: bucket == number for number, name in enumerate(BUCKETS)}
