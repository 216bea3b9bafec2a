# SPDX-License-Identifier: Apache-2.0
"""Batches of recommenders that train on all pairs in packed rows (`rec.data.packing`)."""

import functools
from collections.abc import Callable

import numpy as np
from jax.sharding import PartitionSpec as P

from experiments.runner.errors import UserError
from rec.data import packing
from rec.data.sequences import Sequences

Batches = Callable[[int, tuple[int, int] | None], dict[str, np.ndarray]]
"""(step, rows of this host or None for all) -> the batch of that step."""
RULES = ((rf"batch/({'|'.join(packing.Pass._fields)})", P("data")), (r"batch/.*", P()))
"""Sharding of such a batch. Pairs that the device draws have other rules: there "items" are the
training sequences, which every device needs."""


def make_packed_batches(
    train: Sequences, seed: int, *, rows: int, length: int, weights: np.ndarray | None = None
) -> Batches:
    """Makes pass after pass over all pairs, each in an order of its own that follows from seed and
    pass, so that a resumed run reads the same. A batch is one of `packing.Pass`: int32 or float32
    [rows, length] each.

    Args:
        train: training items alone.
        rows, length: of a batch.
        weights: float [E] of training items as targets; None is 1 for all.

    Raises:
        UserError: nobody has two items.
    """
    try:
        batches_per_pass = packing.count_batches(train, rows, length)
    except ValueError as error:
        raise UserError(str(error)) from error

    @functools.lru_cache(maxsize=2)
    def pack(number: int) -> packing.Pass:
        rng = np.random.default_rng([seed, number])
        return packing.pack_pass(train, rng, rows=rows, length=length, weights=weights)

    def batch(step: int, host_rows: tuple[int, int] | None) -> dict[str, np.ndarray]:
        number, index = divmod(step, batches_per_pass)
        first, stop = host_rows or (0, None)
        return {name: leaf[index, first:stop] for name, leaf in pack(number)._asdict().items()}

    return batch
