# SPDX-License-Identifier: Apache-2.0
"""The catalogue trie against a set of prefixes, on random catalogues."""

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rec.sid import trie


def catalogue(seed: int) -> tuple[np.ndarray, tuple[int, ...]]:
    """Random SIDs: duplicates, shared prefixes, N = 1, one level, one code."""
    rng = np.random.default_rng(seed)
    sizes = tuple(int(s) for s in rng.integers(1, 6, rng.integers(1, 4)))
    items = 1 if seed % 5 == 0 else int(rng.integers(1, 40))
    sids = np.stack([rng.integers(0, size, items) for size in sizes], axis=1)
    if seed % 3 == 0:
        sids[:, 0] = sids[0, 0]
    return sids.astype(np.int32), sizes


def prefixes(sids: np.ndarray, length: int) -> list[tuple[int, ...]]:
    return sorted({tuple(row[:length]) for row in sids.tolist()})


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("dense_limit", [0, 8, 2**20])
def test_the_trie_is_the_set_of_prefixes(seed: int, dense_limit: int) -> None:
    sids, sizes = catalogue(seed)
    tree, shape = trie.build(sids, sizes, dense_limit)
    assert shape.sizes == sizes and hash(shape) is not None
    every = np.stack(np.meshgrid(*map(np.arange, sizes), indexing="ij"), -1).astype(np.int32)

    def ask(tree: trie.Trie) -> tuple:
        """Everything about every node in one program; static facts are not traced."""
        answers = []
        for level, size in enumerate(sizes):
            nodes = jnp.arange(-1, len(prefixes(sids, level)), dtype=jnp.int32)
            codes = jnp.arange(-1, size + 1, dtype=jnp.int32)
            grid = jnp.broadcast_to(nodes[:, None], (len(nodes), size + 2))
            asked = jnp.broadcast_to(codes[None], grid.shape)
            masked = trie.mask(tree, shape, level, nodes)
            children = trie.children(tree, shape, level, nodes)
            answers.append((masked, trie.step(tree, shape, level, grid, asked), children))
        return answers, trie.walk(tree, shape, jnp.asarray(every))

    answers, reached = jax.tree.map(np.asarray, jax.jit(ask)(tree))
    for level, (size, answer) in enumerate(zip(sizes, answers, strict=True)):
        masked, stepped, (tokens, child, valid) = answer
        here, below = prefixes(sids, level), prefixes(sids, level + 1)
        assert tree.first[level].shape == (len(here) + 1,)
        assert tree.token[level].shape == (len(below) + shape.branching[level],)
        assert shape.dense[level] == (len(here) * size <= dense_limit)
        expected = np.full((len(here) + 1, size), -1, np.int32)
        for index, prefix in enumerate(here):
            for code in range(size):
                if (*prefix, code) in below:
                    expected[index + 1, code] = below.index((*prefix, code))
        assert shape.branching[level] == (expected >= 0).sum(axis=1).max() == tokens.shape[-1]
        np.testing.assert_array_equal(masked, expected >= 0)
        np.testing.assert_array_equal(stepped[:, 1:-1], expected)
        assert (stepped[:, [0, -1]] == -1).all()
        for row in range(len(here) + 1):
            found = np.flatnonzero(expected[row] >= 0)
            np.testing.assert_array_equal(tokens[row][valid[row]], found)
            np.testing.assert_array_equal(child[row][valid[row]], expected[row][found])
            assert (child[row][~valid[row]] == -1).all() and (tokens[row][~valid[row]] == 0).all()
    found = {tuple(row) for row in every[reached >= 0].tolist()}
    assert found == {tuple(row) for row in sids.tolist()}
    first, items = np.asarray(tree.leaf_first), np.asarray(tree.leaf_items)
    assert sorted(items.tolist()) == list(range(len(sids)))
    for sid in found:
        leaf = reached[sid]
        same = np.flatnonzero((sids == np.asarray(sid)).all(axis=1)).tolist()
        assert items[first[leaf] : first[leaf + 1]].tolist() == same


def test_keys_that_do_not_fit_64_bits_are_sorted_too() -> None:
    rng = np.random.default_rng(0)
    sids = rng.integers(0, 2**20, (50, 4)).astype(np.int32)
    sids[25:, :2] = sids[:25, :2]
    tree, shape = trie.build(sids, (2**20,) * 4)
    assert shape.dense == (True, False, False, False)
    order = sorted(range(50), key=lambda item: sids[item].tolist())
    assert np.asarray(tree.leaf_items).tolist() == order
    assert (np.asarray(trie.walk(tree, shape, jnp.asarray(sids))) >= 0).all()
    assert (np.asarray(trie.walk(tree, shape, jnp.asarray(sids ^ 1))) == -1).all()


def test_bad_tables_are_refused() -> None:
    good = np.array([[0, 1], [1, 0]], np.int32)
    with pytest.raises(ValueError, match="item 1: code 1 of level 1 is not below 1"):
        trie.build(good, (1, 2))
    with pytest.raises(ValueError, match=r"int32 \[items, 3\]"):
        trie.build(good, (2, 2, 2))
    with pytest.raises(ValueError, match="not float64"):
        trie.build(good.astype(np.float64), (2, 2))
    with pytest.raises(ValueError, match="SIDs must be"):
        trie.build(good[:0], (2, 2))


def test_a_million_sids_are_built_without_a_loop_over_them() -> None:
    sids = np.random.default_rng(0).integers(0, 256, (10**6, 4)).astype(np.int32)
    calls = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        tree, shape = trie.build(sids, (256,) * 4)
    finally:
        sys.setprofile(None)
    assert calls < 10**5  # 2,000, and 8,000 more where something is compiled
    assert shape.dense == (True, True, False, False) and len(tree.leaf_items) == 10**6
    some = jnp.asarray(sids[:64])
    leaves = np.asarray(trie.walk(tree, shape, some))
    first = np.asarray(tree.leaf_first)
    for item, leaf in enumerate(leaves.tolist()):
        assert item in np.asarray(tree.leaf_items[first[leaf] : first[leaf + 1]])
