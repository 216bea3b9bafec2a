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
from experiments.runner.contract import Experiment, Picture, Rows
from experiments.systems.graph.links import figures, predict, wiring
from experiments.systems.graph.links.batches import (
    WHOLE,
    Feeder,
    Inputs,
    Labels,
    Predictor,
    empty_batch,
    whole_graph_leaves,
)
from experiments.systems.graph.links.scores import Evaluation, Scorer, make_ready
from experiments.systems.graph.links.wiring import Loaded
from graph.sample import LinkBatch

# Links are split over the data axis; the graph and node features are on every device.
RULES = (
    (r"batch/(pairs|labels|adj_bits|n|ids|dropped)(\.\d+)?", P("data")),
    (r"batch/.*", P()),
)
LOSSES = {"bce": optax.sigmoid_binary_cross_entropy, "mse": optax.squared_error}


def make_optimizer(cfg: Any) -> optax.GradientTransformation:
    """Makes AdamW at a constant rate, weight decay on everything trained (spec pencil 1.6)."""
    return optax.adamw(cfg.lr, cfg.b1, cfg.b2, cfg.eps, weight_decay=cfg.weight_decay)


Differentiate = Callable[[Mapping[str, Any], Inputs, jax.Array, jax.Array], Any]
"""(state, inputs, labels, key) -> (metrics, gradients) of a group of links."""


def make_differentiate(predictor: Predictor, microbatches: int, loss_name: str) -> Differentiate:
    """Makes what differentiates the mean of a loss of LOSSES over a group of links.

    Args:
        microbatches: parts of the group, whose gradients are added up one after the other.
    """

    def loss(params: Any, frozen: Any, inputs: Inputs, labels: jax.Array, key: jax.Array) -> Any:
        logits = predictor.logits({"params": params, "frozen": frozen}, inputs, key)
        return LOSSES[loss_name](logits, labels).mean(), logits

    def differentiate(
        state: Mapping[str, Any], inputs: Inputs, labels: jax.Array, key: jax.Array
    ) -> Any:
        """(metrics, gradients) of some links at once."""
        (value, logits), gradients = jax.value_and_grad(loss, has_aux=True)(
            state["params"], state["frozen"], inputs, labels, key
        )
        metrics = {"loss": value}
        if loss_name == "bce":
            metrics["accuracy"] = ((logits > 0) == (labels > 0.5)).mean()
        return metrics, gradients

    def differentiate_in_parts(
        state: Mapping[str, Any], inputs: Inputs, labels: jax.Array, key: jax.Array
    ) -> Any:
        """(metrics, gradients) of a group, one microbatch after the other to save memory."""
        if microbatches == 1:
            return differentiate(state, inputs, labels, key)
        cut = lambda x: x.reshape(microbatches, -1, *x.shape[1:])
        parts = (jax.tree.map(cut, inputs.batch), cut(inputs.pairs), cut(labels))

        def add_part(total: Any, index_and_part: Any) -> tuple[Any, None]:
            index, (batch, pairs, part_labels) = index_and_part
            part = inputs._replace(batch=batch, pairs=pairs)
            gained = differentiate(state, part, part_labels, jax.random.fold_in(key, index))
            return jax.tree.map(jnp.add, total, gained), None

        shapes = jax.eval_shape(differentiate, state, inputs, labels, key)
        zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        total, _ = jax.lax.scan(add_part, zero, (jnp.arange(microbatches), parts))
        return jax.tree.map(lambda leaf: leaf / microbatches, total)

    return differentiate_in_parts


def make_step(
    predictor: Predictor,
    feeder: Callable[[], Feeder],
    tx: optax.GradientTransformation,
    differentiate: Differentiate,
) -> Callable[[Mapping[str, Any], Mapping[str, Any]], tuple[dict, dict]]:
    """Makes one update: the mean over groups of links of their gradients."""

    def step(state: Mapping[str, Any], batch: Mapping[str, Any]) -> tuple[dict, dict]:
        key = jax.random.fold_in(state["key"], state["step"])
        groups = feeder().inputs(batch)
        per_group = [
            differentiate(state, inputs, labels, jax.random.fold_in(key, index))
            for index, (inputs, labels) in enumerate(groups)
        ]
        metrics, gradients = jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *per_group)
        updates, opt_state = tx.update(gradients, state["opt_state"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        if predictor.subgraphs:
            tokens = jnp.concatenate([inputs.batch.n for inputs, _ in groups])
            dropped = jnp.concatenate([inputs.batch.dropped for inputs, _ in groups])
            metrics |= {"tokens": tokens.mean(), "dropped": dropped.mean()}
        new_state = {
            **state,
            "step": state["step"] + 1,
            "params": params,
            "opt_state": opt_state,
        }
        return new_state, {name: jnp.float32(value) for name, value in metrics.items()}

    return step


def check_slots(config: ConfigDict, slots: int) -> None:
    """Raises ValueError where there are fewer slots than a link is sampled with."""
    most = settings.groups(config)["sample"].config().sizes[-1]
    if slots < most:
        raise ValueError(
            f"config.model.slots={slots}: config.sample gives links of up to {most} tokens; raise "
            "it to that"
        )


class Learner(NamedTuple):
    """Holds what learns: three members of an Experiment, and the scores of its states."""

    init: Callable[[Any], dict[str, Any]]
    step: Callable[[Any, Any], tuple[dict, dict]]
    batch: Callable[..., dict[str, np.ndarray]]
    scorer: Scorer


def make_learner(
    config: ConfigDict,
    artifacts: Mapping[str, Any],
    predictor: Predictor,
    loaded: Callable[[], Loaded],
    labels: Labels,
    loss_name: str,
) -> Learner:
    """Makes the training of one config and model.

    Raises:
        ValueError: several seeds; microbatches that do not divide a group of links.
    """
    settings.one_seed(config)
    groups = settings.groups(config)
    sampling = groups["sample"]
    optim = groups["optim"]
    group_rows = sampling.rows // sampling.groups
    if group_rows % optim.microbatches:
        raise ValueError(
            f"config.optim.microbatches={optim.microbatches} must divide config.sample.rows / "
            f"config.sample.groups = {group_rows}"
        )
    tx = make_optimizer(optim)
    feeder = functools.cache(lambda: Feeder(loaded(), sampling, config.seed, predictor, labels))
    features = np.asarray(artifacts["features"])
    whole = whole_graph_leaves(wiring.build_graph(artifacts), features, predictor.whole)

    def init(key: jax.Array) -> dict[str, Any]:
        batch = LinkBatch(*(jnp.asarray(leaf) for leaf in empty_batch(1)))
        pair = jnp.zeros((1, 2), jnp.int32)
        inputs = Inputs(batch, pair, *(jnp.asarray(whole[name]) for name in WHOLE))
        variables = predictor.init(jax.random.fold_in(key, 0), inputs)
        params = variables["params"]
        return {
            "step": jnp.int32(0),
            "key": key,
            "params": params,
            "frozen": dict(variables.get("frozen", {})),
            "opt_state": tx.init(params),
        }

    directed = artifacts["card"]["directed"]
    differentiate = make_differentiate(predictor, optim.microbatches, loss_name)
    return Learner(
        init=init,
        step=make_step(predictor, feeder, tx, differentiate),
        batch=lambda step, rows=None: feeder().batch(step, rows),
        scorer=Scorer(predictor, sampling, groups["eval"].batch, directed, whole),
    )


def make(
    config: ConfigDict,
    artifacts: Mapping[str, Any],
    predictor: Predictor,
    around: Callable[[Any, np.ndarray], dict[str, Picture | Rows]] | None = None,
) -> Experiment:
    """Makes the Experiment of a link predictor.

    Args:
        around: see `figures.make_figures`.

    Raises:
        ValueError: see `make_learner`.
    """
    eval_config = settings.groups(config)["eval"]
    loaded = wiring.load_lazily(config, artifacts)
    learner = make_learner(config, artifacts, predictor, loaded, lambda _, labels: labels, "bce")
    evaluation = Evaluation(config, artifacts, loaded, learner.scorer)
    graph = functools.cache(lambda: make_ready(wiring.build_graph(artifacts)))

    def score(state: Mapping[str, Any], pairs: np.ndarray) -> np.ndarray:
        draws = [
            learner.scorer(state, graph(), pairs, draw).logits for draw in range(eval_config.draws)
        ]
        return np.mean(draws, axis=0)

    source = predict.Source(
        predict.known_of(artifacts, functools.cache(lambda: wiring.build_graph(artifacts))),
        loaded,
        config.data.columns,
        eval_config.top,
        eval_config.candidates,
    )
    return Experiment(
        init=learner.init,
        step=learner.step,
        batch=learner.batch,
        evaluate=evaluation.metrics,
        rules=RULES,
        selectable=wiring.selectable_metrics(artifacts),
        figures=figures.make_figures(config, artifacts, evaluation, around),
        actions={"predict": predict.make_predict(source, score)},
    )
