# SPDX-License-Identifier: Apache-2.0
"""Graph networks on the sampled subgraph of a link: what message passing makes of PENCIL's input.

The peers of the heuristic regression: one convolution of width 512, a linear residual, the Hadamard
product of the endpoints, a two-layer MLP.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from graph import pencil
from graph.config import SubgraphGNNConfig
from graph.peers import layers
from graph.sample import Array, LinkBatch


class SubgraphGNN(nn.Module):
    """Symmetric in the endpoints, except for inputs "slots" and "marked"."""

    cfg: SubgraphGNNConfig

    @nn.compact
    def __call__(
        self, batch: LinkBatch, features: Array | None = None, *, deterministic: bool = True
    ) -> jax.Array:
        """Logits float32 [B]; features [B, N, F] are read where inputs is "features".

        Raises:
            ValueError: features missing or not wanted; more tokens than slots.
        """
        cfg = self.cfg
        if (features is not None) != (cfg.inputs == "features"):
            got = "none" if features is None else "some"
            raise ValueError(f"features: {got} given, but inputs={cfg.inputs!r}")
        adj, _ = pencil.read(batch)
        x = self._inputs(adj.shape[0], adj.shape[1]) if features is None else jnp.asarray(features)
        encoder = layers.Encoder(cfg.kind, cfg.width, cfg.layers, cfg.heads, True, name="encoder")
        h = encoder(x, layers.Dense(adj))
        head = layers.MLP(cfg.width, 2, cfg.dropout, name="head")
        return head(h[:, 0] * h[:, 1], deterministic)

    def _inputs(self, B: int, N: int) -> jax.Array:
        cfg = self.cfg
        if cfg.inputs == "constant":
            return jnp.ones((B, N, 1))
        if cfg.inputs == "marked":
            table = self.param("marks", nn.initializers.normal(1.0), (3, cfg.width))
            rows = table[jnp.minimum(jnp.arange(N), 2)]
        else:
            if N > cfg.slots:
                raise ValueError(f"batch of {N} tokens per link: slots={cfg.slots}")
            shape = (cfg.slots, cfg.width)
            rows = self.variable(
                "frozen", "slots", lambda: pencil.projection(self.make_rng("params"), *shape)
            ).value[:N]
        return jnp.broadcast_to(rows[None], (B, N, cfg.width))
