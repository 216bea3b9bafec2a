# SPDX-License-Identifier: Apache-2.0
"""Training pairs of all users in one stream, cut into rows: every pair once a pass, no padding.

A pair is an item of a user and the item that came next. In a pass users stand in random order, one
after the other; the stream is cut every `length` pairs and `rows` rows are a batch. A user on a
border has a shorter context after it. Pairs from the front of the stream fill the last batch.

A model that reads a row must not look from one user into another (`segments`). `ages` count back
from the end of the user, not of the row, so that the newest item of a user has age 0 in training as
at evaluation: an age tells how many items follow, never which.
"""

from typing import NamedTuple

import numpy as np

from rec import augment
from rec.data import sequences as seq
from rec.data.sequences import Sequences
from rec.names import STRATEGIES


class Pass(NamedTuple):
    """All pairs of one pass, [batches, rows, length] each.

    items, targets: int32 ids; segments: int32, from 1, equal within a user; ages: int32, items
    between this one and the newest that is read of the user, at most length - 1; weights: float32,
    mean 1 over the pairs.
    """

    items: np.ndarray
    targets: np.ndarray
    segments: np.ndarray
    ages: np.ndarray
    weights: np.ndarray


def count_batches(train: Sequences, rows: int, length: int) -> int:
    """Batches of a pass.

    Raises:
        ValueError: nobody has two items.
    """
    pairs = int(np.maximum(train.lengths - 1, 0).sum())
    if not pairs:
        raise ValueError("no user has two training items: there is nothing to predict")
    return -(-pairs // (rows * length))


def pack_pass(
    train: Sequences,
    rng: np.random.Generator,
    *,
    rows: int,
    length: int,
    weights: np.ndarray | None = None,
) -> Pass:
    """One pass over the training pairs.

    Args:
        train: training items alone; a target is never an item of validation or test.
        rng: of the order of users.
        rows, length: of a batch.
        weights: float [E] of every training item as a target (`law_weights`); None is 1 for all.

    Raises:
        ValueError: nobody has two items.
    """
    shape = (count_batches(train, rows, length), rows, length)
    users = rng.permutation(np.flatnonzero(train.lengths >= 2))
    # Places in train.items stand for the items: what belongs to an item is then found by its place.
    places = np.arange(len(train.items), dtype=np.int32)
    own = seq.select(train._replace(items=places), users)
    first = np.zeros_like(own.lengths)
    history = seq.take(own, first, own.lengths - 1)
    targets = seq.take(own, first + 1, own.lengths).items
    user = np.repeat(np.arange(own.num_users), history.lengths)
    pairs = len(user)
    ages = np.minimum(history.offsets[1:][user] - 1 - np.arange(pairs), length - 1)
    by_target = np.ones(pairs) if weights is None else weights[targets]
    # A stream that is shorter than a batch comes again, as other users.
    again = np.arange(np.prod(shape)) // pairs * own.num_users
    return Pass(
        items=np.resize(train.items[history.items], shape),
        targets=np.resize(train.items[targets], shape),
        segments=(np.resize(user + 1, shape) + again.reshape(shape)).astype(np.int32),
        ages=np.resize(ages, shape).astype(np.int32),
        weights=np.resize(by_target, shape).astype(np.float32),
    )


def law_weights(train: Sequences, exponents: augment.Exponents) -> np.ndarray:
    """float64 [E] weights of training items as targets, so that a pass has the law of GenPAS: the
    share p(u) p(k | u) of a pair times the number of pairs (see `rec.augment`; gamma, which chooses
    where a history begins, has no place in a stream). 0 for the first item of a user.
    """
    places, shares = augment.place_shares(train, exponents.alpha, exponents.beta)
    out = np.zeros(len(train.items))
    out[places] = shares * len(places)
    return out


def strategy_weights(
    train: Sequences, name: str, exponents: augment.Exponents
) -> np.ndarray | None:
    """Weights of a strategy of `rec.augment` for `pack_pass`: how often it would draw each target,
    mean 1 over the pairs; None for "prefixes", which are the plain stream.

    Raises:
        ValueError: another name.
    """
    if name not in STRATEGIES:
        raise ValueError(f"strategy {name!r}: must be one of {STRATEGIES}")
    if name == "prefixes":
        return None
    if name == "genpas":
        return law_weights(train, exponents)
    user = np.repeat(np.arange(train.num_users), train.lengths)
    position = np.arange(len(train.items)) - train.offsets[user]  # 0 for what is no target
    is_last = (position == train.lengths[user] - 1) & (position > 0)
    weights = is_last if name == "last_target" else position  # as many windows end there
    return weights * (position > 0).sum() / weights.sum()
