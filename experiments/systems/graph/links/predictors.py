# SPDX-License-Identifier: Apache-2.0
"""Models of the graph library as predictors of links."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.systems.graph.links.batches import Inputs, Predictor, Variables
from graph.pencil import gather
from graph.tuples import GraphsTuple


def of_subgraphs(model: nn.Module, featured: bool) -> Predictor:
    """A model of (batch, features of its tokens or None)."""

    def read(inputs: Inputs) -> tuple[Any, ...]:
        table = gather(inputs.features, jnp.asarray(inputs.batch.ids)) if featured else None
        return inputs.batch, table

    return _predictor(model, read, subgraphs=True, whole=False)


def of_graph(model: nn.Module, subgraphs: bool) -> Predictor:
    """A model of (graph, pairs), or of (graph, batch) where it reads subgraphs too."""

    def read(inputs: Inputs) -> tuple[Any, ...]:
        return tuple_of(inputs), inputs.batch if subgraphs else inputs.pairs

    return _predictor(model, read, subgraphs=subgraphs, whole=True)


def tuple_of(inputs: Inputs) -> GraphsTuple:
    """The whole graph, all weights 1."""
    return GraphsTuple(
        nodes=inputs.features,
        edges=jnp.ones(len(inputs.senders), jnp.float32),
        senders=inputs.senders,
        receivers=inputs.receivers,
        globals=None,
        n_node=np.array([len(inputs.features)], np.int32),
        n_edge=np.array([len(inputs.senders)], np.int32),
    )


def _predictor(model: nn.Module, read: Any, *, subgraphs: bool, whole: bool) -> Predictor:
    def init(key: jax.Array, inputs: Inputs) -> Variables:
        return dict(model.init({"params": key}, *read(inputs)))

    def logits(variables: Variables, inputs: Inputs, key: jax.Array | None) -> jax.Array:
        rngs = {} if key is None else {"dropout": key}
        found: Any = model.apply(variables, *read(inputs), deterministic=key is None, rngs=rngs)
        return found

    return Predictor(init, logits, subgraphs, whole)
