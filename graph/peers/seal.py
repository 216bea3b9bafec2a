# SPDX-License-Identifier: Apache-2.0
"""SEAL-style peer: labels by the distances to both endpoints, and a GCN over the subgraph.

Zhang and Chen 2018 sort the states of all nodes into a fixed length; here the endpoints' states are
multiplied, or all are averaged, which needs no sorting [our choice].
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from graph import pencil
from graph.config import SEALConfig
from graph.peers import layers
from graph.sample import Array, LinkBatch


def distances(adj: jax.Array, root: int, avoid: int | None = None) -> jax.Array:
    """Edges on a shortest path from token `root`, int32 [B, N]; N where there is none.

    Args:
        adj: float [B, N, N] of 0 and 1.
        avoid: a token that paths may not pass, and that is itself out of reach; or None.
    """
    B, N = adj.shape[:2]
    if avoid is not None:
        stays = (jnp.arange(N) != avoid).astype(adj.dtype)
        adj = adj * stays[None, :, None] * stays[None, None, :]
    start = jnp.full((B, N), N, jnp.int32).at[:, root].set(0)

    def grow(state: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array, jax.Array]:
        distance, frontier, step = state
        near = jnp.einsum("bn,bnm->bm", frontier.astype(adj.dtype), adj) > 0
        fresh = near & (distance == N)
        return jnp.where(fresh, step + 1, distance), fresh, step + 1

    begin = (start, start == 0, jnp.int32(0))
    distance, _, _ = jax.lax.while_loop(lambda state: state[1].any(), grow, begin)
    return distance


def drnl(adj: jax.Array, valid: jax.Array) -> jax.Array:
    """Double-radius node labels, int32 [B, N] (Zhang and Chen 2018, equation 3 [secondary]).

    1 + min(a, b) + (d // 2) (d // 2 + d % 2 - 1) with d = a + b, a and b the distances to s without
    t and to t without s; endpoints have 1, nodes that miss one of them, and empty slots, 0.

    Args:
        adj: float [B, N, N] of 0 and 1; valid: bool [B, N].
    """
    N = adj.shape[1]
    a, b = distances(adj, 0, avoid=1), distances(adj, 1, avoid=0)
    half, odd = (a + b) // 2, (a + b) % 2
    label = 1 + jnp.minimum(a, b) + half * (half + odd - 1)
    label = jnp.where((a < N) & (b < N), label, 0)
    return jnp.where(valid, label.at[:, :2].set(1), 0)


class SEAL(nn.Module):
    """Symmetric in the endpoints."""

    cfg: SEALConfig

    @nn.compact
    def __call__(
        self, batch: LinkBatch, features: Array | None = None, *, deterministic: bool = True
    ) -> jax.Array:
        """Logits float32 [B]; features [B, N, F] where the config says so.

        Raises:
            ValueError: features missing or not wanted.
        """
        cfg = self.cfg
        if (features is not None) != cfg.features:
            got = "none" if features is None else "some"
            raise ValueError(f"features: {got} given, but features={cfg.features}")
        adj, valid = pencil.read(batch)
        labels = jnp.minimum(jax.lax.stop_gradient(drnl(adj, valid)), cfg.max_label)
        x = nn.Embed(cfg.max_label + 1, cfg.width, name="labels")(labels)
        if features is not None:
            x = jnp.concatenate([x, jnp.asarray(features)], axis=-1)
        states = []
        for index in range(cfg.layers):
            x = jax.nn.relu(layers.GCN(cfg.width, name=f"conv_{index}")(x, layers.Dense(adj)))
            states.append(x)
        h = jnp.concatenate(states, axis=-1)
        if cfg.pooling == "roots":
            pooled = h[:, 0] * h[:, 1]
        else:
            is_node = valid[..., None].astype(h.dtype)
            pooled = (h * is_node).sum(axis=1) / is_node.sum(axis=1)
        return layers.MLP(cfg.width, 2, cfg.dropout, name="head")(pooled, deterministic)
