# SPDX-License-Identifier: Apache-2.0
"""Visibility and row lengths against a count pair by pair."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from attention import masks
from tests.attention import oracle
from tests.attention.oracle import Case

CASES = [
    Case("square", T=12, S=12),
    Case("chunk", T=5, S=12),
    Case("late", T=12, S=7, offset=-3),
    Case("per_sequence", T=6, S=12, offset=(6, 2)),
    Case("full", T=6, S=12, causal=False),
    Case("packed", T=20, S=20, ids="packed"),
    Case("mixed", T=20, S=33, ids="mixed"),
    Case("mixed_full", T=33, S=20, ids="mixed", causal=False),
    Case("mixed_per_sequence", T=20, S=31, ids="mixed", offset=(11, 3)),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_against_pairs(case: Case) -> None:
    x = oracle.problem(case)
    wanted = oracle.mask(case, x)
    offset = np.array(case.offset) if isinstance(case.offset, tuple) else case.offset
    arguments: Any = dict(causal=case.causal, q_segment_ids=x["q_ids"], kv_segment_ids=x["kv_ids"])
    found = masks.visible(case.T, case.S, q_offset=offset, **arguments)
    assert found.dtype == jnp.bool_ and found.shape[0] in (1, case.B)
    np.testing.assert_array_equal(np.broadcast_to(found, wanted.shape), wanted)
    lengths = masks.row_lengths(case.T, case.S, q_offset=offset, **arguments)
    assert lengths.dtype == jnp.int32 and lengths.shape[0] in (1, case.B)
    np.testing.assert_array_equal(np.broadcast_to(lengths, wanted.shape[:2]), wanted.sum(-1))
    assert 0 < wanted.mean() < 1 or not case.causal


def test_documents_count_from_their_own_start() -> None:
    ids = jnp.asarray([[5, 5, 5, 2, 2, 0, 0]])
    lengths = masks.row_lengths(7, 7, causal=True, q_segment_ids=ids, kv_segment_ids=ids)
    np.testing.assert_array_equal(lengths, [[1, 2, 3, 1, 2, 0, 0]])


def test_huge_segment_ids() -> None:
    """Ids are compared, never computed with: no overflow at the ends of int32."""
    ids = jnp.asarray([[2**31 - 1, -(2**31), 2**31 - 1, 1]], jnp.int32)
    lengths = masks.row_lengths(4, 4, causal=True, q_segment_ids=ids, kv_segment_ids=ids)
    np.testing.assert_array_equal(lengths, [[1, 1, 2, 1]])
