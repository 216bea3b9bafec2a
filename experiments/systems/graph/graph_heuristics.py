# SPDX-License-Identifier: Apache-2.0
"""Wiring of link prediction without training: every heuristic, over all fixed splits there are."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments.runner import data, inputs, settings
from experiments.runner.contract import Experiment, State
from experiments.runner.errors import UserError
from experiments.runner.queries import Columns, Query, split_choice
from experiments.systems.graph.links import figures, predict, wiring
from experiments.systems.graph.links.wiring import Loaded
from graph import heuristics
from graph.data import npz

TOP = 10  # links of a node where the query does not say
CANDIDATES = 1000  # nodes that are scored for one


def expand_splits(config: ConfigDict) -> list[ConfigDict]:
    """Makes one config for each split that is asked for.

    Raises:
        UserError: all fixed splits are asked for where there is no file, or none in it.
    """
    group = config.data
    if group.split != "fixed" or group.index >= 0:
        return [config]
    try:
        indices = npz.split_indices(group.name, data.root(group.root))
    except ValueError as error:
        raise UserError(f"config.data: {error}\n{inputs.NO_FILES}") from error
    configs = []
    for index in indices or [0]:
        split_config = config.copy_and_resolve_references()
        with split_config.unlocked():
            split_config.data.index = index
        configs.append(split_config)
    return configs


def prepare(config: ConfigDict) -> dict[str, Any]:
    """Makes graph, names and card, of the first split where there are several."""
    splits = [wiring.load(split_config) for split_config in expand_splits(config)]
    card = {**wiring.describe(splits[0].data), "splits": len(splits)}
    return {**wiring.graph_artifacts(splits[0].data), "card": card}


def pool(rows: list[dict[str, float]]) -> dict[str, float]:
    """Averages over splits; where there are several, deviations (n - 1) stand under <key>/std."""
    pooled = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
    if len(rows) > 1:
        pooled |= {
            f"{key}/std": float(np.std([row[key] for row in rows], ddof=1)) for key in rows[0]
        }
    return pooled


def make(config: ConfigDict, artifacts: Mapping[str, Any]) -> Experiment:
    """Makes the Experiment of one config; nothing is trained.

    Raises:
        ValueError: several seeds.
    """
    settings.one_seed(config)
    names = settings.groups(config)["eval"].heuristics

    def init(key: jax.Array) -> dict[str, Any]:
        return {"step": jnp.int32(0), "params": {}, "key": key}

    def evaluate(state: Mapping[str, Any], split: str) -> dict[str, float]:
        del state
        splits = [wiring.load(split_config) for split_config in expand_splits(config)]
        sha256 = wiring.hash_links(splits[0].data)
        inputs.check_same(config, "links", sha256, artifacts["card"]["sha256"])
        rows = pool([wiring.score_without_training(loaded, split, names) for loaded in splits])
        for name in names:
            print(f"  {name:<10} {split}: {wiring.format_metrics(rows, f'{name}/{split}/')}")
        return rows

    return Experiment(
        init=init,
        evaluate=evaluate,
        figures=figures.make_heuristic_figures(config, artifacts),
        actions={"predict": make_predict_by(config, artifacts, names)},
    )


def make_predict_by(
    config: ConfigDict, artifacts: Mapping[str, Any], names: Sequence[str]
) -> Callable[[State, Query], Iterator[Columns]]:
    """Makes the action that scores pairs by one heuristic, "katz: NODE NODE", or where none is
    named, for a file or for all, by each of them."""
    graph = functools.cache(lambda: wiring.build_graph(artifacts))

    def load_checked() -> Loaded:
        return wiring.load_lazily(expand_splits(config)[0], artifacts)()

    known = predict.known_of(artifacts, graph)
    source = predict.Source(known, load_checked, config.data.columns, TOP, CANDIDATES)

    def predict_by(state: State, query: Query) -> Iterator[Columns]:
        del state
        chosen, query = split_choice(query, names, "katz: NODE NODE")
        asked = predict.read_query(source, query)
        for name in chosen:
            options = wiring.choose_options(name, graph())
            for part in asked:
                scores = heuristics.scores(name, graph(), part.pairs, **options)
                table = predict.table(known(), part, scores)
                yield {"heuristic": [name] * len(table["rank"]), **table}

    return predict_by
