# SPDX-License-Identifier: Apache-2.0
"""Needles in noise: a task that asks for exact retrieval at any distance, made from a seed.

    noise .. KEY name d d d d .. noise .. KEY name d d d d .. noise  ASK name  d d d d

Noise tokens, digits, names and the two marks have ids of their own, in this order; a model
predicts the digits after ASK from the needle with the same name [our choice: the paper's passkey
is the same idea in words].
"""

from typing import NamedTuple

import numpy as np

DIGITS = 10


class Task(NamedTuple):
    """digits: of a needle; needles: in a row, with different names; names, noise: sizes of those
    parts of the vocabulary; names >= needles."""

    digits: int
    needles: int
    names: int
    noise: int

    @property
    def vocab_size(self) -> int:
        return self.noise + DIGITS + self.names + 2

    @property
    def shortest(self) -> int:
        """Fewest tokens of a row without noise."""
        return self.needles * (2 + self.digits) + 2 + self.digits


class Rows(NamedTuple):
    """ids: int32 [B, length]; weights: float32 [B, length - 1], 1 where the next token is an asked
    digit; depth: float64 [B] in [0, 1], where the asked needle stands (0: at the start)."""

    ids: np.ndarray
    weights: np.ndarray
    depth: np.ndarray


def rows(
    task: Task, rng: np.random.Generator, count: int, length: int, depth: np.ndarray | None = None
) -> Rows:
    """Rows of exactly `length` tokens.

    Args:
        depth: float [count] in [0, 1], where the asked needle is to stand among the others' and the
            noise; None is uniform.

    Raises:
        ValueError: length < task.shortest.
    """
    if length < task.shortest:
        raise ValueError(f"length={length}: needles and question alone take {task.shortest}")
    key = task.vocab_size - 2
    ask = task.vocab_size - 1
    first_name = task.noise + DIGITS
    width = 2 + task.digits
    gaps = length - task.shortest + 1  # noise tokens before a needle: 0 .. gaps - 1
    ids = rng.integers(0, task.noise, (count, length))
    values = rng.integers(task.noise, first_name, (count, task.needles, task.digits))
    named = rng.permuted(np.tile(np.arange(task.names), (count, 1)), axis=1)[:, : task.needles]
    named = named + first_name
    wanted = rng.random(count) if depth is None else np.asarray(depth, np.float64)
    before = rng.integers(0, gaps, (count, task.needles))
    before[:, 0] = np.minimum((wanted * gaps).astype(np.int64), gaps - 1)
    rank = np.argsort(np.argsort(before, axis=1, kind="stable"), axis=1)
    starts = before + rank * width  # needles never overlap: each rank adds one needle's width
    row = np.arange(count)[:, None]
    for needle in range(task.needles):
        at = starts[:, needle, None] + np.arange(width)
        ids[row, at] = np.concatenate(
            [np.full((count, 1), key), named[:, needle, None], values[:, needle]], axis=1
        )
    tail = np.concatenate([np.full((count, 1), ask), named[:, :1], values[:, 0]], axis=1)
    ids[:, -width:] = tail
    weights = np.zeros((count, length - 1), np.float32)
    weights[:, -task.digits :] = 1.0
    return Rows(ids.astype(np.int32), weights, before[:, 0] / max(gaps - 1, 1))


def solve(task: Task, ids: np.ndarray) -> np.ndarray:
    """The asked digits by search, int [B, digits]: what a perfect reader answers."""
    key = task.vocab_size - 2
    out = []
    for row in ids:
        name = row[len(row) - task.digits - 1]
        body = row[: len(row) - task.digits - 2]
        (at,) = np.flatnonzero((body[:-1] == key) & (body[1:] == name))
        out.append(body[at + 2 : at + 2 + task.digits])
    return np.array(out)
