# SPDX-License-Identifier: Apache-2.0
"""Wiring of link prediction without training: every heuristic, over all fixed splits there are."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments.runner import data, inputs, settings
from experiments.runner.contract import Experiment
from experiments.runner.errors import UserError
from experiments.systems.graph.links import figures, wiring
from graph.data import npz


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
    """Makes the card of the graph, of its first split where there are several."""
    splits = [wiring.load(split_config) for split_config in expand_splits(config)]
    return {"card": {**wiring.describe(splits[0].data), "splits": len(splits)}}


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
    )
