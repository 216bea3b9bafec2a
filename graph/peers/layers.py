# SPDX-License-Identifier: Apache-2.0
"""Graph convolutions, the same for one large sparse graph and for a batch of small dense ones."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from attention.layers import along_last
from graph import tuples

SLOPE = 0.2  # of the leaky ReLU before GAT's softmax
MASKED = -1e30


class Sparse(NamedTuple):
    """Edges of one graph of V nodes: senders, receivers int32 [E]; weights float32 [E], 0 or 1.

    States are [V, ..].
    """

    senders: jax.Array
    receivers: jax.Array
    weights: jax.Array
    num_nodes: int

    def total(self, x: jax.Array) -> jax.Array:
        """Sum of x over neighbours, [V, D]."""
        rows = x[self.senders] * self.weights[:, None].astype(x.dtype)
        return tuples.segment_sum(rows, self.receivers, self.num_nodes)

    def degree(self) -> jax.Array:
        """[V, 1]."""
        return tuples.segment_sum(self.weights, self.receivers, self.num_nodes)[:, None]

    def attend(self, receive: jax.Array, send: jax.Array, x: jax.Array) -> jax.Array:
        """Sum of x [V, H, D] over neighbours and the node itself, weighed by a softmax of
        leaky_relu(receive_i + send_j), both [V, H]."""
        self_loops = jnp.arange(self.num_nodes, dtype=self.senders.dtype)
        senders = jnp.concatenate([self.senders, self_loops])
        receivers = jnp.concatenate([self.receivers, self_loops])
        there = jnp.concatenate([self.weights, jnp.ones(self.num_nodes)]) > 0
        scores = jax.nn.leaky_relu(receive[receivers] + send[senders], SLOPE)
        scores = jnp.where(there[:, None], scores, MASKED)
        A = tuples.segment_softmax(scores, receivers, self.num_nodes)
        return tuples.segment_sum(x[senders] * A[..., None], receivers, self.num_nodes)


class Dense(NamedTuple):
    """adj: float [B, N, N] of 0 and 1, 0 in rows and columns of empty slots; states [B, N, ..]."""

    adj: jax.Array

    def total(self, x: jax.Array) -> jax.Array:
        """Sum of x over neighbours, [B, N, D]."""
        return self.adj @ x

    def degree(self) -> jax.Array:
        """[B, N, 1]."""
        return self.adj.sum(axis=-1, keepdims=True)

    def attend(self, receive: jax.Array, send: jax.Array, x: jax.Array) -> jax.Array:
        """As `Sparse.attend`: receive, send [B, N, H], x [B, N, H, D]."""
        scores = jax.nn.leaky_relu(receive[:, :, None] + send[:, None], SLOPE)
        there = (self.adj > 0) | jnp.eye(self.adj.shape[-1], dtype=bool)[None]
        A = jax.nn.softmax(jnp.where(there[..., None], scores, MASKED), axis=2)
        return jnp.einsum("bijh,bjhd->bihd", A, x)


Graph = Sparse | Dense


def sparse(graph: tuples.GraphsTuple) -> Sparse:
    """Reads a GraphsTuple with weights as edges and an array as nodes."""
    ends = jnp.asarray(graph.senders), jnp.asarray(graph.receivers)
    return Sparse(*ends, jnp.asarray(graph.edges), graph.nodes.shape[0])


class GCN(nn.Module):
    """D^-1/2 (A + I) D^-1/2 X W + b (Kipf and Welling 2017); D counts the node itself."""

    width: int
    bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, graph: Graph) -> jax.Array:
        h = nn.Dense(self.width, use_bias=False, name="linear")(x)
        scale = jax.lax.rsqrt(graph.degree() + 1.0)
        out = scale * (graph.total(scale * h) + scale * h)
        if not self.bias:
            return out
        b = self.param("bias", nn.initializers.zeros, (self.width,))
        return out + along_last(b, out)


class SAGE(nn.Module):
    """X W + (mean of neighbours) U + b (Hamilton et al. 2017); the mean of none is 0."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array, graph: Graph) -> jax.Array:
        mean = graph.total(x) / jnp.maximum(graph.degree(), 1.0)
        near = nn.Dense(self.width, use_bias=False, name="neighbours")(mean)
        return nn.Dense(self.width, name="own")(x) + near


class GAT(nn.Module):
    """Heads of attention over neighbours and the node itself, side by side (Velickovic et al.
    2018)."""

    width: int
    heads: int

    @nn.compact
    def __call__(self, x: jax.Array, graph: Graph) -> jax.Array:
        shape = self.heads, self.width // self.heads
        h = nn.Dense(self.width, use_bias=False, name="linear")(x)
        h = h.reshape(*x.shape[:-1], *shape)
        init = nn.initializers.lecun_normal(in_axis=-1, out_axis=-2)
        receive, send = (
            jnp.einsum("...hd,hd->...h", h, self.param(name, init, shape))
            for name in ("receive", "send")
        )
        out = graph.attend(receive, send, h).reshape(*x.shape[:-1], self.width)
        b = self.param("bias", nn.initializers.zeros, (self.width,))
        return out + along_last(b, out)


def convolution(kind: str, width: int, heads: int, name: str) -> nn.Module:
    """The convolution of a kind of `graph.config.CONVOLUTIONS`."""
    if kind == "gat":
        return GAT(width, heads, name=name)
    return {"gcn": GCN, "sage": SAGE}[kind](width, name=name)


class Encoder(nn.Module):
    """`layers` convolutions with ReLU and dropout between them, none after the last; `residual`
    adds a linear map of a layer's input to its output."""

    kind: str
    width: int
    layers: int
    heads: int = 1
    residual: bool = False
    dropout: int | float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, graph: Graph, deterministic: bool = True) -> jax.Array:
        for index in range(self.layers):
            if index:
                x = nn.Dropout(self.dropout, deterministic=deterministic)(jax.nn.relu(x))
            convolve: Any = convolution(self.kind, self.width, self.heads, f"conv_{index}")
            h = convolve(x, graph)
            x = h + nn.Dense(self.width, name=f"residual_{index}")(x) if self.residual else h
        return x


class MLP(nn.Module):
    """[B, F] to logits float32 [B]: `layers` linear maps, ReLU and dropout between them."""

    width: int
    layers: int = 2
    dropout: int | float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool = True) -> jax.Array:
        for index in range(self.layers - 1):
            x = jax.nn.relu(nn.Dense(self.width, name=f"linear_{index}")(x))
            x = nn.Dropout(self.dropout, deterministic=deterministic)(x)
        return nn.Dense(1, name="out")(x)[:, 0].astype(jnp.float32)
