# SPDX-License-Identifier: Apache-2.0
"""MPLP-style peer: nodes between the endpoints, counted by random signatures (Dong et al. 2024).

Every slot has a random vector f with E[f_i . f_j] = [i = j]. Sums of signatures over two sets of
nodes then have an inner product whose mean is the number of nodes in both: one message per hop
counts common neighbours without comparing neighbourhoods. With orthonormal signatures (as many
dimensions as slots) counts are exact.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from graph import pencil
from graph.config import MPLPConfig
from graph.peers import layers, seal
from graph.sample import Array, LinkBatch

COUNTS = 5  # of `counts`


def signatures(key: jax.Array, slots: int, width: int) -> jax.Array:
    """float32 [slots, width]: rows of an orthogonal matrix, scaled so that E[f_i . f_i] = 1."""
    scale = max(slots / width, 1.0) ** 0.5
    return scale * pencil.projection(key, slots, width)


def overlap(rows: jax.Array, left: jax.Array, right: jax.Array) -> jax.Array:
    """Estimated weight of the nodes in both sets, [B].

    Args:
        rows: signatures [N, F], or [B, N, F] scaled by roots of the nodes' weights.
        left, right: bool [B, N].
    """
    form = "bn,nf->bf" if rows.ndim == 2 else "bn,bnf->bf"
    a, b = (jnp.einsum(form, x.astype(rows.dtype), rows) for x in (left, right))
    return (a * b).sum(axis=-1)


def rings(adj: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
    """Nodes at distance 1 and 2 from each endpoint, neither endpoint among them: for each of s and
    t two masks bool [B, N]."""
    N = adj.shape[1]
    inner = (jnp.arange(N) >= 2)[None]
    out = []
    for root, other in ((0, 1), (1, 0)):
        at = seal.distances(adj, root, avoid=other)
        out.append(((at == 1) & inner, (at == 2) & inner))
    return out


def counts(adj: jax.Array, rows: jax.Array) -> jax.Array:
    """Estimates [B, 5] of the numbers of nodes at distances (1, 1), (1, 2) or (2, 1), (2, 2), and
    of those at distance 1, and 2, of one endpoint that are at neither of the other's.

    Args:
        adj: float [B, N, N]; rows: signatures [N, F].
    """
    (s1, s2), (t1, t2) = rings(adj)
    both = overlap(rows, s1, t1)
    mixed = overlap(rows, s1, t2) + overlap(rows, s2, t1)
    far = overlap(rows, s2, t2)
    ones, twos = (s1.sum(1) + t1.sum(1)), (s2.sum(1) + t2.sum(1))
    alone = ones - 2 * both - mixed, twos - 2 * far - mixed
    return jnp.stack([both, mixed, far, *alone], axis=-1)


class MPLP(nn.Module):
    """Symmetric in the endpoints."""

    cfg: MPLPConfig

    @nn.compact
    def __call__(
        self, batch: LinkBatch, features: Array | None = None, *, deterministic: bool = True
    ) -> jax.Array:
        """Logits float32 [B]; features [B, N, F] of the endpoints, multiplied, are read if given.

        Raises:
            ValueError: more tokens than slots.
        """
        cfg, N = self.cfg, batch.adj_bits.shape[1]
        if N > cfg.slots:
            raise ValueError(f"batch of {N} tokens per link: slots={cfg.slots}")
        shape = (cfg.slots, cfg.signature)
        frozen = self.variable(
            "frozen", "signatures", lambda: signatures(self.make_rng("params"), *shape)
        )
        rows = frozen.value[:N]
        adj, _ = pencil.read(batch)
        parts = [_squash(counts(adj, rows))]
        if cfg.weighted:
            degree = jnp.log1p(adj.sum(axis=-1, keepdims=True))
            hidden = jax.nn.relu(nn.Dense(cfg.width, name="degree")(degree))
            weight = jax.nn.softplus(nn.Dense(1, name="weight")(hidden))
            (s1, _), (t1, _) = rings(adj)
            parts.append(_squash(overlap(rows[None] * jnp.sqrt(weight), s1, t1)[:, None]))
        if features is not None:
            x = nn.Dense(cfg.width, name="features")(jnp.asarray(features)[:, :2])
            parts.append(x[:, 0] * x[:, 1])
        head = layers.MLP(cfg.width, 2, cfg.dropout, name="head")
        return head(jnp.concatenate(parts, axis=-1), deterministic)


def _squash(x: jax.Array) -> jax.Array:
    """Counts of any size, negative estimates too, on a scale an MLP reads."""
    return jnp.sign(x) * jnp.log1p(jnp.abs(x))
