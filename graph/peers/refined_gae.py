# SPDX-License-Identifier: Apache-2.0
"""Refined GAE: a plain graph auto-encoder, tuned (Ma et al. 2025).

Learned vectors per node that start orthogonal, propagation without activations, a residual from
the input in every step, an MLP on the Hadamard product. One linear map per step [our choice; the
original also shares it between steps].
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from graph import tuples
from graph.config import RefinedGAEConfig
from graph.peers import layers
from graph.sample import Array


class RefinedGAE(nn.Module):
    """Symmetric in the endpoints; face of `graph.peers.gnn.GNN`. The graph's V is part of it."""

    cfg: RefinedGAEConfig

    def setup(self) -> None:
        cfg = self.cfg
        self.propagation = Propagation(cfg)
        self.head = layers.MLP(cfg.width, cfg.head_layers, cfg.dropout)

    def __call__(
        self, graph: tuples.GraphsTuple, pairs: Array, *, deterministic: bool = True
    ) -> jax.Array:
        """Logits float32 [B] of pairs int [B, 2], none of which is seen as an edge."""
        states = self.encode(tuples.without(graph, pairs))
        return self.score(states, pairs, deterministic=deterministic)

    def encode(self, graph: tuples.GraphsTuple) -> jax.Array:
        """States float [V, width]; there is no dropout in them."""
        return self.propagation(graph)

    def score(self, states: Array, pairs: Array, *, deterministic: bool = True) -> jax.Array:
        """Logits float32 [B] of pairs, of states [V, width]."""
        states, pairs = jnp.asarray(states), jnp.asarray(pairs)
        return self.head(states[pairs[:, 0]] * states[pairs[:, 1]], deterministic)


class Propagation(nn.Module):
    """H <- A^ H W + residual * H_0, `layers` times, A^ as in GCN."""

    cfg: RefinedGAEConfig

    @nn.compact
    def __call__(self, graph: tuples.GraphsTuple) -> jax.Array:
        cfg, V = self.cfg, graph.nodes.shape[0]
        first = self.param("nodes", nn.initializers.orthogonal(), (V, cfg.width))
        if cfg.features:
            feature_layer = nn.Dense(cfg.width, use_bias=False, name="features")
            first = first + feature_layer(jnp.asarray(graph.nodes))
        h = first
        for index in range(cfg.layers):
            step = layers.GCN(cfg.width, bias=False, name=f"conv_{index}")
            h = step(h, layers.sparse(graph)) + cfg.residual * first
        return h
