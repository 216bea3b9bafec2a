# SPDX-License-Identifier: Apache-2.0
"""Wiring of the recommenders without training: they are evaluated in `prepare`, and shown."""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments.runner import settings
from experiments.runner.contract import Experiment, State
from experiments.runner.queries import Columns, Query, split_choice
from experiments.systems.rec.recommenders import figures, recommend, wiring
from rec import metrics
from rec.baselines import evaluation


def prepare(config: ConfigDict) -> dict[str, Any]:
    """Makes items, data card and the rows without training."""
    loaded = wiring.load(config)
    return wiring.prepare(loaded, wiring.load_features_if_any(config, loaded))


def make(config: ConfigDict, artifacts: Mapping[str, Any]) -> Experiment:
    """Makes the Experiment of one config; nothing is trained.

    Raises:
        ValueError: several seeds.
    """
    eval_config = settings.groups(config)["eval"]
    settings.one_seed(config)
    loaded = wiring.load_lazily(config, artifacts)

    def init(key: jax.Array) -> dict[str, Any]:
        return {"step": jnp.int32(0), "params": {}, "key": key}

    def evaluate(state: Mapping[str, Any], split: Any) -> dict[str, float]:
        del state
        parts = loaded().split
        vectors = wiring.load_features_if_any(config, loaded())
        baselines = evaluation.evaluate(parts, vectors, wiring.KS, split)
        out = dict(baselines.metrics)
        queries = wiring.select_queries(parts, split, 0)
        popularity = np.asarray(artifacts["popularity"])
        groups = metrics.bucket_groups(popularity, queries.targets)
        scorers = evaluation.fit(parts.train, vectors)
        for name, ranks in baselines.ranks.items():
            out |= metrics.by_group(ranks, groups, wiring.KS, f"{name}/{split}/")
            hits = metrics.recall(ranks, 10)
            low, high = metrics.bootstrap(hits, draws=eval_config.draws)
            key = f"{name}/{split}/recall@10"
            out |= {f"{key}/low": low, f"{key}/high": high}
            lists = evaluation.lists(scorers[name], queries, 10)
            coverage = metrics.coverage(lists, queries.history.num_items)
            out[f"{name}/{split}/coverage@10"] = coverage
        return out

    @functools.cache
    def fitted() -> dict[str, evaluation.Scorer]:
        return evaluation.fit(loaded().split.train, wiring.load_features_if_any(config, loaded()))

    def recommend_by(state: State, query: Query) -> Iterator[Columns]:
        names = [name for name in evaluation.NAMES if f"{name}/test/recall@10" in artifacts["rows"]]
        chosen, query = split_choice(query, names, "successor: ITEM ITEM")
        asked = recommend.read_histories(query, artifacts["items"], loaded, config.data.columns)
        wanted = query.top or eval_config.top
        for name in chosen:
            score = fitted()[name]
            rank = lambda _, rows, most, s=score: recommend.rank_scores(s(rows), rows, most)
            for table in recommend.tables(artifacts, state, asked, wanted, rank):
                yield {"baseline": [name] * len(table["rank"]), **table}

    return Experiment(
        init=init,
        evaluate=evaluate,
        splits=("valid", "test"),
        figures=figures.make_baseline_figures(config, artifacts),
        actions={"recommend": recommend_by},
    )
