# SPDX-License-Identifier: Apache-2.0
"""Learned link predictors in the frame: the update, and the Experiment around a `Predictor`, which
is all in which PENCIL and its peers differ."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from experiments.runner import settings
from experiments.runner.contract import Experiment, Rows
from experiments.systems.graph.links import figures as links_figures
from experiments.systems.graph.links import wiring as links
from experiments.systems.graph.links.batches import (
    WHOLE,
    Feeder,
    Inputs,
    Labels,
    Predictor,
    empty_batch,
    whole_of,
)
from experiments.systems.graph.links.scores import Evaluation, Scorer, ready
from experiments.systems.graph.links.wiring import Loaded
from graph.sample import LinkBatch

# Links are split over the data axis; the graph and node features are on every device.
RULES = (
    (r"batch/(pairs|labels|adj_bits|n|ids|dropped)(\.\d+)?", P("data")),
    (r"batch/.*", P()),
)
LOSSES = {"bce": optax.sigmoid_binary_cross_entropy, "mse": optax.squared_error}


def optimizer(cfg: Any) -> optax.GradientTransformation:
    """AdamW at a constant rate, weight decay on everything trained (spec pencil 1.6)."""
    return optax.adamw(cfg.lr, cfg.b1, cfg.b2, cfg.eps, weight_decay=cfg.weight_decay)


def make_step(
    predictor: Predictor,
    feeder: Callable[[], Feeder],
    tx: optax.GradientTransformation,
    parts: int,
    loss_name: str,
) -> Callable[[Mapping[str, Any], Mapping[str, Any]], tuple[dict, dict]]:
    """One update: mean of a loss of LOSSES over the links.

    Args:
        parts: microbatches of each group, whose gradients are added up one after the other.
    """

    def loss(params: Any, frozen: Any, inputs: Inputs, labels: jax.Array, key: jax.Array) -> Any:
        logits = predictor.logits({"params": params, "frozen": frozen}, inputs, key)
        return LOSSES[loss_name](logits, labels).mean(), logits

    def of_part(state: Mapping[str, Any], inputs: Inputs, labels: jax.Array, key: jax.Array) -> Any:
        (value, logits), gradients = jax.value_and_grad(loss, has_aux=True)(
            state["params"], state["frozen"], inputs, labels, key
        )
        right = {"accuracy": ((logits > 0) == (labels > 0.5)).mean()} if loss_name == "bce" else {}
        return {"loss": value, **right}, gradients

    def of_group(
        state: Mapping[str, Any], inputs: Inputs, labels: jax.Array, key: jax.Array
    ) -> Any:
        if parts == 1:
            return of_part(state, inputs, labels, key)
        cut = lambda x: x.reshape(parts, -1, *x.shape[1:])
        some = (jax.tree.map(cut, inputs.batch), cut(inputs.pairs), cut(labels))

        def one(total: Any, index_and_part: Any) -> tuple[Any, None]:
            index, (batch, pairs, own) = index_and_part
            part = inputs._replace(batch=batch, pairs=pairs)
            found = of_part(state, part, own, jax.random.fold_in(key, index))
            return jax.tree.map(jnp.add, total, found), None

        like = jax.eval_shape(of_part, state, inputs, labels, key)
        zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)
        total, _ = jax.lax.scan(one, zero, (jnp.arange(parts), some))
        return jax.tree.map(lambda leaf: leaf / parts, total)

    def step(state: Mapping[str, Any], batch: Mapping[str, Any]) -> tuple[dict, dict]:
        key = jax.random.fold_in(state["key"], state["step"])
        groups = feeder().inputs(batch)
        found = [
            of_group(state, inputs, labels, jax.random.fold_in(key, index))
            for index, (inputs, labels) in enumerate(groups)
        ]
        values, gradients = jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *found)
        updates, opt_state = tx.update(gradients, state["opt_state"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        if predictor.subgraphs:
            tokens = jnp.concatenate([inputs.batch.n for inputs, _ in groups])
            dropped = jnp.concatenate([inputs.batch.dropped for inputs, _ in groups])
            values |= {"tokens": tokens.mean(), "dropped": dropped.mean()}
        new = {"step": state["step"] + 1, "params": params, "opt_state": opt_state}
        return {**state, **new}, {name: jnp.float32(value) for name, value in values.items()}

    return step


def check_slots(config: ConfigDict, slots: int) -> None:
    """Raises ValueError: fewer slots than a link is sampled with."""
    most = settings.groups(config)["sample"].config().sizes[-1]
    if slots < most:
        raise ValueError(
            f"config.model.slots={slots}: config.sample gives links of up to {most} tokens; raise "
            "it to that"
        )


class Trained(NamedTuple):
    """What learns: three members of an Experiment, and the scores of its states."""

    init: Callable[[Any], dict[str, Any]]
    step: Callable[[Any, Any], tuple[dict, dict]]
    batch: Callable[..., dict[str, np.ndarray]]
    scorer: Scorer


def trained(
    config: ConfigDict,
    artifacts: Mapping[str, Any],
    predictor: Predictor,
    loaded: Callable[[], Loaded],
    labels: Labels,
    loss_name: str,
) -> Trained:
    """Training of one config and model.

    Raises:
        ValueError: several seeds; microbatches that do not divide a group of links.
    """
    settings.one_seed(config)
    groups = settings.groups(config)
    sampling, optim = groups["sample"], groups["optim"]
    if sampling.rows // sampling.groups % optim.microbatches:
        raise ValueError(
            f"config.optim.microbatches={optim.microbatches} must divide config.sample.rows / "
            f"config.sample.groups = {sampling.rows // sampling.groups}"
        )
    tx = optimizer(optim)
    feeder = functools.cache(lambda: Feeder(loaded(), sampling, config.seed, predictor, labels))
    graph = links.graph_of(artifacts)
    whole = whole_of(graph, np.asarray(artifacts["features"]), predictor.whole)

    def init(key: jax.Array) -> dict[str, Any]:
        some = LinkBatch(*(jnp.asarray(leaf) for leaf in empty_batch(1)))
        pair = jnp.zeros((1, 2), jnp.int32)
        inputs = Inputs(some, pair, *(jnp.asarray(whole[name]) for name in WHOLE))
        variables = predictor.init(jax.random.fold_in(key, 0), inputs)
        params, frozen = variables["params"], dict(variables.get("frozen", {}))
        state = {"step": jnp.int32(0), "key": key, "params": params, "frozen": frozen}
        return {**state, "opt_state": tx.init(params)}

    directed = artifacts["card"]["directed"]
    return Trained(
        init=init,
        step=make_step(predictor, feeder, tx, optim.microbatches, loss_name),
        batch=lambda step, rows=None: feeder().batch(step, rows),
        scorer=Scorer(predictor, sampling, groups["eval"].batch, directed, whole),
    )


def make(
    config: ConfigDict,
    artifacts: Mapping[str, Any],
    predictor: Predictor,
    around: Callable[[Any, np.ndarray], dict[str, bytes | Rows]] | None = None,
) -> Experiment:
    """Experiment of a link predictor.

    Args:
        around: see `links_figures.make_figures`.

    Raises:
        ValueError: see `trained`.
    """
    evaluation = settings.groups(config)["eval"]
    loaded = links.lazily(config, artifacts)
    learned = trained(config, artifacts, predictor, loaded, lambda _, labels: labels, "bce")
    judged = Evaluation(config, artifacts, loaded, learned.scorer)
    known = functools.cache(lambda: ready(links.graph_of(artifacts)))

    def score(state: Mapping[str, Any], pairs: np.ndarray) -> np.ndarray:
        draws = range(evaluation.draws)
        return np.mean([learned.scorer(state, known(), pairs, d)[0] for d in draws], axis=0)

    predict = links.make_predict(artifacts, evaluation.top, evaluation.candidates, score)
    return Experiment(
        init=learned.init,
        step=learned.step,
        batch=learned.batch,
        evaluate=judged.metrics,
        rules=RULES,
        selectable=links.selectable(artifacts),
        figures=links_figures.make_figures(config, artifacts, judged, around),
        actions={"predict": predict},
    )
