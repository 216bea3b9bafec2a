# SPDX-License-Identifier: Apache-2.0
"""A table of SIDs: what a valid one is, its hash, and the shuffled control."""

import hashlib

import numpy as np


def check(sids: np.ndarray, sizes: tuple[int, ...]) -> None:
    """Raises:
    ValueError: not int32 [N, len(sizes)] with N >= 1, or a code outside 0 .. size - 1; the
        first such item is named.
    """
    if sids.dtype != np.int32 or sids.ndim != 2 or sids.shape[1] != len(sizes) or not len(sids):
        raise ValueError(f"SIDs must be int32 [items, {len(sizes)}], not {sids.dtype} {sids.shape}")
    outside = (sids < 0) | (sids >= np.asarray(sizes)[None, :])
    if outside.any():
        item, level = (int(i) for i in np.argwhere(outside)[0])
        raise ValueError(
            f"item {item}: code {sids[item, level]} of level {level + 1} is not below "
            f"{sizes[level]} or is negative"
        )


def sha256(sids: np.ndarray, sizes: tuple[int, ...]) -> str:
    """Hash of a checked table, of its shape and of the sizes; the same on every machine."""
    check(sids, sizes)
    digest = hashlib.sha256(f"{sids.shape} {tuple(int(size) for size in sizes)} ".encode())
    digest.update(np.ascontiguousarray(sids, "<i4").tobytes())
    return digest.hexdigest()


def shuffled(sids: np.ndarray, seed: int) -> np.ndarray:
    """The same SIDs handed to items at random: a control with equal codes and no meaning."""
    return sids[np.random.default_rng(seed).permutation(len(sids))]


def unique(sids: np.ndarray) -> bool:
    """Whether every item has a SID of its own."""
    return len(np.unique(sids, axis=0)) == len(sids)
