# SPDX-License-Identifier: Apache-2.0
"""Links of about one size together: each bucket is one shape to compile."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from graph.bits import words
from graph.sampling.batch import LinkBatch


class Bucket(NamedTuple):
    """batch: R links in N slots; index: int64 [R], which link each row is; weight: float32 [R], 1,
    or 0 where a row repeats the last real link to fill the shape."""

    batch: LinkBatch
    index: np.ndarray
    weight: np.ndarray


def repad(batch: LinkBatch, size: int) -> LinkBatch:
    """A NumPy batch in `size` slots, more or fewer.

    Raises:
        ValueError: a link has more tokens than that.
    """
    most = int(batch.n.max(initial=0))
    if most > size:
        raise ValueError(f"size={size}: a link has {most} tokens")
    bits, ids = np.asarray(batch.adj_bits), np.asarray(batch.ids)
    keep, wide = min(size, ids.shape[1]), min(words(size), bits.shape[2])
    new_bits = np.zeros((len(ids), size, words(size)), np.uint32)
    new_ids = np.full((len(ids), size), -1, np.int32)
    new_bits[:, :keep, :wide] = bits[:, :keep, :wide]
    new_ids[:, :keep] = ids[:, :keep]
    return LinkBatch(new_bits, np.asarray(batch.n), new_ids, np.asarray(batch.dropped))


def fit(batch: LinkBatch, sizes: Sequence[int]) -> LinkBatch:
    """The whole batch in the smallest of ascending `sizes` that holds all its links.

    Raises:
        ValueError: none holds them.
    """
    most = int(np.asarray(batch.n).max(initial=0))
    return repad(batch, next((size for size in sizes if size >= most), sizes[-1]))


def place(
    n: np.ndarray, sizes: Sequence[int], rows: int
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(size, index [rows], weight [rows]) of the buckets of links of n tokens [B], sizes ascending,
    links in their order.

    Raises:
        ValueError: rows below 1, or a link larger than the last size.
    """
    if rows < 1:
        raise ValueError(f"rows={rows}: must be at least 1")
    most = int(n.max(initial=0))
    if most > sizes[-1]:
        raise ValueError(f"sizes={tuple(sizes)}: a link has {most} tokens")
    which = np.searchsorted(np.asarray(sizes), n)
    for bucket, size in enumerate(sizes):
        mine = np.flatnonzero(which == bucket)
        for at in range(0, len(mine), rows):
            index = mine[at : at + rows]
            is_link = np.arange(rows) < len(index)
            yield (
                size,
                index[np.minimum(np.arange(rows), len(index) - 1)],
                is_link.astype(np.float32),
            )


def group(batch: LinkBatch, sizes: Sequence[int], rows: int) -> list[Bucket]:
    """A sampled batch cut into buckets of `rows` links.

    Raises:
        ValueError: see `place`.
    """
    buckets = []
    for size, index, weight in place(np.asarray(batch.n), sizes, rows):
        links = LinkBatch(*(np.asarray(x)[index] for x in batch))
        buckets.append(Bucket(repad(links, size), index, weight))
    return buckets
