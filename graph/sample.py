# SPDX-License-Identifier: Apache-2.0
"""Subgraphs around links: the contract that host and device samplers keep."""

from typing import NamedTuple

import jax
import numpy as np

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
