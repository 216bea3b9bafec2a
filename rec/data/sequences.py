# SPDX-License-Identifier: Apache-2.0
"""Packed interaction sequences: what every reader gives and every model takes. NumPy only.

Internal item ids are 0 to num_items - 1 in order of first appearance in the file. That order
covers validation and test items, so no model may see the number itself as a feature.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np


class Sequences(NamedTuple):
    """Users one after the other, each oldest first.

    items: int32 [E]; offsets: int64 [U + 1], user u owns items[offsets[u]:offsets[u + 1]];
    num_items: ids are below it; times: int64 [E] seconds, or [0] where the source has none.
    """

    items: np.ndarray
    offsets: np.ndarray
    num_items: int
    times: np.ndarray

    @property
    def num_users(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """int64 [U]."""
        return np.diff(self.offsets)

    def of(self, user: int | np.integer) -> np.ndarray:
        """Items of one user, oldest first."""
        return self.items[self.offsets[user] : self.offsets[user + 1]]


class Corpus(NamedTuple):
    """A dataset as read: users[u] and items[i] are the raw names of internal ids.

    texts[i] is what describes item i to a text encoder; all are empty where a corpus has none.
    """

    name: str
    users: list[str]
    items: list[str]
    sequences: Sequences
    texts: list[str]


class Queries(NamedTuple):
    """What is asked at evaluation: row q has a history and the one item that came next.

    users: int32 [Q] internal user ids; history: Sequences of Q rows; targets: int32 [Q].
    """

    users: np.ndarray
    history: Sequences
    targets: np.ndarray


class Split(NamedTuple):
    """train has one row per user (it may be empty); valid and test may leave users out."""

    train: Sequences
    valid: Queries
    test: Queries


def pack(
    rows: Iterable[Sequence[int] | np.ndarray],
    num_items: int,
    times: Iterable[Sequence[int] | np.ndarray] = (),
) -> Sequences:
    """Sequences of lists of internal ids, and of their times where there are any."""
    rows = [np.asarray(row, np.int32) for row in rows]
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    items = np.concatenate([np.zeros(0, np.int32), *rows])
    stamps = np.concatenate([np.zeros(0, np.int64), *(np.asarray(t, np.int64) for t in times)])
    if len(stamps) not in (0, len(items)):
        raise ValueError(f"times: {len(stamps)} for {len(items)} interactions")
    return Sequences(items, offsets, num_items, stamps)


def take(sequences: Sequences, start: np.ndarray, stop: np.ndarray) -> Sequences:
    """Row u cut to its positions start[u] to stop[u] - 1 (both int [U], within the row)."""
    lengths = np.maximum(stop - start, 0)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    at = np.repeat(sequences.offsets[:-1] + start - offsets[:-1], lengths) + np.arange(offsets[-1])
    times = sequences.times[at] if len(sequences.times) else sequences.times
    return Sequences(sequences.items[at], offsets, sequences.num_items, times)


def select(sequences: Sequences, users: np.ndarray) -> Sequences:
    """The rows of `users`, in that order."""
    lengths = sequences.lengths[users]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    at = np.repeat(sequences.offsets[users] - offsets[:-1], lengths) + np.arange(offsets[-1])
    times = sequences.times[at] if len(sequences.times) else sequences.times
    return Sequences(sequences.items[at], offsets, sequences.num_items, times)


def newest(sequences: Sequences, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """(items int32 [U, limit], mask bool [U, limit]): the newest `limit` of every row,
    right-padded with 0."""
    lengths = np.minimum(sequences.lengths, limit)
    at = (sequences.offsets[1:] - lengths)[:, None] + np.arange(limit)
    mask = np.arange(limit) < lengths[:, None]
    items = np.zeros(mask.shape, np.int32)
    items[mask] = sequences.items[at[mask]]
    return items, mask


def leave_one_out(sequences: Sequences) -> Split:
    """Last item test, second last validation, the rest training; the history of a test query
    includes the validation item.

    Raises:
        ValueError: a user with fewer than 3 items.
    """
    lengths = sequences.lengths
    if (lengths < 3).any():
        user = int(np.argmax(lengths < 3))
        raise ValueError(
            f"user {user} has {lengths[user]} items: leave-one-out needs 3; filter first "
            "(config.data.core=3 or more)"
        )
    zero, users = np.zeros_like(lengths), np.arange(len(lengths), dtype=np.int32)
    ends = sequences.offsets[1:]
    return Split(
        train=take(sequences, zero, lengths - 2),
        valid=Queries(users, take(sequences, zero, lengths - 2), sequences.items[ends - 2]),
        test=Queries(users, take(sequences, zero, lengths - 1), sequences.items[ends - 1]),
    )


def temporal(sequences: Sequences, valid_from: int, test_from: int) -> Split:
    """Split at two points in time: training is all before `valid_from`; a user's validation target
    is their first item in [valid_from, test_from), their test target the first one from test_from
    on, each with all that came before as history (users without history are not asked).

    Raises:
        ValueError: no times, or valid_from >= test_from, or an empty side.
    """
    if not len(sequences.times):
        raise ValueError("a temporal split needs times, and this source has none")
    if valid_from >= test_from:
        raise ValueError(f"valid_from={valid_from} must be before test_from={test_from}")
    rows = np.repeat(np.arange(sequences.num_users), sequences.lengths)
    first = np.bincount(rows, sequences.times < valid_from, sequences.num_users).astype(np.int64)
    second = np.bincount(rows, sequences.times < test_from, sequences.num_users).astype(np.int64)
    zero = np.zeros_like(first)

    def queries(at: np.ndarray, limit: np.ndarray, name: str) -> Queries:
        users = np.flatnonzero((at > 0) & (at < limit))
        if not len(users):
            raise ValueError(f"the {name} side of the temporal split is empty: choose other times")
        history = select(take(sequences, zero, at), users)
        targets = sequences.items[sequences.offsets[users] + at[users]]
        return Queries(users.astype(np.int32), history, targets)

    train = take(sequences, zero, first)
    if not len(train.items):
        raise ValueError("the training side of the temporal split is empty: choose other times")
    return Split(train, queries(first, second, "valid"), queries(second, sequences.lengths, "test"))


def kcore(corpus: Corpus, k: int) -> Corpus:
    """Users and items with at least k interactions among each other, iterated to a fixed point;
    items are numbered anew by first appearance.

    Raises:
        ValueError: nobody is left.
    """
    sequences = corpus.sequences
    rows = np.repeat(np.arange(sequences.num_users), sequences.lengths)
    keep = np.ones(len(rows), bool)
    while True:
        by_item = np.bincount(sequences.items[keep], minlength=sequences.num_items)
        by_user = np.bincount(rows[keep], minlength=sequences.num_users)
        fit = keep & (by_item[sequences.items] >= k) & (by_user[rows] >= k)
        if fit.sum() == keep.sum():
            break
        keep = fit
    if not keep.any():
        raise ValueError(f"core={k}: no user and item have that many interactions in {corpus.name}")
    items = sequences.items[keep]
    _, first = np.unique(items, return_index=True)
    old = items[np.sort(first)]
    new = np.full(sequences.num_items, -1, np.int32)
    new[old] = np.arange(len(old), dtype=np.int32)
    users = np.flatnonzero(np.bincount(rows[keep], minlength=sequences.num_users))
    lengths = np.bincount(rows[keep], minlength=sequences.num_users)[users]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    times = sequences.times[keep] if len(sequences.times) else sequences.times
    return Corpus(
        corpus.name,
        [corpus.users[u] for u in users],
        [corpus.items[i] for i in old],
        Sequences(new[items], offsets, len(old), times),
        [corpus.texts[i] for i in old],
    )
