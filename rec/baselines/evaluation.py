# SPDX-License-Identifier: Apache-2.0
"""All baselines on one split: the rows that stand beside every recommender."""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np

from rec import metrics
from rec.baselines import reachability, scorers
from rec.baselines.scorers import Scorer
from rec.data.sequences import Queries, Sequences, Split, select

NAMES = ("popularity", "successor", "cooccurrence", "item_knn", "content")
CELLS = 1 << 21  # scores held at a time; 8 MiB of float32, what a cache likes


class Evaluation(NamedTuple):
    """metrics: `<baseline>/<side>/recall@10` and so on; ranks: int32 [Q] of each baseline, for
    paired bootstraps; plus: bool [Q], the queries reachable by one hop."""

    metrics: dict[str, float]
    ranks: dict[str, np.ndarray]
    plus: np.ndarray


def fit(train: Sequences, features: np.ndarray | None = None) -> dict[str, Scorer]:
    """Scorers by name; content needs item vectors [N, d] and is left out without them."""
    scorers_by_name: dict[str, Scorer] = {
        "popularity": scorers.popularity(train),
        "successor": scorers.successor(train),
        "cooccurrence": scorers.cooccurrence(train),
        "item_knn": scorers.item_knn(train),
    }
    if features is not None:
        scorers_by_name["content"] = scorers.content(train, features)
    return scorers_by_name


def chunks(queries: Queries, cells: int = CELLS) -> Iterator[Queries]:
    """Queries in pieces whose scores have at most `cells` entries."""
    size = max(1, cells // max(queries.history.num_items, 1))
    for start in range(0, len(queries.targets), size):
        rows = np.arange(start, min(start + size, len(queries.targets)))
        yield Queries(queries.users[rows], select(queries.history, rows), queries.targets[rows])


def ranks(scorer: Scorer, queries: Queries, mask_seen: bool = True) -> np.ndarray:
    """int32 [Q] rank of every target in the whole catalogue."""
    parts = [
        metrics.ranks(scorer(part.history), part.targets, part.history if mask_seen else None)
        for part in chunks(queries)
    ]
    return np.concatenate([np.zeros(0, np.int32), *parts])


def lists(scorer: Scorer, queries: Queries, k: int) -> np.ndarray:
    """int32 [Q, k] recommended items, history masked."""
    return np.concatenate(
        [metrics.top(scorer(part.history), k, part.history) for part in chunks(queries)]
    )


def evaluate(
    split: Split,
    features: np.ndarray | None = None,
    ks: Sequence[int] = (5, 10),
    side: Literal["valid", "test"] = "test",
    mask_seen: bool = True,
) -> Evaluation:
    """Fit on `split.train`, rank the queries of one side; the history of a test query includes the
    validation item and is masked, unless `mask_seen` is off. Metrics hold the means over users and
    those over U+ and U- (`popularity/test/recall@10/U+`) and over head, mid and tail targets."""
    queries = split.test if side == "test" else split.valid
    plus = reachability.reachable(split.train, queries)
    groups = reachability.groups(plus)
    groups |= metrics.bucket_groups(scorers.counts(split.train), queries.targets)
    figures, ranks_by_name = {}, {}
    for name, scorer in fit(split.train, features).items():
        ranks_by_name[name] = ranks(scorer, queries, mask_seen)
        prefix = f"{name}/{side}/"
        figures |= metrics.summarize(ranks_by_name[name], ks, prefix)
        figures |= metrics.by_group(ranks_by_name[name], groups, ks, prefix)
    return Evaluation(figures, ranks_by_name, plus)
