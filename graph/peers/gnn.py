# SPDX-License-Identifier: Apache-2.0
"""Graph networks over the whole graph: GCN, SAGE, GAT, and the graph auto-encoder (GAE)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from graph import tuples
from graph.config import GNNConfig
from graph.peers import layers
from graph.sample import Array


class Inputs(nn.Module):
    """What an encoder reads of each node, float [V, F]: kinds of `graph.config.NODE_INPUTS`."""

    kind: str
    width: int

    @nn.compact
    def __call__(self, graph: tuples.GraphsTuple) -> jax.Array:
        """Raises ValueError: "features" of a graph that has none."""
        V, F = graph.nodes.shape
        if self.kind == "features":
            if not F:
                raise ValueError("inputs='features': the nodes of this graph have none")
            return jnp.asarray(graph.nodes)
        if self.kind == "constant":
            return jnp.ones((V, 1))
        init, shape = nn.initializers.orthogonal(), (V, self.width)
        if self.kind == "learned":
            return self.param("nodes", nn.initializers.normal(self.width**-0.5), shape)
        return self.variable("frozen", "nodes", lambda: init(self.make_rng("params"), shape)).value


class GraphEncoder(nn.Module):
    """States float [V, width] of all nodes."""

    cfg: GNNConfig

    @nn.compact
    def __call__(self, graph: tuples.GraphsTuple, deterministic: bool = True) -> jax.Array:
        cfg = self.cfg
        x = Inputs(cfg.inputs, cfg.width, name="inputs")(graph)
        encoder = layers.Encoder(
            cfg.kind, cfg.width, cfg.layers, cfg.heads, cfg.residual, cfg.dropout, name="encoder"
        )
        return encoder(x, layers.sparse(graph), deterministic)


class GNN(nn.Module):
    """A graph network and a score of two of its states; symmetric in the endpoints."""

    cfg: GNNConfig

    def setup(self) -> None:
        cfg = self.cfg
        self.encoder = GraphEncoder(cfg)
        if cfg.head == "mlp":
            self.head = layers.MLP(cfg.width, cfg.head_layers, cfg.dropout)

    def __call__(
        self, graph: tuples.GraphsTuple, pairs: Array, *, deterministic: bool = True
    ) -> jax.Array:
        """Logits float32 [B] of pairs int [B, 2], none of which is seen as an edge."""
        states = self.encode(tuples.without(graph, pairs), deterministic=deterministic)
        return self.score(states, pairs, deterministic=deterministic)

    def encode(self, graph: tuples.GraphsTuple, *, deterministic: bool = True) -> jax.Array:
        """States float [V, width]."""
        return self.encoder(graph, deterministic)

    def score(self, states: Array, pairs: Array, *, deterministic: bool = True) -> jax.Array:
        """Logits float32 [B] of pairs, of states [V, width]."""
        states, pairs = jnp.asarray(states), jnp.asarray(pairs)
        both = states[pairs[:, 0]] * states[pairs[:, 1]]
        if self.cfg.head == "dot":
            return both.sum(axis=-1).astype(jnp.float32)
        return self.head(both, deterministic)
