# SPDX-License-Identifier: Apache-2.0
"""Nats per item of guessing without training, beside which the loss of a generator is read.

A generator whose loss is above ln N, what a uniform guess has, says less than nothing, whatever its
ranking. The successor model is

    p(i | last item a) = w count(a -> i) / count(a -> .) + (1 - w) (count(i) + 1) / (E + N)

with popularity alone after an item that nothing ever followed, and w the maximum of the likelihood
of the validation targets.
"""

import numpy as np

from rec.baselines import scorers
from rec.data.sequences import Queries, Sequences

EM_STEPS = 200


def uniform(num_items: int) -> float:
    """ln N."""
    return float(np.log(num_items))


def shares(train: Sequences, queries: Queries) -> tuple[np.ndarray, np.ndarray]:
    """(share of the target among the successors of the last item, its smoothed popularity), float64
    [Q] both; the first is NaN where nothing follows that item in training."""
    counts = scorers.counts(train)
    popular = (counts + 1) / (counts.sum() + train.num_items)
    following = scorers.shares(scorers.successors(train))
    last = queries.history.items[queries.history.offsets[1:] - 1]
    follows = np.asarray(following[last, queries.targets], np.float64).ravel()
    is_followed = np.diff(following.indptr)[last] > 0
    return np.where(is_followed, follows, np.nan), popular[queries.targets]


def fit_weight(train: Sequences, queries: Queries) -> float:
    """w of the successor model that gives the targets of `queries` the highest likelihood, by EM
    (the likelihood is concave in w); in [0, 1]. 0 where no target is a successor."""
    follows, popular = shares(train, queries)
    counted = ~np.isnan(follows)
    if not (follows[counted] > 0).any():
        return 0.0
    weight = 0.5
    for _ in range(EM_STEPS):
        first = weight * follows[counted]
        weight = float((first / (first + (1 - weight) * popular[counted])).mean())
    return weight


def successor(train: Sequences, queries: Queries, weight: float) -> float:
    """Mean nats of the targets under the successor model with a weight of `fit_weight`."""
    follows, popular = shares(train, queries)
    mixed = weight * follows + (1 - weight) * popular
    return float(-np.log(np.where(np.isnan(follows), popular, mixed)).mean())
