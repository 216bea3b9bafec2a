# SPDX-License-Identifier: Apache-2.0
"""Randomness of the samplers: bits that depend on (seed, epoch, link) alone.

Threefry-2x32 with 20 rounds (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011),
written with operators that NumPy and JAX share, so that hosts compute only the words they need and
devices compute the same ones. A word is addressed, never drawn in turn: no batch, device or worker
can shift it. All words are uint32; `key` is a pair of them.
"""

from typing import Any

import jax
import numpy as np

Array = jax.Array | np.ndarray
Key = tuple[Any, Any]

SAMPLE, NEGATIVE, ORIENT = 0, 1, 2  # what a stream of words is for
DRAW, KEEP = 0, 1  # words of a position: which neighbour and which slot; who stays under the cap
ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = 0x1BD11BDA


def threefry(key: Key, counter: Key) -> Key:
    """Two words of each counter under each key; all four arrays uint32, of shapes that agree."""
    words = (key[0], key[1], key[0] ^ key[1] ^ PARITY)
    x, y = counter[0] + key[0], counter[1] + key[1]
    for group in range(5):
        for rotation in ROTATIONS[group % 2]:
            x = x + y
            y = ((y << rotation) | (y >> (32 - rotation))) ^ x
        x = x + words[(group + 1) % 3]
        y = y + words[(group + 2) % 3] + (group + 1)
    return x, y


def below(bits: Array, bound: Array) -> Array:
    """Integers of 0 .. bound - 1 from words: floor(bits * bound / 2^32), exactly.

    bits, bound: uint32, bound >= 1; the law is uniform up to a bias of bound / 2^32.
    """
    high, low = bits >> 16, bits & 0xFFFF
    above, under = bound >> 16, bound & 0xFFFF
    first = high * under + ((low * under) >> 16)
    second = low * above + (first & 0xFFFF)
    return high * above + (first >> 16) + (second >> 16)


def stream(seed: Any, epoch: Any, purpose: int) -> Key:
    """Key [1] of a purpose. seed, epoch: uint32 scalars (`word`), NumPy or traced."""
    words = (seed.reshape(1), epoch.reshape(1))
    zero = words[0] ^ words[0]
    return threefry(words, (zero + np.uint32(purpose), zero))


def word(value: Any, what: str) -> Any:
    """A seed or an epoch as uint32; traced values are only cast.

    Raises:
        ValueError: outside 0 .. 2^32 - 1.
    """
    if isinstance(value, jax.Array):
        return value.astype(np.uint32)
    if not 0 <= value < 1 << 32:
        raise ValueError(f"{what}={value}: must be 0 .. {(1 << 32) - 1}")
    return np.asarray(value, np.uint32)


def link_keys(seed: Any, epoch: Any, pairs: Array) -> Key:
    """Keys [B] of links int [B, 2]; the order of the endpoints matters."""
    return threefry(
        stream(seed, epoch, SAMPLE),
        (pairs[:, 0].astype(np.uint32), pairs[:, 1].astype(np.uint32)),
    )


def orient(pairs: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Undirected pairs int [B, 2] in an order that a fair coin of (seed, epoch, pair) chooses.

    Files store u <= v while uniform negatives come in any order; node numbers often follow degrees.
    The order given does not matter, so none of it is left. Not for directed graphs.
    """
    low, high = pairs.min(1), pairs.max(1)
    key = stream(word(seed, "seed"), word(epoch, "epoch"), ORIENT)
    coin = threefry(key, (low.astype(np.uint32), high.astype(np.uint32)))[0] >> 31
    return np.where((coin == 1)[:, None], np.stack([high, low], 1), np.stack([low, high], 1))
