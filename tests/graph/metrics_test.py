# SPDX-License-Identifier: Apache-2.0
"""Link-prediction metrics against definitions written out pair by pair."""

import numpy as np
import pytest

from graph import metrics


def made(seed: int, private: bool, levels: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Scores with many ties."""
    rng = np.random.default_rng(seed)
    shape = (7, 12) if private else (15,)
    return rng.integers(0, levels, 7) + 1.0, rng.integers(0, levels, shape) * 1.0


@pytest.mark.parametrize("private", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_against_loops(seed: int, private: bool) -> None:
    pos, neg = made(seed, private)
    lists = neg.tolist() if private else [neg.tolist()] * len(pos)
    wanted = []
    for p, others in zip(pos.tolist(), lists, strict=True):
        places = [1 + sum(x > p for x in others)]  # every place the tie could stand in
        places += [places[0] + i + 1 for i in range(sum(x == p for x in others))]
        wanted.append(sum(places) / len(places))
    np.testing.assert_allclose(metrics.ranks(pos, neg), wanted)
    found = metrics.summarize(pos, neg)
    assert found["mrr"] == pytest.approx(sum(1 / r for r in wanted) / 7) == metrics.mrr(pos, neg)
    for k in metrics.HITS:
        assert found[f"hits@{k}"] == pytest.approx(sum(r <= k for r in wanted) / 7)
        assert found[f"hits@{k}"] == metrics.hits(pos, neg, k)
    pool = neg.ravel().tolist()
    wins = [(p > n) + 0.5 * (p == n) for p in pos.tolist() for n in pool]
    assert found["auc"] == pytest.approx(sum(wins) / len(wins))
    area = 0.0
    for threshold in sorted({*pos.tolist(), *pool}, reverse=True):
        taken = sum(p >= threshold for p in pos) + sum(n >= threshold for n in pool)
        area += sum(p == threshold for p in pos) / 7 * sum(p >= threshold for p in pos) / taken
    assert found["ap"] == pytest.approx(area)
    assert ("ogb_hits@20" in found) == (not private)


def test_against_scikit_learn() -> None:
    from sklearn.metrics import average_precision_score, roc_auc_score

    pos, neg = made(3, False)
    label, score = np.r_[np.ones(7), np.zeros(15)], np.r_[pos, neg]
    assert metrics.auc(pos, neg) == pytest.approx(roc_auc_score(label, score))
    assert metrics.average_precision(pos, neg) == pytest.approx(
        average_precision_score(label, score)
    )


def test_constant_scores_stand_in_the_middle() -> None:
    for count in (1, 10, 500):
        flat = metrics.summarize(np.zeros(4), np.zeros((4, count)))
        assert flat["mrr"] == pytest.approx(1 / (count / 2 + 1))
        assert flat["auc"] == 0.5
    assert 100 * metrics.mrr(np.zeros(4), np.zeros((4, 500))) == pytest.approx(0.398, abs=5e-4)


def test_one_negative_gives_half_at_least() -> None:
    rng = np.random.default_rng(0)
    assert metrics.mrr(rng.normal(size=50) - 99, rng.normal(size=(50, 1))) == 0.5
    assert metrics.mrr(rng.normal(size=50), rng.normal(size=(50, 1))) > 0.5


def test_the_two_hits() -> None:
    """The rank form counts a tie with the K-th negative as half a place; OGB's rule as a miss."""
    neg = np.array([5.0, 4.0, 3.0, 2.0])
    pos = np.array([9.0, 4.0, 3.0])
    assert metrics.ogb_hits(pos, neg, 2) == pytest.approx(1 / 3), "strictly above 4"
    assert metrics.ogb_hits(pos, neg, 3) == pytest.approx(2 / 3)
    assert metrics.hits(pos, neg, 2) == pytest.approx(1 / 3), "rank 2.5"
    assert metrics.hits(pos, neg, 3) == pytest.approx(2 / 3)
    assert (
        metrics.ogb_hits(np.array([4.0]), neg, 3) == 1
        and metrics.hits(np.array([4.0]), neg, 2) == 0
    )
    assert metrics.ogb_hits(np.array([-99.0]), neg, 5) == 1, "fewer than K negatives"
    assert metrics.ogb_hits(np.array([-99.0]), neg, 4) == 0
    with pytest.raises(ValueError, match="one shared list"):
        metrics.ogb_hits(pos, np.zeros((3, 4)), 2)


@pytest.mark.parametrize("directed", [False, True])
@pytest.mark.parametrize("private", [False, True])
def test_unique_pairs_score_as_all_do(private: bool, directed: bool) -> None:
    rng = np.random.default_rng(5)
    pos = rng.integers(0, 9, (6, 2))
    neg = rng.integers(0, 9, (6, 30, 2) if private else (80, 2))
    table = rng.normal(size=(9, 9))
    table = table if directed else table + table.T
    score = lambda pairs: table[pairs[..., 0], pairs[..., 1]]
    pairs, scatter = metrics.unique_pairs(pos, neg, directed)
    every = [tuple(x) for x in np.concatenate([pos, neg.reshape(-1, 2)]).tolist()]
    wanted = set(every) if directed else {(min(x), max(x)) for x in every}
    assert [tuple(x) for x in pairs.tolist()] == sorted(wanted) and pairs.dtype == np.int32
    found = scatter(score(pairs))
    np.testing.assert_array_equal(found[0], score(pos))
    np.testing.assert_array_equal(found[1], score(neg))
    with pytest.raises(ValueError, match="scores for"):
        scatter(score(pairs)[1:])


def test_bad_scores_are_refused() -> None:
    good = np.zeros(3)
    for pos, neg, message in (
        (np.array([0, np.nan, 0]), good, "NaN"),
        (good, np.array([np.nan]), "NaN"),
        (good, np.zeros((2, 5)), r"\[3, K\]"),
        (good, np.zeros(0), "negatives"),
        (np.zeros(0), good, "positives"),
    ):
        with pytest.raises(ValueError, match=message):
            metrics.summarize(pos, neg)
