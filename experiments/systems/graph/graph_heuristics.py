# SPDX-License-Identifier: Apache-2.0
"""Wiring of link prediction without training: every heuristic, over all fixed splits there are."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments.runner import data, settings
from experiments.runner.contract import Experiment
from experiments.runner.errors import UserError
from experiments.systems.graph.links import figures as links_figures
from experiments.systems.graph.links import wiring as links
from graph.data import npz


def configs(config: ConfigDict) -> list[ConfigDict]:
    """One for each split that is asked for.

    Raises:
        UserError: all fixed splits are asked for where there is no file, or none in it.
    """
    group = config.data
    if group.split != "fixed" or group.index >= 0:
        return [config]
    try:
        indices = npz.split_indices(group.name, data.root(group.root))
    except ValueError as error:
        raise UserError(f"config.data: {error}\n{links.NO_FILES}") from error
    out = []
    for index in indices or [0]:
        one = config.copy_and_resolve_references()
        with one.unlocked():
            one.data.index = index
        out.append(one)
    return out


def prepare(config: ConfigDict) -> dict[str, Any]:
    """Card of the graph, of its first split where there are several."""
    found = [links.load(one) for one in configs(config)]
    return {"card": {**links.card(found[0].data), "splits": len(found)}}


def pooled(rows: list[dict[str, float]]) -> dict[str, float]:
    """Means over splits; where there are several, deviations (n - 1) under <key>/std."""
    out = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
    if len(rows) > 1:
        spread = {f"{k}/std": float(np.std([row[k] for row in rows], ddof=1)) for k in rows[0]}
        out |= spread
    return out


def make(config: ConfigDict, artifacts: Mapping[str, Any]) -> Experiment:
    """Experiment of one config; nothing is trained.

    Raises:
        ValueError: several seeds.
    """
    settings.one_seed(config)
    evaluation = settings.groups(config)["eval"]

    def init(key: jax.Array) -> dict[str, Any]:
        return {"step": jnp.int32(0), "params": {}, "key": key}

    def evaluate(state: Mapping[str, Any], split: str) -> dict[str, float]:
        del state
        found = [links.load(one) for one in configs(config)]
        links.check_same(config, found[0].data, artifacts["card"]["sha256"])
        names = evaluation.heuristics
        rows = pooled([links.rows_without_training(one, split, names) for one in found])
        for name in names:
            print(f"  {name:<10} {split}: {links.cells(rows, f'{name}/{split}/')}")
        return rows

    return Experiment(
        init=init,
        evaluate=evaluate,
        figures=links_figures.make_heuristic_figures(config, artifacts),
    )
