# SPDX-License-Identifier: Apache-2.0
"""Wiring of the heuristic regression: a network on a link's subgraph against a known function."""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from experiments.runner import data, settings
from experiments.runner.contract import Experiment
from experiments.runner.plots import png
from experiments.systems.graph.links import figures as links_figures
from experiments.systems.graph.links import predictors as link_predictors
from experiments.systems.graph.links import scores as link_scores
from experiments.systems.graph.links import training as link_training
from experiments.systems.graph.links import wiring as links
from experiments.systems.graph.links.wiring import Loaded
from graph import heuristics, negatives
from graph.config import PencilConfig
from graph.peers.subgraph import SubgraphGNN
from graph.pencil import Pencil

SELECTABLE = ("valid/rmse", "valid/r2")


def prepare(config: ConfigDict) -> dict[str, Any]:
    """Graph and names; the row of a constant, the mean of the training targets."""
    loaded = links.load_one(config)
    table = targets_of(config, loaded)
    train = loaded.data.split.train
    drawn = negatives.negatives(loaded.graph, len(train), config.seed, 0)
    known = table(np.concatenate([train, drawn]))
    rows = scores(np.full(len(asked(loaded, "test")), known.mean()), loaded, table, "test")
    about = links.card(loaded.data)
    print(
        f"{about['name']}: {config.target.name} of {len(known):,} links as in training, mean "
        f"{known.mean():.4f} ± {known.std():.4f}; a constant has rmse {rows['test/rmse']:.4f}"
    )
    return {
        **links.graph_artifacts(loaded.data),
        "card": about,
        "rows": {f"mean/{name}": value for name, value in rows.items()},
    }


def targets_of(config: ConfigDict, loaded: Loaded) -> Any:
    """pairs int [P, 2] -> float32 [P]: the scaled heuristic, out of a table of all pairs."""
    V, name = loaded.graph.num_nodes, config.target.name
    try:
        make = lambda: {
            "x": heuristics.regression_targets(
                name, loaded.graph, np.stack(np.triu_indices(V), axis=1)
            ).astype(np.float32)
        }
        key = [links.sha256(loaded.data), name]
        table = data.packed("heuristic_targets", key, make)["x"]
    except ValueError as error:
        raise links.UserError(f"config.target.name={name}: {error}") from error

    def lookup(pairs: np.ndarray) -> np.ndarray:
        low, high = pairs.min(-1).astype(np.int64), pairs.max(-1)
        return table[low * V - low * (low - 1) // 2 + high - low]

    return lookup


def asked(loaded: Loaded, side: str, rows: int = 0) -> np.ndarray:
    """Positives and negatives of a side, int32 [P, 2]."""
    found = links.some(loaded.links(side), rows)
    return np.concatenate([found.pos, found.neg.reshape(-1, 2)])


def scores(
    outputs: np.ndarray, loaded: Loaded, table: Any, side: str, rows: int = 0
) -> dict[str, float]:
    """Root of the mean squared error, and the share of the variance that is explained."""
    wanted = table(asked(loaded, side, rows)).astype(np.float64)
    error = np.mean((outputs - wanted) ** 2)
    explained = 1 - error / max(wanted.var(), np.finfo(float).tiny)
    return {f"{side}/rmse": float(np.sqrt(error)), f"{side}/r2": float(explained)}


def make(config: ConfigDict, artifacts: Mapping[str, Any]) -> Experiment:
    """Experiment of one config.

    Raises:
        ValueError: several seeds; config.model.slots below what is sampled.
    """
    groups = settings.groups(config)
    cfg, evaluation = groups["model"].config(), groups["eval"]
    link_training.check_slots(config, cfg.slots)
    model = Pencil(cfg) if isinstance(cfg, PencilConfig) else SubgraphGNN(cfg)
    featured = getattr(cfg, "inputs", "") == "features"
    predictor = link_predictors.of_subgraphs(model, featured)
    loaded = links.lazily(config, artifacts)
    table = functools.cache(lambda: targets_of(config, loaded()))
    trained = link_training.trained(
        config, artifacts, predictor, loaded, lambda pairs, labels: table()(pairs), "mse"
    )

    def outputs(state: Mapping[str, Any], side: str, rows: int) -> np.ndarray:
        graph = link_scores.ready(loaded().graph)
        draws = evaluation.draws if side == "test" else 1
        pairs = asked(loaded(), side, rows)
        return np.mean([trained.scorer(state, graph, pairs, d)[0] for d in range(draws)], axis=0)

    def evaluate(state: Mapping[str, Any], split: str) -> dict[str, float]:
        rows = 0 if split == "test" else evaluation.rows
        out = scores(outputs(state, split, rows), loaded(), table(), split, rows)
        return out | (dict(artifacts["rows"]) if split == "test" else {})

    def figures(records: Any, state: Mapping[str, Any]) -> dict[str, Any]:
        del records
        wanted, found = table()(asked(loaded(), "test")), outputs(state, "test", 0)
        return {
            "Target and output": scatter(wanted, found, config.target.name),
            "Data card": links_figures.card_rows(artifacts["card"]),
        }

    return Experiment(
        init=trained.init,
        step=trained.step,
        batch=trained.batch,
        evaluate=evaluate,
        rules=link_training.RULES,
        selectable=SELECTABLE,
        figures=figures,
    )


def scatter(wanted: np.ndarray, found: np.ndarray, name: str) -> bytes:
    """Outputs over targets, test links."""
    figure = Figure(figsize=(4, 3.6))
    axes = figure.subplots()
    axes.plot([wanted.min(), wanted.max()], [wanted.min(), wanted.max()], color="grey", linewidth=1)
    axes.scatter(wanted, found, s=6, alpha=0.4, color=links_figures.BLUE)
    axes.set(xlabel=f"{name}, scaled", ylabel="output")
    figure.tight_layout()
    return png(figure)
