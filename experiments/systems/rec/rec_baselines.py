# SPDX-License-Identifier: Apache-2.0
"""Wiring of the recommenders without training: they are evaluated in `prepare`, and shown."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments.runner import settings
from experiments.runner.contract import Experiment
from experiments.systems.rec.recommenders import figures as recommenders_figures
from experiments.systems.rec.recommenders import wiring as recommenders
from rec import metrics
from rec.baselines import evaluation as baselines


def prepare(config: ConfigDict) -> dict[str, Any]:
    """Items, data card and all figures."""
    loaded = recommenders.load(config)
    return recommenders.prepare(config, loaded, recommenders.features(config, loaded))


def make(config: ConfigDict, artifacts: Mapping[str, Any]) -> Experiment:
    """Experiment of one config; nothing is trained.

    Raises:
        ValueError: several seeds.
    """
    evaluation = settings.groups(config)["eval"]
    settings.one_seed(config)
    loaded = recommenders.lazily(config, artifacts)

    def init(key: jax.Array) -> dict[str, Any]:
        return {"step": jnp.int32(0), "params": {}, "key": key}

    def evaluate(state: Mapping[str, Any], split: Any) -> dict[str, float]:
        del state
        parts = loaded().split
        vectors = recommenders.features(config, loaded())
        found = baselines.evaluate(parts, vectors, recommenders.KS, split)
        out = dict(found.metrics)
        queries = recommenders.queries_of(parts, split, 0)
        counts = np.asarray(artifacts["popularity"])
        groups = metrics.bucket_groups(counts, queries.targets)
        fitted = baselines.fit(parts.train, vectors)
        for name, ranks in found.ranks.items():
            out |= metrics.by_group(ranks, groups, recommenders.KS, f"{name}/{split}/")
            low, high = metrics.bootstrap(metrics.recall(ranks, 10), draws=evaluation.draws)
            key = f"{name}/{split}/recall@10"
            out |= {f"{key}/low": low, f"{key}/high": high}
            lists = baselines.lists(fitted[name], queries, 10)
            coverage = metrics.coverage(lists, queries.history.num_items)
            out[f"{name}/{split}/coverage@10"] = coverage
        return out

    return Experiment(
        init=init,
        evaluate=evaluate,
        splits=("valid", "test"),
        figures=recommenders_figures.make_baseline_figures(config, artifacts),
    )
