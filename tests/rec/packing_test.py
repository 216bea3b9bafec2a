# SPDX-License-Identifier: Apache-2.0
"""Packed training pairs: every pair once a pass, contexts, ages, and the law of their weights."""

import collections
import itertools

import numpy as np
import pytest

from rec import augment
from rec.augment import Exponents
from rec.data import packing
from rec.data import sequences as seq

LENGTHS = (3, 1, 7, 2, 0, 12, 5)
EXPONENTS = {
    "last_target": augment.LAST_TARGET,
    "prefixes": augment.PREFIXES,
    "genpas": Exponents(0.5, -0.7, 0.0),
}


def corpus(seed: int = 0) -> seq.Sequences:
    rng = np.random.default_rng(seed)
    return seq.pack([rng.integers(0, 50, n) for n in LENGTHS], 50)


def pairs_of(train: seq.Sequences) -> list[tuple[int, int, int]]:
    """(item, next item, age), by plain loops."""
    out = []
    for user in range(train.num_users):
        items = train.of(user).tolist()
        for t in range(len(items) - 1):
            out.append((items[t], items[t + 1], len(items) - 2 - t))
    return out


def test_every_pair_once_and_the_front_again_at_the_end() -> None:
    train = corpus()
    wanted = pairs_of(train)
    packed = packing.pack_pass(train, np.random.default_rng(1), rows=2, length=5)
    assert packed.items.shape == (packing.count_batches(train, 2, 5), 2, 5)
    flat = [x.reshape(-1).tolist() for x in packed[:4]]
    ages = [min(age, 4) for _, _, age in wanted]
    count = len(wanted)
    found = collections.Counter(zip(flat[0][:count], flat[1][:count], flat[3][:count], strict=True))
    expected = [(item, target, age) for (item, target, _), age in zip(wanted, ages, strict=True)]
    assert found == collections.Counter(expected)
    extra = packed.items.size - count
    assert 0 < extra < 10 and flat[0][count:] == flat[0][:extra]


def test_a_segment_is_one_user_in_order() -> None:
    """Walking a segment from row to row gives a user's items; its ages fall to 0."""
    train = corpus()
    packed = packing.pack_pass(train, np.random.default_rng(2), rows=2, length=32)
    by_segment = collections.defaultdict(list)
    for item, target, segment, age in zip(
        *(x.reshape(-1).tolist() for x in packed[:4]), strict=True
    ):
        by_segment[segment].append((item, target, age))
    users = [train.of(u).tolist() for u in range(train.num_users) if train.lengths[u] > 1]
    count = len(pairs_of(train))
    whole = [steps for segment, steps in by_segment.items() if segment <= len(users)]
    assert sum(map(len, whole)) == count
    histories = [[item for item, _, _ in steps] + [steps[-1][1]] for steps in whole]
    assert sorted(histories) == sorted(users)
    for steps in whole:
        assert [age for _, _, age in steps] == list(range(len(steps)))[::-1]
        assert all(a[1] == b[0] for a, b in itertools.pairwise(steps))
    assert min(by_segment) == 1  # 0 would be padding


def test_orders_follow_from_the_seed() -> None:
    train = corpus()
    first, again, other = (
        packing.pack_pass(train, np.random.default_rng(seed), rows=2, length=4).items
        for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("name", EXPONENTS)
def test_weights_have_the_law_of_the_strategy(name: str) -> None:
    """Summed over histories, `augment.law` says how often each target is drawn."""
    train = corpus()
    weights = packing.strategy_weights(train, name, EXPONENTS[name])
    pairs = len(pairs_of(train))
    expected = np.zeros(len(train.items))
    for (user, _, target), share in augment.law(train.lengths, EXPONENTS[name]).items():
        expected[train.offsets[user] + target] += share * pairs
    found = expected > 0 if weights is None else weights
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_weights_of_windows_count_windows() -> None:
    train = corpus()
    listed = augment.windows(train)
    counts = np.bincount(train.offsets[listed.users] + listed.targets, minlength=len(train.items))
    weights = packing.strategy_weights(train, "windows", augment.WINDOWS)
    assert weights is not None
    np.testing.assert_allclose(weights, counts * len(pairs_of(train)) / counts.sum())


def test_weights_travel_with_their_targets_and_ones_change_nothing() -> None:
    train = corpus()
    own = np.arange(len(train.items), dtype=float)
    order = lambda: np.random.default_rng(5)
    packed = packing.pack_pass(train, order(), rows=2, length=4, weights=own)
    np.testing.assert_array_equal(train.items[packed.weights.astype(int)], packed.targets)
    exact = packing.law_weights(train, augment.PREFIXES)
    plain = packing.pack_pass(train, order(), rows=2, length=4)
    weighted = packing.pack_pass(train, order(), rows=2, length=4, weights=exact)
    for left, right in zip(plain, weighted, strict=True):
        np.testing.assert_array_equal(left, right)


def test_nothing_to_predict_is_refused() -> None:
    train = seq.pack([[1], [2]], 5)
    with pytest.raises(ValueError, match="no user has two training items"):
        packing.pack_pass(train, np.random.default_rng(0), rows=1, length=2)
    with pytest.raises(ValueError, match="strategy 'all': must be one of"):
        packing.strategy_weights(train, "all", augment.PREFIXES)
