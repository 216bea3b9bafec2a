# SPDX-License-Identifier: Apache-2.0
"""Wiring of the heuristic regression: a network on a link's subgraph against a known function."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments.runner import data, settings
from experiments.runner.contract import Experiment, Picture, Rows
from experiments.runner.errors import UserError
from experiments.runner.plots import BLUE, INK, new_axes, png, style
from experiments.systems.graph.links import figures, predictors, scores, training, wiring
from experiments.systems.graph.links.wiring import Loaded
from graph import heuristics, negatives
from graph.config import PencilConfig
from graph.peers.subgraph import SubgraphGNN
from graph.pencil import Pencil

SELECTABLE = ("valid/rmse", "valid/r2")
Targets = Callable[[np.ndarray], np.ndarray]
"""pairs int32 [P, 2] -> float32 [P], the scaled heuristic."""


def prepare(config: ConfigDict) -> dict[str, Any]:
    """Makes graph and names; the row of a constant, the mean of the training targets."""
    loaded = wiring.load_one_split(config)
    look_up = tabulate_targets(config, loaded)
    train = loaded.data.split.train
    drawn = negatives.negatives(loaded.graph, len(train), config.seed, 0)
    targets = look_up(np.concatenate([train, drawn]))
    constant = np.full(len(list_pairs(loaded, "test")), targets.mean())
    rows = score(constant, loaded, look_up, "test")
    card = wiring.describe(loaded.data)
    print(
        f"{card['name']}: {config.target.name} of {len(targets):,} links as in training, mean "
        f"{targets.mean():.4f} ± {targets.std():.4f}; a constant has rmse {rows['test/rmse']:.4f}"
    )
    return {
        **wiring.graph_artifacts(loaded.data),
        "card": card,
        "rows": {f"mean/{name}": value for name, value in rows.items()},
    }


def tabulate_targets(config: ConfigDict, loaded: Loaded) -> Targets:
    """Computes the scaled heuristic of all pairs of nodes, out of the cache, and returns how a pair
    is looked up."""
    V = loaded.graph.num_nodes
    name = config.target.name

    def compute() -> dict[str, np.ndarray]:
        pairs = np.stack(np.triu_indices(V), axis=1)
        targets = heuristics.regression_targets(name, loaded.graph, pairs)
        return {"x": targets.astype(np.float32)}

    try:
        key = [wiring.hash_links(loaded.data), name]
        table = data.packed("heuristic_targets", key, compute)["x"]
    except ValueError as error:
        raise UserError(f"config.target.name={name}: {error}") from error

    def look_up(pairs: np.ndarray) -> np.ndarray:
        low = pairs.min(-1).astype(np.int64)
        high = pairs.max(-1)
        return table[low * V - low * (low - 1) // 2 + high - low]

    return look_up


def list_pairs(loaded: Loaded, side: str, rows: int = 0) -> np.ndarray:
    """Lists positives and negatives of a side, int32 [P, 2]."""
    links = wiring.subsample(loaded.links(side), rows)
    return np.concatenate([links.pos, links.neg.reshape(-1, 2)])


def score(
    outputs: np.ndarray, loaded: Loaded, look_up: Targets, side: str, rows: int = 0
) -> dict[str, float]:
    """Computes the root of the mean squared error, and the share of the variance explained."""
    targets = look_up(list_pairs(loaded, side, rows)).astype(np.float64)
    error = np.mean((outputs - targets) ** 2)
    explained = 1 - error / max(targets.var(), np.finfo(float).tiny)
    return {f"{side}/rmse": float(np.sqrt(error)), f"{side}/r2": float(explained)}


def make(config: ConfigDict, artifacts: Mapping[str, Any]) -> Experiment:
    """Makes the Experiment of one config.

    Raises:
        ValueError: several seeds; config.model.slots below what is sampled.
    """
    groups = settings.groups(config)
    cfg = groups["model"].config()
    eval_config = groups["eval"]
    training.check_slots(config, cfg.slots)
    model = Pencil(cfg) if isinstance(cfg, PencilConfig) else SubgraphGNN(cfg)
    featured = getattr(cfg, "inputs", "") == "features"
    predictor = predictors.from_subgraph_model(model, featured)
    loaded = wiring.load_lazily(config, artifacts)
    look_up = functools.cache(lambda: tabulate_targets(config, loaded()))
    label = lambda pairs, is_positive: look_up()(pairs)
    learner = training.make_learner(config, artifacts, predictor, loaded, label, "mse")

    def compute_outputs(state: Mapping[str, Any], side: str, rows: int) -> np.ndarray:
        graph = scores.make_ready(loaded().graph)
        pairs = list_pairs(loaded(), side, rows)
        count = eval_config.draws if side == "test" else 1
        draws = [learner.scorer(state, graph, pairs, draw).logits for draw in range(count)]
        return np.mean(draws, axis=0)

    def evaluate(state: Mapping[str, Any], split: str) -> dict[str, float]:
        rows = 0 if split == "test" else eval_config.rows
        outputs = compute_outputs(state, split, rows)
        metrics = score(outputs, loaded(), look_up(), split, rows)
        return metrics | (dict(artifacts["rows"]) if split == "test" else {})

    def draw_figures(records: Any, state: Mapping[str, Any]) -> dict[str, Picture | Rows]:
        del records
        targets = look_up()(list_pairs(loaded(), "test"))
        outputs = compute_outputs(state, "test", 0)
        return {
            "Target and output": draw_scatter(targets, outputs, config.target.name),
            "Data card": figures.card_rows(artifacts["card"]),
        }

    return Experiment(
        init=learner.init,
        step=learner.step,
        batch=learner.batch,
        evaluate=evaluate,
        rules=training.RULES,
        selectable=SELECTABLE,
        figures=draw_figures,
    )


def draw_scatter(targets: np.ndarray, outputs: np.ndarray, name: str) -> Picture:
    """Draws outputs over targets of the test links."""
    figure, ((axes,),) = new_axes(4.5, 3.8)
    ends = [targets.min(), targets.max()]
    axes.plot(ends, ends, color=INK, linewidth=1)
    axes.scatter(targets, outputs, s=6, alpha=0.4, color=BLUE)
    axes.set(xlabel=f"{name}, scaled", ylabel="output")
    style(axes, grid="both")
    caption = (
        f"What the model says of every test link over the true value of {name}. On the line it is "
        "right."
    )
    return Picture(png(figure), caption)
