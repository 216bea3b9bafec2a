# SPDX-License-Identifier: Apache-2.0
"""Ranking metrics against sorted lists, and what every rule does to a number."""

import numpy as np
import pytest

from rec import metrics
from rec.data.sequences import Sequences, pack


def ordered(line: np.ndarray, seen: list[int]) -> list[int]:
    """Items by rank, by Python's sort: masked ones last, then higher score, then lower id."""
    return sorted(range(len(line)), key=lambda i: (i in seen, -line[i], i))


def case(seed: int, queries: int = 40, items: int = 30) -> tuple[np.ndarray, np.ndarray, Sequences]:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 6, (queries, items)).astype(np.float32)  # ties everywhere
    rows = [rng.permutation(items)[: 1 + rng.integers(1, 8)] for _ in range(queries)]
    targets = np.array([row[-1] for row in rows], np.int32)
    return scores, targets, pack([row[:-1] for row in rows], items)


@pytest.mark.parametrize("seed", range(5))
def test_ranks_and_top_are_those_of_a_sort(seed: int) -> None:
    scores, targets, seen = case(seed)
    before = scores.copy()
    found, plain = metrics.ranks(scores, targets, seen), metrics.ranks(scores, targets)
    first = metrics.top(scores, 7, seen)
    assert found.dtype == np.int32
    for q in range(len(scores)):
        order = ordered(scores[q], seen.of(q).tolist())
        assert found[q] == order.index(targets[q])
        assert plain[q] == ordered(scores[q], []).index(targets[q])
        assert first[q].tolist() == order[:7]
    np.testing.assert_array_equal(scores, before)


def test_top_runs_out_of_items_and_nan_is_refused() -> None:
    seen = pack([[0, 2]], 3)
    assert metrics.top(np.array([[3.0, 1.0, 2.0]]), 5, seen).tolist() == [[1, -1, -1]]
    for call in (metrics.ranks, metrics.masked):
        with pytest.raises(ValueError, match="NaN"):
            call(np.array([[np.nan, 1.0]]), *([np.array([0])] if call is metrics.ranks else [None]))


def test_values_against_ten_lines() -> None:
    found = np.array([0, 1, 4, 5, 9, 10, 300], np.int32)
    for k in (1, 5, 10):
        expected = [(1.0, 1 / np.log2(rank + 1)) if rank <= k else (0.0, 0.0) for rank in found + 1]
        np.testing.assert_allclose(metrics.recall(found, k), [r for r, _ in expected])
        np.testing.assert_allclose(metrics.ndcg(found, k), [n for _, n in expected])
    np.testing.assert_allclose(metrics.mrr(found), [1 / (1 + r) for r in found])
    assert metrics.mrr(np.array([metrics.MISSED])).tolist() == [0]
    assert metrics.recall(np.array([metrics.MISSED]), 10**6).tolist() == [0]
    values = metrics.summarize(found, (1, 5, 10), "test/", "/x")
    assert set(values) == {
        *(f"test/{m}@{k}/x" for m in ("recall", "ndcg") for k in (1, 5, 10)),
        "test/mrr/x",
    }
    assert values["test/recall@5/x"] == pytest.approx(3 / 7)
    for k in (1, 5, 10):
        assert values[f"test/ndcg@{k}/x"] <= values[f"test/recall@{k}/x"]
    assert values["test/recall@1/x"] <= values["test/recall@5/x"] <= values["test/recall@10/x"]
    with pytest.raises(ValueError, match="no users"):
        metrics.summarize(np.zeros(0, np.int32), (5,))


def test_invalid_and_repeated_beams_occupy_ranks_unless_filtered() -> None:
    beams = np.array([[-1, 4, 4, 2, 7], [3, 3, -1, -1, 3], [1, 2, 3, 4, 5]], np.int32)
    targets = np.array([7, 9, 1], np.int32)
    missed = int(metrics.MISSED)
    assert metrics.rank_in_list(beams, targets).tolist() == [4, missed, 0]
    filtered = metrics.rank_in_list(beams, targets, filter_invalid=True)
    assert filtered.tolist() == [2, missed, 0]
    assert metrics.rank_in_list(beams, np.array([4, 3, 5])).tolist() == [1, 0, 4]
    seen = pack([[4], [3], [2, 1]], 10)
    assert metrics.rank_in_list(beams, np.array([7, 3, 3]), seen).tolist() == [4, missed, 2]
    some = metrics.rank_in_list(beams, np.array([7, 3, 3]), seen, filter_invalid=True)
    assert some.tolist() == [1, missed, 0]


@pytest.mark.parametrize("seed", range(5))
def test_a_list_that_is_long_enough_ranks_like_the_scores(seed: int) -> None:
    scores, targets, seen = case(seed)
    beams = metrics.top(scores, 30, seen)
    for filtered in (False, True):
        found = metrics.rank_in_list(beams, targets, seen, filtered)
        np.testing.assert_array_equal(found, metrics.ranks(scores, targets, seen))


def test_filtered_lists_against_a_loop() -> None:
    rng = np.random.default_rng(0)
    beams, targets = rng.integers(-1, 8, (200, 9)), rng.integers(0, 8, 200)
    found = metrics.rank_in_list(beams, targets, filter_invalid=True)
    for row, target, rank in zip(beams.tolist(), targets, found, strict=True):
        clean = list(dict.fromkeys(item for item in row if item >= 0))
        assert rank == (clean.index(target) if target in clean else metrics.MISSED)


def test_sampled_ranks_are_of_open_items_and_of_the_seed() -> None:
    rng = np.random.default_rng(1)
    scores, targets = rng.random((300, 200)), rng.integers(0, 200, 300)
    seen = pack([rng.permutation(200)[:20] for _ in range(300)], 200)
    one = metrics.uniform_ranks(scores, targets, seen, num=50, seed=3)
    np.testing.assert_array_equal(one, metrics.uniform_ranks(scores, targets, seen, num=50, seed=3))
    assert (one != metrics.uniform_ranks(scores, targets, seen, num=50, seed=4)).any()
    assert one.min() >= 0 and one.max() <= 50
    assert 20 < one.mean() < 30, "a target at random stands in the middle"
    best = scores.copy()
    best[np.repeat(np.arange(300), 20), seen.items] = 9  # history must never be drawn
    best[np.arange(300), targets] = 8
    assert not metrics.uniform_ranks(best, targets, seen, num=50).any()
    # All open items drawn: the rank among them is the full rank.
    whole = metrics.uniform_ranks(scores, targets, None, num=199)
    np.testing.assert_array_equal(whole, metrics.ranks(scores, targets))
    with pytest.raises(ValueError, match="fewer than 190"):
        metrics.uniform_ranks(scores, targets, seen, num=190)


def test_coverage() -> None:
    assert metrics.coverage(np.array([[0, 1], [1, -1]]), 8) == 0.25


def test_bootstrap_is_as_wide_as_the_standard_error() -> None:
    rng = np.random.default_rng(0)
    values = (rng.random(4000) < 0.2).astype(float)
    low, high = metrics.bootstrap(values, seed=1)
    error = values.std() / np.sqrt(4000)
    assert low < values.mean() < high
    assert (high - low) / error == pytest.approx(2 * 1.96, rel=0.1)
    assert metrics.bootstrap(values, seed=1) == (low, high) != metrics.bootstrap(values, seed=2)
    narrow = metrics.bootstrap(values, seed=1, level=0.5)
    assert low < narrow.low < narrow.high < high
    with pytest.raises(ValueError, match="no users"):
        metrics.bootstrap(np.zeros(0))


def test_paired_bootstrap_sees_what_unpaired_ones_miss() -> None:
    rng = np.random.default_rng(0)
    one = rng.random(2000)
    other = one - 0.01
    low, high = metrics.paired_bootstrap(one, other)
    assert low == pytest.approx(0.01) and high == pytest.approx(0.01)
    assert metrics.bootstrap(other).high > metrics.bootstrap(one).low, "overlap, unpaired"
    low, high = metrics.paired_bootstrap(one, rng.permutation(one))
    assert low < 0 < high
    with pytest.raises(ValueError, match="same queries"):
        metrics.paired_bootstrap(one, one[:5])


def test_buckets_share_the_interactions() -> None:
    counts = np.array([0, 50, 1, 1, 30, 20, 0, 49, 49])
    bucket = metrics.popularity_buckets(counts)
    assert bucket[[1, 7]].tolist() == [0, 0], "50 and 49 of 200 are the first third"
    assert bucket[8] == 1 and bucket[[4, 5, 2, 3]].tolist() == [2, 2, 2, 2]
    assert bucket[[0, 6]].tolist() == [2, 2], "never seen in training"
    assert (np.diff(bucket[np.argsort(-counts, kind="stable")]) >= 0).all()
    rng = np.random.default_rng(0)
    counts = rng.geometric(0.05, 3000)
    bucket = metrics.popularity_buckets(counts)
    shares = np.bincount(bucket, counts) / counts.sum()
    np.testing.assert_allclose(shares, 1 / 3, atol=0.01)
    groups = metrics.bucket_groups(counts, np.array([int(counts.argmax()), int(counts.argmin())]))
    assert groups["head"].tolist() == [True, False] and groups["tail"].tolist() == [False, True]
    values = metrics.by_group(np.array([0, 7], np.int32), groups, (5,), "test/")
    assert values["test/recall@5/head"] == 1 and values["test/recall@5/tail"] == 0
    assert values["test/share/mid"] == 0 and "test/recall@5/mid" not in values
