# SPDX-License-Identifier: Apache-2.0
"""Counting baselines against loops over plain lists; nothing of validation or test is counted."""

from itertools import pairwise

import numpy as np
import pytest

from rec import metrics
from rec.baselines import evaluation, reachability, scorers
from rec.data.sequences import Queries, Sequences, Split, leave_one_out, pack

ITEMS = 25


def rows_of(seed: int, users: int = 60) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    chances = rng.dirichlet(np.full(ITEMS, 0.5))
    chances = (chances + 0.01) / (1 + 0.01 * ITEMS)
    pick = lambda: rng.choice(ITEMS, rng.integers(3, 10), replace=False, p=chances).tolist()
    return [pick() for _ in range(users)]


def brute(name: str, train: list[list[int]], history: list[int]) -> np.ndarray:
    """Scores of one history by the definitions, loop by loop."""
    scores = np.zeros(ITEMS)
    popularity = np.zeros(ITEMS)
    follows, near = np.zeros((ITEMS, ITEMS)), np.zeros((ITEMS, ITEMS))
    for row in train:
        for at, item in enumerate(row):
            popularity[item] += 1
            if at:
                follows[row[at - 1], item] += 1
            for other in range(len(row)):
                near[item, row[other]] += 0 < abs(at - other) <= 5
    aged = [(item, 0.7**age) for age, item in enumerate(reversed(history))]
    if name == "popularity":
        return popularity
    if name == "successor":
        return follows[history[-1]] + 1e-6 * popularity
    if name == "cooccurrence":
        for item, weight in aged[:20]:
            scores += weight * follows[item] / max(follows[item].sum(), 1)
            scores += weight * near[item] / max(near[item].sum(), 1)
        return scores + 1e-6 * popularity
    sets = [{u for u, row in enumerate(train) if item in row} for item in range(ITEMS)]
    for item, weight in aged:
        for other in range(ITEMS):
            both = len(sets[item] & sets[other])
            if other != item and both:
                scores[other] += weight * both / np.sqrt(len(sets[item]) * len(sets[other]))
    return scores + 1e-7 * popularity


@pytest.mark.parametrize("name", ["popularity", "successor", "cooccurrence", "item_knn"])
def test_scores_are_those_of_the_loops(name: str) -> None:
    rows = rows_of(0)
    split = leave_one_out(pack(rows, ITEMS))
    before = [leaf.copy() for leaf in (split.train.items, split.test.history.items)]
    scores = evaluation.fit(split.train)[name](split.test.history)
    assert scores.dtype == np.float32 and scores.shape == (60, ITEMS)
    for row, found in zip(rows, scores, strict=True):
        expected = brute(name, [r[:-2] for r in rows], row[:-1])
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    for leaf, was in zip((split.train.items, split.test.history.items), before, strict=True):
        np.testing.assert_array_equal(leaf, was, "inputs are left alone")


def test_cooccurrence_reads_the_last_twenty_items() -> None:
    train = pack([[0, 1], [2, 3]], 40)
    long = pack([[0, *range(10, 30)], [*range(10, 29), 0]], 40)
    scores = scorers.cooccurrence(train)(long)
    assert scores[0, 1] < 1e-5, "item 0 is 21 places back"
    assert scores[1, 1] > 1


def test_content_is_the_decayed_inner_product() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(ITEMS, 4)).astype(np.float32)
    history = pack(rows_of(1), ITEMS)
    scores = scorers.content(history, features)(history)
    for row, found in zip(rows_of(1), scores, strict=True):
        query = sum(0.7**age * features[item] for age, item in enumerate(reversed(row)))
        np.testing.assert_allclose(found, features @ query, atol=1e-4)
    with pytest.raises(ValueError, match="4 item vectors for 25"):
        scorers.content(history, features[:4])


def test_users_of_one_item_and_of_none_have_scores() -> None:
    train = pack([[], [3], [1, 2]], ITEMS)
    history = pack([[3], [24], []], ITEMS)
    for name, scorer in evaluation.fit(train, np.eye(ITEMS, dtype=np.float32)).items():
        scores = scorer(history)
        assert np.isfinite(scores).all() and scores.shape == (3, ITEMS), name


def test_only_training_items_are_counted() -> None:
    """Changing every validation and test item changes no score of a fixed history."""
    rows = rows_of(2)
    rng = np.random.default_rng(0)
    other = [
        row[:-2] + [i for i in rng.permutation(ITEMS).tolist() if i not in row][:2] for row in rows
    ]
    history = pack([row[:-2] for row in rows], ITEMS)
    fits = [evaluation.fit(leave_one_out(pack(r, ITEMS)).train) for r in (rows, other)]
    for name in fits[0]:
        np.testing.assert_array_equal(fits[0][name](history), fits[1][name](history))


def test_evaluate_has_the_promised_keys_and_any_chunk_gives_the_same() -> None:
    rows = rows_of(3)
    split = leave_one_out(pack(rows, ITEMS))
    features = np.eye(ITEMS, dtype=np.float32)
    found = evaluation.evaluate(split, features)
    for name in evaluation.NAMES:
        for metric in ("recall@5", "recall@10", "ndcg@5", "ndcg@10"):
            assert 0 <= found.metrics[f"{name}/test/{metric}"] <= 1
        assert found.ranks[name].shape == (60,)
    assert {f"popularity/test/recall@10/{group}" for group in ("U+", "U-", "head", "tail")} <= set(
        found.metrics
    )
    scorer = scorers.successor(split.train)
    parts = [
        metrics.ranks(scorer(part.history), part.targets, part.history)
        for part in evaluation.chunks(split.test, 7 * ITEMS)
    ]
    assert [len(part) for part in parts] == [7] * 8 + [4]
    np.testing.assert_array_equal(np.concatenate(parts), found.ranks["successor"])
    without = evaluation.evaluate(split)
    assert not any(key.startswith("content") for key in without.metrics)
    valid = evaluation.evaluate(split, side="valid").metrics
    assert "successor/valid/recall@10" in valid and "successor/test/recall@10" not in valid
    masked, open_ = found.ranks["item_knn"], evaluation.evaluate(split, mask_seen=False)
    assert (masked <= open_.ranks["item_knn"]).all(), "masking takes rivals away"
    lists = evaluation.lists(scorer, split.test, 5)
    in_list = metrics.rank_in_list(lists, split.test.targets)
    np.testing.assert_array_equal(in_list < 5, found.ranks["successor"] < 5)
    mean = metrics.recall(found.ranks["successor"], 5).mean()
    assert found.metrics["successor/test/recall@5"] == pytest.approx(mean)


# ----------------------------------------------------------------------------------- reachability


def brute_candidates(train: list[list[int]], history: list[int], limit: int) -> set[int]:
    """Successors of all history items by count; only where no tie decides."""
    count = np.zeros(ITEMS)
    popularity = np.zeros(ITEMS)
    for row in train:
        for item in row:
            popularity[item] += 1
        for a, b in pairwise(row):
            count[b] += history.count(a)
    order = sorted(np.flatnonzero(count), key=lambda i: (-count[i], -popularity[i]))
    cut = order[:limit] if limit else order
    if limit and len(order) > limit:
        last, following = order[limit - 1], order[limit]
        if (count[last], popularity[last]) == (count[following], popularity[following]):
            return {-1}  # chance decides
    return {int(i) for i in cut}


@pytest.mark.parametrize("limit", [0, 3, 6])
def test_reach_against_loops(limit: int) -> None:
    rows = rows_of(4, users=150)
    split = leave_one_out(pack(rows, ITEMS))
    plus = reachability.reachable(split.train, split.test, limit)
    inside = reachability.candidates(split.train, split.test, limit or ITEMS).toarray()
    checked = 0
    for q, row in enumerate(rows):
        expected = brute_candidates([r[:-2] for r in rows], row[:-1], limit)
        if expected != {-1}:
            assert set(np.flatnonzero(inside[q]).tolist()) == expected
            assert plus[q] == (row[-1] in expected)
            checked += 1
    assert checked > 50 and 0 < plus.mean() < 1
    np.testing.assert_array_equal(plus, inside[np.arange(150), split.test.targets])
    again = reachability.reachable(split.train, split.test, limit)
    np.testing.assert_array_equal(plus, again)


def test_one_hop_ratio_of_the_counter_is_one_and_of_others_less() -> None:
    train = pack([[0, 1], [0, 2], [0, 3], [4, 5]], ITEMS)
    queries = Queries(np.array([0], np.int32), pack([[0]], ITEMS), np.array([1], np.int32))
    near = reachability.candidates(train, queries)
    assert reachability.one_hop_ratio(np.array([[1, 2, 3]]), near) == 1
    assert reachability.one_hop_ratio(np.array([[5, 1, -1, 24]]), near) == 0.25
    lists = evaluation.lists(scorers.successor(train), queries, 3)
    assert reachability.one_hop_ratio(lists, near) == 1


def test_groups_add_up_to_the_whole() -> None:
    split: Split = leave_one_out(pack(rows_of(5, 200), ITEMS))
    found = evaluation.evaluate(split, ks=(5,))
    share = {name: found.metrics[f"successor/test/share/{name}"] for name in ("U+", "U-")}
    assert sum(share.values()) == pytest.approx(1) and share["U+"] == found.plus.mean()
    mean = sum(share[g] * found.metrics[f"successor/test/recall@5/{g}"] for g in share)
    assert mean == pytest.approx(found.metrics["successor/test/recall@5"])
    assert isinstance(split.train, Sequences)
