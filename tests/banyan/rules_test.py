# SPDX-License-Identifier: Apache-2.0
"""Rule tables: balance, symmetry, no self-reference, pools."""

import numpy as np
import pytest

from banyan.rules import combine_matrix, make_rules, pool_items, recipes, relabel
from tests.banyan.worlds import generator


@pytest.mark.parametrize("density", [(1.0, 1.0), (0.9, 1.0), (0.3, 0.5), (0.01, 0.02), (0.0, 0.0)])
def test_tables_are_balanced_and_never_self_referring(density: tuple[float, float]) -> None:
    for seed in range(5):
        rules = make_rules(generator(seed), *density)
        combine, transform = combine_matrix(rules), np.asarray(rules.transform)
        assert combine.dtype == transform.dtype == np.uint8
        np.testing.assert_array_equal(combine, combine.T)
        assert not np.diag(combine).any() and not combine[0].any() and transform[0] == 0
        a, b = np.nonzero(np.triu(combine))
        assert len(a) == round(density[0] * 3160)
        assert (combine[a, b] != a).all() and (combine[a, b] != b).all()
        assert np.count_nonzero(transform) == round(density[1] * 80)
        assert (transform[1:] != np.arange(1, 81)).all()
        for results in (combine[a, b], transform[transform > 0]):
            counts = np.bincount(results, minlength=81)[1:]
            assert counts.max() - counts.min() <= 1


def test_recipes_are_the_inverse_of_the_tables() -> None:
    rules = make_rules(generator(1), 0.5, 0.5)
    made, combine = recipes(rules), combine_matrix(rules)
    assert sum(map(len, made.pairs)) == np.count_nonzero(np.triu(combine))
    for item in range(1, 81):
        assert all(combine[a, b] == item and a < b for a, b in made.pairs[item])
        assert all(np.asarray(rules.transform)[x] == item for x in made.singles[item])


@pytest.mark.parametrize("pools", [2, 3, 10])
def test_pools_have_one_structure_and_never_react_with_each_other(pools: int) -> None:
    rules = make_rules(generator(2), pools=pools)
    combine, transform = combine_matrix(rules), np.asarray(rules.transform)
    members = [pool_items(pool, pools) for pool in range(pools)]
    assert len(set(np.concatenate(members))) == pools * (80 // pools)
    to_first = np.zeros(81, int)
    for items in members:
        to_first[items] = members[0]
    first = combine[np.ix_(members[0], members[0])]
    for items in members:
        block = combine[np.ix_(items, items)]
        assert np.isin(block[block > 0], items).all()
        np.testing.assert_array_equal(to_first[block], first)
        np.testing.assert_array_equal(to_first[transform[items]], transform[members[0]])
    assert np.count_nonzero(combine) == pools * np.count_nonzero(first)


def test_relabel_commutes_with_combining() -> None:
    rules = make_rules(generator(3), 0.7, 0.7)
    permutation = np.concatenate([[0], 1 + generator(4).permutation(80)])
    renamed = relabel(rules, permutation)
    old, new = combine_matrix(rules), combine_matrix(renamed)
    for a, b in generator(5).integers(1, 81, (200, 2)):
        assert new[permutation[a], permutation[b]] == permutation[old[a, b]]
        assert renamed.transform[permutation[a]] == permutation[rules.transform[a]]


def test_same_seed_same_bytes() -> None:
    one, two = make_rules(generator(6)), make_rules(generator(6))
    assert np.asarray(one.combine).tobytes() == np.asarray(two.combine).tobytes()
    assert (
        np.asarray(one.combine).tobytes() != np.asarray(make_rules(generator(7)).combine).tobytes()
    )


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"combine_density=1\.5"):
        make_rules(generator(0), 1.5)
    with pytest.raises(ValueError, match=r"transform_density=-0\.1"):
        make_rules(generator(0), 0.5, -0.1)
    with pytest.raises(ValueError, match="pools=41"):
        make_rules(generator(0), pools=41)
    with pytest.raises(ValueError, match="pool=2"):
        pool_items(2, 2)
    with pytest.raises(ValueError, match="permutation"):
        relabel(make_rules(generator(0)), np.roll(np.arange(81), 1))
