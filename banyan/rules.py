# SPDX-License-Identifier: Apache-2.0
"""Rule tables: what two items combine to, what one item is transformed to.

Results carry no attribute algebra: they are dealt from a shuffled deck in which every item occurs
equally often (floor or ceil), so that each item has the same number of recipes and trees of any
shape can be assigned. How the tables of the paper were built is not published; the balanced deck
and its densities are our choice (0.9 of all pairs, every item transformable).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Integer

from banyan.types import NUM_ITEMS, Rules, host_leaf

_WIDTH = NUM_ITEMS + 1
_RESHUFFLES = 100


class Recipes(NamedTuple):
    """The tables read backwards: how each item can be made."""

    pairs: tuple[np.ndarray, ...]  # item -> [R, 2] inputs with a < b
    singles: tuple[np.ndarray, ...]  # item -> [R] inputs of a transform


def pool_items(pool: int, pools: int) -> Integer[np.ndarray, "N"]:
    """Items of one of `pools` disjoint pools: equal blocks of consecutive ids.

    Blocks of 80 // pools items; a remainder stays unused. With 2, 5 or 10 pools a block is a set
    of colors in all shapes.
    """
    if not 1 <= pools <= NUM_ITEMS // 2:
        raise ValueError(f"pools={pools}: must lie in 1..{NUM_ITEMS // 2}")
    if not 0 <= pool < pools:
        raise ValueError(f"pool={pool}: must lie in 0..{pools - 1}")
    size = NUM_ITEMS // pools
    return np.arange(1 + pool * size, 1 + (pool + 1) * size)


def _check_density(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name}={value}: must lie in 0..1")


def _balanced_deck(rng: np.random.Generator, size: int, num_items: int) -> np.ndarray:
    """`size` results in 0..num_items-1, each floor or ceil of size / num_items times, shuffled."""
    whole = np.repeat(np.arange(num_items), size // num_items)
    rest = rng.permutation(num_items)[: size % num_items]
    return rng.permutation(np.concatenate([whole, rest]))


def _deal(rng: np.random.Generator, inputs: np.ndarray, num_items: int) -> np.ndarray:
    """A result for every row of `inputs` [N, k], never one of the row's own items.

    A conflicting card is swapped with a random other one that fits both places, which keeps the
    counts of the deck exactly.
    """
    for _ in range(_RESHUFFLES):
        deck = _balanced_deck(rng, len(inputs), num_items)
        for i in np.flatnonzero((deck[:, None] == inputs).any(axis=1)):
            fits_here = (deck[:, None] != inputs[i]).all(axis=1)
            fits_there = (inputs != deck[i]).all(axis=1)
            partners = np.flatnonzero(fits_here & fits_there)
            if not len(partners):
                break
            j = partners[rng.integers(len(partners))]
            deck[i], deck[j] = deck[j], deck[i]
        if not (deck[:, None] == inputs).any():
            return deck
    raise ValueError(f"no balanced table without self-reference for {num_items} items per pool")


def make_rules(
    rng: np.random.Generator,
    combine_density: float = 0.9,
    transform_density: float = 1.0,
    pools: int = 1,
) -> Rules:
    """Draws the tables.

    Args:
        combine_density: share of the unordered pairs of different items that react.
        transform_density: share of the items that react to toggle.
        pools: P disjoint item pools with one abstract structure: for the order-preserving
            bijection pi between two pools, combine[pi a, pi b] = pi combine[a, b]; items of
            different pools never react.

    Returns:
        symmetric `combine` without self-pairs and `transform`, uint8; a result never equals one of
        its inputs; within a pool every item has floor or ceil of the mean number of recipes.

    Raises:
        ValueError: density outside 0..1, bad number of pools.
    """
    _check_density("combine_density", combine_density)
    _check_density("transform_density", transform_density)
    size = len(pool_items(0, pools))
    first, second = np.triu_indices(size, k=1)
    chosen = rng.permutation(len(first))[: round(combine_density * len(first))]
    pairs = np.stack([first[chosen], second[chosen]], axis=1)
    pair_results = _deal(rng, pairs, size)
    singles = rng.permutation(size)[: round(transform_density * size)]
    single_results = _deal(rng, singles[:, None], size)

    combine = np.zeros((_WIDTH, _WIDTH), np.uint8)
    transform = np.zeros(_WIDTH, np.uint8)
    for pool in range(pools):
        items = pool_items(pool, pools)
        a = items[pairs[:, 0]]
        b = items[pairs[:, 1]]
        combine[a, b] = combine[b, a] = items[pair_results]
        transform[items[singles]] = items[single_results]
    return Rules(host_leaf(combine.reshape(-1)), host_leaf(transform))


def relabel(rules: Rules, permutation: Integer[np.ndarray, "81"]) -> Rules:
    """The same rules after renaming item i to permutation[i]; permutation[0] must be 0."""
    if not np.array_equal(np.sort(permutation), np.arange(_WIDTH)) or permutation[0] != 0:
        raise ValueError("permutation: must be a rearrangement of 0..80 that keeps 0 in place")
    new = permutation.astype(np.uint8)
    combine = np.zeros((_WIDTH, _WIDTH), np.uint8)
    combine[np.ix_(permutation, permutation)] = new[combine_matrix(rules)]
    transform = np.zeros(_WIDTH, np.uint8)
    transform[permutation] = new[np.asarray(rules.transform)]
    return Rules(host_leaf(combine.reshape(-1)), host_leaf(transform))


def combine_matrix(rules: Rules) -> Integer[np.ndarray, "81 81"]:
    """`rules.combine` as a matrix."""
    return np.asarray(rules.combine).reshape(_WIDTH, _WIDTH)


def recipes(rules: Rules) -> Recipes:
    """Inverse tables: for every item the pairs and single items that make it."""
    upper = np.triu(combine_matrix(rules), k=1)
    transform = np.asarray(rules.transform)
    made = range(_WIDTH)
    return Recipes(
        pairs=tuple(
            np.argwhere(upper == item) if item else np.zeros((0, 2), np.intp) for item in made
        ),
        singles=tuple(
            np.flatnonzero(transform == item) if item else np.zeros(0, np.intp) for item in made
        ),
    )
