# SPDX-License-Identifier: Apache-2.0
"""Measures of continual learning over the success matrix S[t, i].

S[t, i] is the success on distribution i, evaluated with frozen parameters after phase t (both
from 0), averaged over depths first. Leading axes (seeds) are carried along. Sign of the transfer
gap: positive is a drop (the Banyan paper's; its draft tables print the negative).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

Matrix = Float[np.ndarray, "*seeds T D"]
Row = Float[np.ndarray, "*seeds D"]
Shorter = Float[np.ndarray, "*seeds D-1"]  # without the first distribution


def success_matrix(
    records: Sequence[Mapping[str, Any]], phase_steps: int, num_dists: int
) -> tuple[Matrix, Row]:
    """Reads S out of evaluation records {"step", "after<t>/d<i>/success" or "untrained/...": float
    or [num_seeds]}.

    Returns:
        S [num_seeds, t, i], NaN in the rows of phases that are not done, and the row of the
        untrained agent [num_seeds, i].
    """
    rows: dict[int, np.ndarray] = {}
    for record in records:
        done, rest = divmod(record["step"], phase_steps)
        moment = f"after{done}" if done else "untrained"
        names = [f"{moment}/d{i + 1}/success" for i in range(num_dists)]
        if not rest and all(name in record for name in names):
            rows[done] = np.stack([np.atleast_1d(record[name]) for name in names], axis=-1)
    num_seeds = next(iter(rows.values())).shape[0] if rows else 1
    missing = np.full((num_seeds, num_dists), np.nan)
    matrix = np.stack([rows.get(t, missing) for t in range(1, num_dists + 1)], axis=1)
    return matrix, rows.get(0, missing)


def success_end(success: Matrix) -> Row:
    """S_end(d_i) = S[i, i]."""
    return np.diagonal(success, axis1=-2, axis2=-1)


def success_start(success: Matrix) -> Shorter:
    """S_start(d_i) = S[i - 1, i] for i >= 1: before any update on d_i. One shorter than S_end."""
    return np.diagonal(success, offset=1, axis1=-2, axis2=-1)


def transfer_gap(success: Matrix) -> Shorter:
    """Delta_i = S_end(d_{i-1}) - S_start(d_i) for i >= 1."""
    return success_end(success)[..., :-1] - success_start(success)


def backward_transfer(success: Matrix) -> Matrix:
    """B[t, i] = S[t, i] - S[i, i]; meaningful for t > i, 0 at t = i."""
    return success - success_end(success)[..., None, :]


def forgetting(success: Matrix) -> Row:
    """F_i = S[i, i] - S[last, i] (Continual World)."""
    return success_end(success) - success[..., -1, :]


def jump_start(success: Matrix, untrained: Row) -> Shorter:
    """S_start(d_i) - success of the untrained agent on d_i, for i >= 1."""
    return success_start(success) - untrained[..., 1:]


def average_performance(success: Matrix) -> Float[np.ndarray, "*seeds T"]:
    """P(t): mean over all distributions after phase t."""
    return success.mean(axis=-1)


def forward_transfer(auc: np.ndarray, auc_alone: np.ndarray) -> np.ndarray:
    """Continual World: (AUC_i - AUC_i^alone) / (1 - AUC_i^alone), AUC = time mean of success in
    the phase of i; AUC^alone is the same budget from scratch. (MEAL divides by AUC^alone.)"""
    return (auc - auc_alone) / (1.0 - auc_alone)


def plateau_slope(ends: Row) -> np.ndarray:
    """Least-squares slope of S_end(d_i) on i, from the second distribution on [our choice]."""
    tail = ends[..., 1:]
    x = np.arange(tail.shape[-1]) - (tail.shape[-1] - 1) / 2
    return np.asarray((tail * x).sum(-1) / (x * x).sum())
