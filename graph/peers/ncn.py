# SPDX-License-Identifier: Apache-2.0
"""Neural common neighbours (Wang et al. 2024): states of a graph network, pooled where both
endpoints are neighbours."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from graph import pencil, tuples
from graph.config import NCNConfig
from graph.peers import gnn, layers
from graph.sample import Array, LinkBatch


class NCN(nn.Module):
    """Encoder over the whole graph; common neighbours are read from the sampled subgraphs, which
    hold all of them where the fan-out is not below the endpoints' degrees. Symmetric."""

    cfg: NCNConfig

    def setup(self) -> None:
        cfg = self.cfg
        self.encoder = gnn.GraphEncoder(cfg.encoder())
        self.head = layers.MLP(cfg.width, cfg.head_layers, cfg.dropout)

    def __call__(
        self, graph: tuples.GraphsTuple, batch: LinkBatch, *, deterministic: bool = True
    ) -> jax.Array:
        """Logits float32 [B] of the links (ids 0, ids 1), none of which is seen as an edge."""
        seen = tuples.without(graph, jnp.asarray(batch.ids)[:, :2])
        states = self.encode(seen, deterministic=deterministic)
        return self.score(states, batch, deterministic=deterministic)

    def encode(self, graph: tuples.GraphsTuple, *, deterministic: bool = True) -> jax.Array:
        """States float [V, width]."""
        return self.encoder(graph, deterministic)

    def score(self, states: Array, batch: LinkBatch, *, deterministic: bool = True) -> jax.Array:
        """MLP of [x_s * x_t ; sum of x_u over common neighbours u], float32 [B]."""
        states = jnp.asarray(states)
        adj, _ = pencil.read(batch, states.dtype)
        x = pencil.gather(states, batch.ids)
        common = jnp.einsum("bn,bnd->bd", adj[:, 0] * adj[:, 1], x)
        both = jnp.concatenate([x[:, 0] * x[:, 1], common], axis=-1)
        return self.head(both, deterministic)
