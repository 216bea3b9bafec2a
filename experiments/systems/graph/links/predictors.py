# SPDX-License-Identifier: Apache-2.0
"""Models of the graph library as predictors of links."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.systems.graph.links.batches import Inputs, Predictor, Variables
from graph.pencil import gather
from graph.tuples import GraphsTuple


def from_subgraph_model(model: nn.Module, featured: bool) -> Predictor:
    """Makes a predictor of a model of (batch, features of its tokens or None)."""

    def read(inputs: Inputs) -> tuple[Any, ...]:
        table = gather(inputs.features, jnp.asarray(inputs.batch.ids)) if featured else None
        return inputs.batch, table

    return _make(model, read, subgraphs=True, whole=False)


def from_graph_model(model: nn.Module, subgraphs: bool) -> Predictor:
    """Makes a predictor of a model of (graph, pairs), or of (graph, batch) where it reads subgraphs
    too."""

    def read(inputs: Inputs) -> tuple[Any, ...]:
        return build_tuple(inputs), inputs.batch if subgraphs else inputs.pairs

    return _make(model, read, subgraphs=subgraphs, whole=True)


def build_tuple(inputs: Inputs) -> GraphsTuple:
    """Builds the whole graph, all weights 1."""
    return GraphsTuple(
        nodes=inputs.features,
        edges=jnp.ones(len(inputs.senders), jnp.float32),
        senders=inputs.senders,
        receivers=inputs.receivers,
        globals=None,
        n_node=np.array([len(inputs.features)], np.int32),
        n_edge=np.array([len(inputs.senders)], np.int32),
    )


def _make(
    model: nn.Module,
    read: Callable[[Inputs], tuple[Any, ...]],
    *,
    subgraphs: bool,
    whole: bool,
) -> Predictor:
    def init(key: jax.Array, inputs: Inputs) -> Variables:
        return dict(model.init({"params": key}, *read(inputs)))

    def compute_logits(variables: Variables, inputs: Inputs, key: jax.Array | None) -> jax.Array:
        rngs = {} if key is None else {"dropout": key}
        logits: Any = model.apply(variables, *read(inputs), deterministic=key is None, rngs=rngs)
        return logits

    return Predictor(init, compute_logits, subgraphs, whole)
