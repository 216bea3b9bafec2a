# SPDX-License-Identifier: Apache-2.0
"""A made-up corpus with known semantic IDs and next-item law: for tests, and runs without files.

Items are the leaves of a tree. Users walk over them by a first-order Markov law that respects the
tree: level by level, the next branch depends on the last item's path down to that level, so items
under one node lead to similar places. The text of an item spells its path.

A user never sees an item twice: a step is drawn from the law with the user's own items taken out.
Masking the history at evaluation therefore loses no target, and the best possible ranking is that
of the law itself.
"""

from typing import NamedTuple

import numpy as np

from rec import metrics
from rec.data.sequences import Corpus, Queries, Sequences


class Planted(NamedTuple):
    """sids: int32 [N, L] path of every internal item; law: float64 [N, N], row i is the
    distribution of the item after i (rows sum to 1, and every entry is above 0)."""

    corpus: Corpus
    sids: np.ndarray
    law: np.ndarray


def planted(
    seed: int = 0,
    branching: tuple[int, ...] = (8, 8, 8),
    users: int = 2000,
    length: tuple[int, int] = (5, 12),
    concentration: float = 0.15,
    noise: float = 0.05,
) -> Planted:
    """The same corpus for the same arguments.

    Args:
        branching: children of a node at each level; their product is the number of items.
        length: shortest and longest row, drawn uniformly.
        concentration: of the Dirichlet each node's transitions are drawn from; small ones have few
            successors.
        noise: share of the uniform distribution over all items mixed into the law.

    Raises:
        ValueError: rows longer than the catalogue, or shorter than 3.
    """
    num_items = int(np.prod(branching))
    if not 3 <= length[0] <= length[1] < num_items:
        raise ValueError(
            f"length={length}: two numbers from 3 to below {num_items} (the items), ascending"
        )
    rng = np.random.default_rng([seed, 0x97EE])
    paths = np.stack(np.unravel_index(np.arange(num_items), branching), 1)
    law = _law(rng, paths, branching, concentration, noise)
    items, offsets = _walks(rng, law, users, length)
    return _renumbered(items, offsets, paths, law)


def _law(
    rng: np.random.Generator,
    paths: np.ndarray,
    branching: tuple[int, ...],
    concentration: float,
    noise: float,
) -> np.ndarray:
    """[N, N]: product over levels of P(branch of the next item | path of this one so far)."""
    num_items = len(paths)
    law = np.ones((num_items, num_items))
    for level, width in enumerate(branching):
        nodes = int(np.prod(branching[: level + 1]))
        table = rng.dirichlet(np.full(width, concentration), nodes)
        node = np.ravel_multi_index(tuple(paths[:, : level + 1].T), branching[: level + 1])
        law *= table[node][:, paths[:, level]]
    return (1 - noise) * law + noise / num_items


def _walks(
    rng: np.random.Generator, law: np.ndarray, users: int, length: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """(items, offsets) of all users, walked in step with each other."""
    num_items = len(law)
    lengths = rng.integers(length[0], length[1] + 1, users)
    everyone = np.arange(users)
    unseen = np.ones((users, num_items), bool)
    walk = np.empty((users, length[1]), np.int64)
    step = np.full((users, num_items), 1 / num_items)
    for at in range(length[1]):
        chances = np.cumsum(step * unseen, axis=1)
        draw = rng.random(users)[:, None] * chances[:, -1:]
        walk[:, at] = np.argmax(chances > draw, axis=1)
        unseen[everyone, walk[:, at]] = False
        step = law[walk[:, at]]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return walk[np.arange(length[1]) < lengths[:, None]], offsets


def _renumbered(
    items: np.ndarray, offsets: np.ndarray, paths: np.ndarray, law: np.ndarray
) -> Planted:
    """Internal ids by first appearance, as everywhere; items nobody saw come last."""
    used, first = np.unique(items, return_index=True)
    old = np.concatenate([used[np.argsort(first)], np.setdiff1d(np.arange(len(paths)), used)])
    new = np.empty(len(old), np.int32)
    new[old] = np.arange(len(old), dtype=np.int32)
    sequences = Sequences(new[items], offsets, len(old), np.zeros(0, np.int64))
    names = ["-".join(str(code) for code in path) for path in paths[old]]
    corpus = Corpus(
        "planted",
        [f"user{u}" for u in range(len(offsets) - 1)],
        [f"item-{name}" for name in names],
        sequences,
        [_text(path) for path in paths[old]],
    )
    return Planted(corpus, paths[old].astype(np.int32), law[old][:, old])


def _text(path: np.ndarray) -> str:
    """A word per branch, "a3 a3 a3 a3 b0 b0 c7": the higher the level, the more often, so that the
    vectors of a residual quantiser give the tree back, level by level."""
    words = [f"{chr(ord('a') + level)}{code}" for level, code in enumerate(path)]
    return " ".join(w for level, w in enumerate(words) for _ in range(2 ** (len(path) - 1 - level)))


def bayes_ranks(law: np.ndarray, queries: Queries) -> np.ndarray:
    """int32 [Q] ranks under the law: no ranker has a higher expected recall at any k."""
    last = queries.history.items[queries.history.offsets[1:] - 1]
    return metrics.ranks(law[last], queries.targets, queries.history)


def bayes_recall(law: np.ndarray, queries: Queries, k: int) -> float:
    """Recall@k of the best ranker on these very queries, same masking and ties as everyone."""
    return float(metrics.recall(bayes_ranks(law, queries), k).mean())


def expected_recall(law: np.ndarray, queries: Queries, k: int) -> float:
    """What `bayes_recall` is on average over targets drawn anew: the mass of the k likeliest items
    among those the user has not seen."""
    last = queries.history.items[queries.history.offsets[1:] - 1]
    chances = np.maximum(metrics.masked(law[last], queries.history), 0.0)
    chances /= chances.sum(1, keepdims=True)
    return float(np.sort(chances, axis=1)[:, -k:].sum(1).mean())
