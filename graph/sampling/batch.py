# SPDX-License-Identifier: Apache-2.0
"""What every sampler returns, and the links it takes."""

from typing import NamedTuple

import jax
import numpy as np

from graph import csr

Array = jax.Array | np.ndarray


class LinkBatch(NamedTuple):
    """Induced subgraphs of B links in N slots, the query link itself taken out.

    adj_bits: uint32 [B, N, ceil(N / 32)], bit j % 32 of word j // 32 in row i says that tokens i
    and j are neighbours; n: int32 [B], tokens that are real (roots 0 and 1 always are); ids: int32
    [B, N] global node ids in slot order, -1 where empty; dropped: int32 [B], sampled nodes that
    found no slot.
    """

    adj_bits: Array
    n: Array
    ids: Array
    dropped: Array


def check_pairs(pairs: np.ndarray, num_nodes: int) -> None:
    """Raises ValueError: not integers [B, 2], an id out of range, or a link of a node to itself."""
    if pairs.ndim != 2:
        raise ValueError(f"links: integers [B, 2] wanted, got {pairs.dtype} {pairs.shape}")
    csr.check_ids(pairs, num_nodes, "links")
    loops = np.flatnonzero(pairs[:, 0] == pairs[:, 1])
    if len(loops):
        raise ValueError(
            f"links: link {int(loops[0])}, {pairs[loops[0]].tolist()}, joins a node to itself; "
            "leave such pairs out"
        )
