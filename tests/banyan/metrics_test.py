# SPDX-License-Identifier: Apache-2.0
"""Transfer measures on matrices worked out by hand and on the paper's ten-shift table."""

import itertools

import numpy as np
import pytest

from banyan import metrics

# S[t, i] of three distributions, by hand.
S = np.array([[0.8, 0.3, 0.1], [0.7, 0.9, 0.4], [0.85, 0.6, 1.0]])

# S_end(d_1..d_10) for n distinct layouts and topologies (Banyan, draft table 4).
TEN_SHIFTS = {
    1: [0.61, 0.67, 1.0, 0.92, 0.83, 0.67, 1.0, 0.90, 0.83, 0.99],
    4: [0.73, 0.84, 0.88, 0.83, 0.84, 0.89, 0.94, 0.83, 0.93, 0.87],
    8: [0.73, 0.83, 0.86, 0.80, 0.89, 0.88, 0.92, 0.93, 0.96, 0.93],
    16: [0.74, 0.83, 0.85, 0.85, 0.87, 0.91, 0.89, 0.93, 0.96, 0.95],
    32: [0.78, 0.79, 0.85, 0.87, 0.88, 0.90, 0.86, 0.88, 0.88, 0.91],
    64: [0.76, 0.84, 0.85, 0.88, 0.87, 0.86, 0.84, 0.84, 0.86, 0.86],
    128: [0.76, 0.80, 0.83, 0.84, 0.86, 0.85, 0.82, 0.83, 0.82, 0.82],
    256: [0.78, 0.83, 0.81, 0.83, 0.80, 0.82, 0.82, 0.80, 0.82, 0.80],
}


def test_by_hand() -> None:
    np.testing.assert_allclose(metrics.success_end(S), [0.8, 0.9, 1.0])
    np.testing.assert_allclose(metrics.success_start(S), [0.3, 0.4])
    np.testing.assert_allclose(metrics.transfer_gap(S), [0.5, 0.5])
    backward = metrics.backward_transfer(S)
    np.testing.assert_allclose(backward[1, 0], -0.1)
    np.testing.assert_allclose(backward[2, :2], [0.05, -0.3])
    np.testing.assert_allclose(metrics.forgetting(S), [-0.05, 0.3, 0.0], atol=1e-12)
    np.testing.assert_allclose(metrics.jump_start(S, np.array([0.1, 0.05, 0.2])), [0.25, 0.2])
    np.testing.assert_allclose(metrics.average_performance(S), S.sum(1) / 3)


def test_seeds_are_carried_along() -> None:
    both = np.stack([S, S * 0.5])
    for name in ("transfer_gap", "backward_transfer", "forgetting", "average_performance"):
        measure = getattr(metrics, name)
        np.testing.assert_allclose(measure(both)[1], measure(S) * 0.5)


def test_forward_transfer_normalizes_by_what_was_left() -> None:
    got = metrics.forward_transfer(np.array([0.9, 0.4]), np.array([0.8, 0.5]))
    np.testing.assert_allclose(got, [0.5, -0.2])


def test_published_ten_shift_table() -> None:
    ends = {n: np.array(row) for n, row in TEN_SHIFTS.items()}
    assert ends[256][-1] - ends[256][0] == pytest.approx(0.02)
    assert ends[16][-1] - ends[16][0] == pytest.approx(0.21)
    assert max((n for n in ends if n >= 4), key=lambda n: ends[n][-1]) == 16
    last = [ends[n][-1] for n in (16, 32, 64, 128, 256)]
    assert all(a > b for a, b in itertools.pairwise(last))


def test_plateau_slope_is_least_squares() -> None:
    row = np.array(TEN_SHIFTS[16])
    want = np.polyfit(np.arange(2, 11), row[1:], 1)[0]
    assert metrics.plateau_slope(row) == pytest.approx(want)
