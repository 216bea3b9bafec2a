# SPDX-License-Identifier: Apache-2.0
"""Nats of guessing: by hand on a small corpus, and the weight against a search over a grid."""

import numpy as np
import pytest

from rec.baselines import likelihood
from rec.data import sequences as seq

TRAIN = seq.pack([[0, 1, 0, 1, 2], [1, 0, 2], [3]], 5)  # nothing follows 2, 3 and 4


def queries(last: list[int], targets: list[int]) -> seq.Queries:
    users = np.arange(len(last), dtype=np.int32)
    history = seq.pack([[4, item] for item in last], 5)
    return seq.Queries(users, history, np.asarray(targets, np.int32))


def test_nats_by_hand() -> None:
    """0 is followed by 1, 1, 2; 1 by 0, 2, 0; popularity is (count + 1) / 14."""
    asked = queries([0, 1, 1, 3, 0], [1, 0, 3, 4, 2])
    popular = np.array([4, 4, 2, 1, 3]) / 14
    follows = np.array([2 / 3, 2 / 3, 0, np.nan, 1 / 3])
    found = likelihood.shares(TRAIN, asked)
    np.testing.assert_allclose(found[0], follows)
    np.testing.assert_allclose(found[1], popular)
    w = 0.25
    expected = -np.log(
        [w * 2 / 3 + 0.75 * 4 / 14, w * 2 / 3 + 0.75 * 4 / 14, 0.75 * 2 / 14, 1 / 14,
         w / 3 + 0.75 * 3 / 14]
    ).mean()  # fmt: skip
    assert likelihood.successor(TRAIN, asked, w) == pytest.approx(expected)
    assert likelihood.uniform(5) == pytest.approx(1.6094379)


def test_weight_is_the_best_on_a_grid() -> None:
    asked = queries([0, 1, 1, 3, 0, 0], [1, 0, 3, 4, 2, 0])
    grid = np.linspace(0, 0.999, 1000)
    nats = [likelihood.successor(TRAIN, asked, w) for w in grid]
    weight = likelihood.fit_weight(TRAIN, asked)
    assert abs(weight - grid[int(np.argmin(nats))]) < 2e-3
    assert 0 < weight < 1
    assert likelihood.fit_weight(TRAIN, queries([3, 0], [1, 3])) == 0
