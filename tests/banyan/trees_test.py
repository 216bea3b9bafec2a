# SPDX-License-Identifier: Apache-2.0
"""Shapes, assigned trees and their tables."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from banyan import trees as tr
from banyan.rules import combine_matrix, make_rules, pool_items, recipes
from tests.banyan.worlds import generator

RULES = make_rules(generator(0))
RECIPES = recipes(RULES)


def sample_nodes(count: int, levels: int = 6, seed: int = 0) -> list[tr.Node]:
    rng = generator(seed)
    return [tr.assign(rng, tr.sample_topology(rng, levels), RECIPES) for _ in range(count)]


def test_counts_of_shapes() -> None:
    assert [len(tr.enumerate_topologies(n)) for n in range(1, 6)] == [1, 2, 7, 56, 2212]
    assert [tr.count_topologies(n) for n in range(1, 7)] == [1, 2, 7, 56, 2212, 2_595_782]
    shapes = tr.enumerate_topologies(4)
    assert len({tr.topology_string(s) for s in shapes}) == 56
    assert all(tr.levels(s) == 4 and tr.canonical_topology(s) == s for s in shapes)


@pytest.mark.parametrize("levels", [1, 2, 3, 6, 7])
def test_sampled_shapes_are_canonical_and_exactly_as_tall_as_asked(levels: int) -> None:
    rng = generator(1)
    for _ in range(50):
        for shape in (tr.sample_topology(rng, levels), tr.sample_topology_uniform(rng, levels)):
            assert tr.levels(shape) == levels
            assert tr.canonical_topology(shape) == shape
    assert tr.num_leaves(tr.balanced(levels)) == 2 ** (levels - 1)


def test_uniform_sampler_is_uniform_and_random_sampler_covers_all() -> None:
    rng = generator(2)
    counts = Counter(tr.sample_topology_uniform(rng, 4) for _ in range(2800))
    assert set(counts) == set(tr.enumerate_topologies(4))
    expected = 2800 / 56
    chi2 = sum((n - expected) ** 2 / expected for n in counts.values())
    assert chi2 < 100  # 55 degrees of freedom: p < 0.0003 beyond
    assert {tr.sample_topology(rng, 3) for _ in range(500)} == set(tr.enumerate_topologies(3))
    assert tr.sample_topology(rng, 6, p_binary=0.0) == ((((((),),),),),)
    assert tr.sample_topology(rng, 5, p_binary=1.0, p_stop=0.0) == tr.balanced(5)


def test_every_edge_of_an_assigned_tree_is_a_rule_and_items_are_distinct() -> None:
    combine, transform = combine_matrix(RULES), np.asarray(RULES.transform)
    for node in [*sample_nodes(100), tr.assign(generator(3), tr.balanced(6), RECIPES)]:
        items = tr.items_of(node)
        assert len(set(items)) == len(items) and min(items) >= 1 and max(items) <= 80
        for inputs, made in tr.edges(node):
            assert made == (combine[inputs] if len(inputs) == 2 else transform[inputs[0]])


def test_items_are_used_uniformly_also_at_the_end_of_the_spine() -> None:
    rng = generator(4)
    bottoms = [tr.spine(tr.assign(rng, tr.balanced(3), RECIPES))[0].item for _ in range(1000)]
    counts = np.bincount(bottoms, minlength=81)[1:]
    low, high = counts[:40].sum(), counts[40:].sum()
    assert abs(low - high) < 5 * np.sqrt(1000)  # the smaller item of twins would lean far lower
    assert np.count_nonzero(counts) >= 75


def test_spine_is_nested_and_has_one_tree_per_level() -> None:
    for node in sample_nodes(50, seed=5):
        nested = tr.spine(node)
        assert [tr.levels(sub) for sub in nested] == [1, 2, 3, 4, 5, 6]
        assert nested[-1] == node
        for small, large in pairwise(nested):
            assert small in large.children
        shapes = tr.spine_shapes(tr.topology_of(node))
        assert tuple(map(tr.topology_of, nested)) == shapes


def test_tables_round_trip() -> None:
    nodes = [sub for node in sample_nodes(30, seed=6) for sub in tr.spine(node)]
    nodes = [node for node in nodes if len(tr.leaves(node)) <= 32]
    tables = tr.pack(nodes, [tr.levels(node) for node in nodes])
    assert tables.leaf.dtype == tables.parent.dtype == tables.goal.dtype == np.uint8
    for k, node in enumerate(nodes):
        assert tr.unpack(tables, k) == node
        on_board = [int(x) for x in tables.leaf[k][2:] if x]
        assert on_board == tr.leaves(node)
        assert tables.leaf[k][0] == 0 and tables.leaf[k][1] == 255
        assert np.count_nonzero(tables.parent[k]) == len(tr.items_of(node)) - 1


def test_canonical_ignores_the_order_of_children() -> None:
    a = tr.Node(1, (tr.Node(2), tr.Node(3, (tr.Node(4),))))
    b = tr.Node(1, (tr.Node(3, (tr.Node(4),)), tr.Node(2)))
    c = tr.Node(1, (tr.Node(2, (tr.Node(4),)), tr.Node(3)))
    assert tr.canonical(a) == tr.canonical(b) != tr.canonical(c)


def test_assignment_bound_holds_and_is_exact_for_small_shapes() -> None:
    items = np.arange(1, 81)
    assert tr.count_assignments((), RECIPES, items) == 80
    assert tr.count_assignments(((),), RECIPES, items) == 80
    assert tr.count_assignments(((), ()), RECIPES, items) == 2844  # 0.9 of 3160 pairs


def test_assignment_stays_in_its_pool_and_works_without_rules() -> None:
    pool = pool_items(1, 2)
    pooled = recipes(make_rules(generator(7), pools=2))
    node = tr.assign(generator(8), tr.sample_topology(generator(9), 5), pooled, pool)
    assert set(tr.items_of(node)) <= set(pool.tolist())
    free = tr.assign(generator(8), tr.balanced(6), None)
    assert len(set(tr.items_of(free))) == 63


def test_bad_trees_are_refused() -> None:
    with pytest.raises(ValueError, match="64 leaves: at most 32"):
        node = tr.assign(generator(0), tr.balanced(6), None)
        pair = tr.Node(0, (node, node))
        tr.pack([pair], [6])
    with pytest.raises(ValueError, match="uses an item twice"):
        tr.pack([tr.Node(3, (tr.Node(3),))], [2])
    with pytest.raises(ValueError, match="depth 7"):
        tr.pack([tr.Node(3)], [7])
    with pytest.raises(ValueError, match="2 depths given for 1"):
        tr.pack([tr.Node(3)], [1, 2])
    with pytest.raises(ValueError, match=r"outside 1\.\.80"):
        tr.pack([tr.Node(81)], [1])
    with pytest.raises(ValueError, match="levels=8"):
        tr.sample_topology(generator(0), 8)
    with pytest.raises(ValueError, match="levels=6"):
        tr.enumerate_topologies(6)
    with pytest.raises(ValueError, match="p_stop=2"):
        tr.sample_topology(generator(0), 3, p_stop=2.0)
    with pytest.raises(ValueError, match="no assignment of items to shape"):
        tr.assign(generator(0), ((),), recipes(make_rules(generator(0), 0.9, 0.0)))
    with pytest.raises(ValueError, match="has 15 nodes, but only 8"):
        tr.assign(generator(0), tr.balanced(4), RECIPES, np.arange(1, 9))


def test_contradicting_tables_are_noticed() -> None:
    tables = tr.pack([tr.Node(1, (tr.Node(2), tr.Node(3)))], [2])
    np.asarray(tables.sibling)[0, 2] = 0
    with pytest.raises(ValueError, match="contradict at item 1"):
        tr.unpack(tables, 0)
