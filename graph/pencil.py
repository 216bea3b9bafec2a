# SPDX-License-Identifier: Apache-2.0
"""PENCIL: a plain Transformer over the tokens of a link's subgraph (arXiv 2602.01553).

A token is a vector of one-hots, rows of the adjacency and flags times a frozen orthogonal matrix P,
computed here as sums of rows of P; the vector itself is never formed. Layer l:

    Z = BertLayer(H)        post-norm, biases, exact GELU, eps 1e-12
    H = Z + GELU((A~ Z) W + b)

A~ averages each node with its neighbours. Task tokens stand at the last places of a sequence: they
receive in A~ and never send. Order matters, score(s, t) != score(t, s), unless `symmetric`.

Variables are {"params": trained, "frozen": {"projection": float32 [D_in, d]}}: what is not trained
lies outside what the optimizer sees, and both are kept in a checkpoint.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from attention import kinds, layers, stack, tda
from graph import bits
from graph.config import PencilConfig
from graph.sample import Array, LinkBatch

NORM_EPS = 1e-12
ROW_EPS = 1e-8  # beside the sum of a row of the adjacency
small = nn.initializers.normal(0.02)


class Tokens(NamedTuple):
    """What all layers read.

    adj: [B, N, N] in the dtype of activations, zero where a token is not real; valid: bool [B, N];
    seen: int32 [B, S], 1 where a token of the sequence is real; sends, receives: int32 [B, E]
    slots of the edges that are tokens, N where empty; E = 0 without such.
    """

    adj: jax.Array
    valid: jax.Array
    seen: jax.Array
    sends: jax.Array
    receives: jax.Array


def read(batch: LinkBatch, dtype: Any = jnp.float32) -> tuple[jax.Array, jax.Array]:
    """Adjacency [B, N, N] of 0 and 1 and validity bool [B, N]; what empty slots hold is ignored."""
    N = batch.adj_bits.shape[1]
    valid = jnp.arange(N)[None] < jnp.asarray(batch.n)[:, None]
    adj = jnp.asarray(bits.unpack(jnp.asarray(batch.adj_bits), N))
    return (adj & valid[:, :, None] & valid[:, None, :]).astype(dtype), valid


def gather(table: Array, ids: Array) -> jax.Array:
    """Rows [B, N, F] of a table [V, F] for ids int32 [B, N]; zeros where an id is -1."""
    ids = jnp.asarray(ids)
    rows = jnp.asarray(table)[jnp.maximum(ids, 0)]
    return jnp.where(ids[..., None] >= 0, rows, jnp.zeros((), rows.dtype))


def edge_slots(adj: jax.Array, cap: int) -> tuple[jax.Array, jax.Array]:
    """Slots i < j of the first `cap` edges in slot order, two int32 [B, cap]; N where empty."""
    N = adj.shape[-1]
    upper = jnp.triu(adj > 0, 1).reshape(adj.shape[0], N * N)
    at = jax.vmap(lambda row: jnp.nonzero(row, size=cap, fill_value=N * N)[0])(upper)
    at = at.astype(jnp.int32)
    return at // N, jnp.where(at < N * N, at % N, N)


def edges_over(batch: LinkBatch, cap: int) -> jax.Array:
    """Edges of each subgraph that find no token under a cap, int32 [B]: to be counted and said."""
    adj, _ = read(batch)
    return jnp.maximum(adj.sum(axis=(1, 2)).astype(jnp.int32) // 2 - cap, 0)


def propagate(scheme: str, tokens: Tokens, z: jax.Array) -> jax.Array:
    """A~ Z, [B, S, D] of Z [B, S, D], without forming the S x S matrix.

    "adjacency_row": the row of node i is (a_i + e_i) / (its sum + 1e-8); a task token has the row
    of its endpoint; columns of tasks and of empty slots are 0, rows of empty slots too. "full":
    the same for nodes, a token of edge (i, j) has the row of i, the link token that of s.
    "edge_list": nodes keep themselves, tokens of an edge and of the link average its two ends.
    """
    N = tokens.adj.shape[1]
    is_node = tokens.valid[..., None].astype(z.dtype)
    nodes = z[:, :N] * is_node
    if scheme == "edge_list":
        ends = _at(nodes, tokens.sends) + _at(nodes, tokens.receives)
        link = nodes[:, :1] + nodes[:, 1:2]
        both = jnp.concatenate([ends, link], axis=1) / (2 + ROW_EPS)
        return jnp.concatenate([nodes / (1 + ROW_EPS), both], axis=1)
    wide = jnp.promote_types(z.dtype, jnp.float32)
    total = jnp.einsum("bij,bjd->bid", tokens.adj, nodes, preferred_element_type=wide) + nodes
    weight = tokens.adj.astype(wide).sum(axis=-1, keepdims=True) + 1 + ROW_EPS
    mixed = (total / weight * is_node).astype(z.dtype)
    if scheme == "full":
        return jnp.concatenate([mixed, _at(mixed, tokens.sends), mixed[:, :1]], axis=1)
    return jnp.concatenate([mixed, mixed[:, :2]], axis=1)


def _at(x: jax.Array, slots: jax.Array) -> jax.Array:
    """Rows [B, E, D] of x [B, N, D]; zeros at slot N."""
    spare = jnp.pad(x, ((0, 0), (0, 1), (0, 0)))
    return jnp.take_along_axis(spare, slots[..., None], axis=1)


def embed(cfg: PencilConfig, P: jax.Array, batch: LinkBatch) -> tuple[Tokens, jax.Array]:
    """Tokens and their states [B, S, D]: the one-hot vectors times P [D_in, D], by rows of P.

    S is N + 2, or N + E + 1 with tokens of edges; empty places hold zeros.
    """
    P = P.astype(cfg.dtype)
    adj, valid = read(batch, cfg.dtype)
    (B, N), S = valid.shape, cfg.slots
    is_node = valid[..., None].astype(P.dtype)
    first = jnp.broadcast_to(P[None, :N], (B, N, cfg.width))
    flags = P[-2:] if cfg.scheme == "adjacency_row" else P[-3:]
    node, task = (flags[i][None, None] for i in (0, -1))
    empty = jnp.zeros((B, 0), jnp.int32)
    if cfg.scheme == "adjacency_row":
        if cfg.adjacency:
            first = first + adj @ P[S : S + N]
        x = jnp.concatenate([(first + node) * is_node, first[:, :2] + task], axis=1)
        seen = jnp.pad(valid.astype(jnp.int32), ((0, 0), (0, 2)), constant_values=1)
        return Tokens(adj, valid, seen, empty, empty), x
    sends, receives = edge_slots(adj, cfg.edge_tokens)
    if cfg.scheme == "edge_list":
        second = jnp.broadcast_to(P[None, S : S + N], first.shape)
    else:
        first = first + adj @ P[S : S + N]
        second = P[None, 2 * S : 2 * S + N] + adj @ P[3 * S : 3 * S + N]
    is_edge = sends < N
    edges = _at(first, sends) + _at(second, receives)
    edges = (edges + flags[1][None, None]) * is_edge[..., None].astype(P.dtype)
    link = first[:, :1] + second[:, 1:2] + task
    x = jnp.concatenate([(first + node) * is_node, edges, link], axis=1)
    seen = jnp.concatenate([valid, is_edge, jnp.ones((B, 1), bool)], axis=1)
    return Tokens(adj, valid, seen.astype(jnp.int32), sends, receives), x


def dense(features: int, fan_in: int, dtype: Any, name: str) -> nn.Dense:
    """Linear map with weights and biases from U(-1 / sqrt(fan_in), 1 / sqrt(fan_in))."""
    bound = 1 / math.sqrt(fan_in)

    def uniform(key: jax.Array, shape: Any, dtype: Any = jnp.float32, **_: Any) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return nn.Dense(
        features,
        dtype=dtype,
        dot_general=layers.dense_product,
        kernel_init=uniform,
        bias_init=uniform,
        name=name,
    )


class Norm(nn.Module):
    """LayerNorm of [..., D], computed in float32."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return layers.layer_norm(x, scale, bias, NORM_EPS)


class SelfAttention(nn.Module):
    """Every token reads every real token, with any kind of attention: [B, S, D] to [B, S, D].

    Unlike the attention of the shared transformer, weights may be dropped in training, and linear
    maps start as BERT's do here.
    """

    cfg: PencilConfig
    deterministic: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, seen: jax.Array) -> jax.Array:
        cfg, (B, S, D) = self.cfg, x.shape
        H, hd, views = cfg.heads, cfg.width // cfg.heads, kinds.views(cfg.attention)

        def heads(name: str, count: int) -> jax.Array:
            out = dense(count * D, D, cfg.dtype, name)(x)
            return jnp.moveaxis(out.reshape(B, S, H, count, hd), 3, 0)

        q, k, v = heads("q", views), heads("k", views), heads("v", 1)[0]
        options: dict[str, Any] = {
            "kind": cfg.attention,
            "knobs": self._knobs(),
            "causal": False,
            "q_segment_ids": seen,
            "kv_segment_ids": seen,
        }
        if self.is_mutable_collection("maps") and not self.is_initializing():
            self.sow("maps", "attention", kinds.attention_map(q, k, **options))
        if cfg.attention_dropout and not self.deterministic:
            A = kinds.attention_map(q, k, **options)
            A = nn.Dropout(cfg.attention_dropout, deterministic=False)(A)
            o = kinds.apply_map(A, v)
        else:
            o = kinds.attention(q, k, v, **options)
        if kinds.needs_output_norm(cfg.attention):
            o = tda.output_norm(o, self.param("out_norm", nn.initializers.ones, (H, hd)))
        return dense(D, D, cfg.dtype, "o")(o.reshape(B, S, D))

    def _knobs(self) -> dict[str, Any]:
        """Learned values per head that a kind has, starting as in the shared transformer."""
        heads, out = (self.cfg.heads,), {}
        if kinds.views(self.cfg.attention) == 2:
            out["lam"] = jax.nn.sigmoid(self.param("lam", nn.initializers.zeros, heads))
        if self.cfg.attention == "ssmax":
            out["scale"] = self.param("scale", nn.initializers.constant(0.43), heads)
        return out


class Layer(nn.Module):
    """One layer; (x, tokens, None) to (x, None), as a scan wants it."""

    cfg: PencilConfig
    deterministic: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, tokens: Tokens, _: None) -> tuple[jax.Array, None]:
        cfg = self.cfg
        drop = nn.Dropout(cfg.dropout, deterministic=self.deterministic)
        o = SelfAttention(cfg, self.deterministic, name="attn")(x, tokens.seen)
        x = Norm(name="attn_norm")(x + drop(o))
        hidden = dense(cfg.mlp_width, cfg.width, cfg.dtype, "up")(x)
        hidden = layers.gelu(hidden, approximate=False)
        o = dense(cfg.width, cfg.mlp_width, cfg.dtype, "down")(hidden)
        z = Norm(name="mlp_norm")(x + drop(o))
        if not cfg.propagation:
            return z, None
        mixed = propagate(cfg.scheme, tokens, z)
        propagate_to = nn.Dense(
            cfg.width,
            dtype=cfg.dtype,
            dot_general=layers.dense_product,
            kernel_init=small,
            name="propagate",
        )
        mixed = propagate_to(mixed)
        return z + layers.gelu(mixed, approximate=False), None


class Pencil(nn.Module):
    """Link predictor: `model.apply(variables, batch, features)` gives logits, float32 [B]."""

    cfg: PencilConfig

    @nn.compact
    def __call__(
        self, batch: LinkBatch, features: Array | None = None, *, deterministic: bool = True
    ) -> jax.Array:
        """Logits float32 [B].

        Args:
            batch: of N <= slots tokens per link; ids and dropped are not read.
            features: float [B, N, F] of the tokens (`gather`), where fusion is not "none".
            deterministic: no dropout; else the rng stream "dropout" is needed.

        Raises:
            ValueError: N > slots; features where there is no fusion, or none where there is.
        """
        cfg, N = self.cfg, batch.adj_bits.shape[1]
        if not 2 <= N <= cfg.slots:
            raise ValueError(f"batch of {N} tokens per link: slots={cfg.slots} allow 2 to that")
        if (features is None) != (cfg.fusion == "none"):
            got = "none" if features is None else "some"
            raise ValueError(f"features: {got} given, but fusion={cfg.fusion!r}")
        if cfg.symmetric:
            other = swap_roots(batch)
            batch = jax.tree.map(lambda a, b: jnp.concatenate([jnp.asarray(a), b]), batch, other)
            if features is not None:
                features = jnp.concatenate([features, _swap(jnp.asarray(features))])
        shape = (cfg.input_width, cfg.width)
        P: Any = self.variable(
            "frozen", "projection", lambda: projection(self.make_rng("params"), *shape)
        )
        tokens, x = embed(cfg, P.value, batch)
        fused = None if features is None else self._fuse(jnp.asarray(features), tokens)
        if fused is not None and cfg.fusion == "early":
            x = x + fused
        x = self._layers(x, tokens, deterministic)
        if fused is not None and cfg.fusion == "late":
            x = x + fused
        tasks = 2 if cfg.scheme == "adjacency_row" else 1
        states = x[:, -tasks:].reshape(len(x), -1).astype(jnp.float32)
        logits = nn.Dense(1, kernel_init=small, name="head")(states)[:, 0]
        return logits.reshape(2, -1).mean(axis=0) if cfg.symmetric else logits

    def _fuse(self, features: jax.Array, tokens: Tokens) -> jax.Array:
        """GELU of a linear map of the features of every token, [B, S, D]. With tokens of edges the
        features of both ends lie side by side, those of nodes in front of zeros."""
        cfg = self.cfg
        is_node = tokens.valid[..., None]
        features = jnp.where(is_node, features, jnp.zeros((), features.dtype)).astype(cfg.dtype)
        if cfg.scheme == "adjacency_row":
            rows = jnp.concatenate([features, features[:, :2]], axis=1)
        else:
            alone = jnp.concatenate([features, jnp.zeros_like(features)], axis=-1)
            ends = [_at(features, tokens.sends), _at(features, tokens.receives)]
            link = jnp.concatenate([features[:, :1], features[:, 1:2]], axis=-1)
            rows = jnp.concatenate([alone, jnp.concatenate(ends, axis=-1), link], axis=1)
        out = nn.Dense(cfg.width, dtype=cfg.dtype, kernel_init=small, name="features")(rows)
        return layers.gelu(out, approximate=False)

    def _layers(self, x: jax.Array, tokens: Tokens, deterministic: bool) -> jax.Array:
        cfg = self.cfg
        layer = Layer
        layers_at_once = stack.unroll(cfg.scan, cfg.layers)
        if cfg.remat:
            layer = nn.remat(layer, prevent_cse=layers_at_once > 1)
        axes: Any = (nn.broadcast, nn.broadcast)
        all_layers = nn.scan(
            layer,
            variable_axes={"params": 0, "maps": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=axes,
            length=cfg.layers,
            unroll=layers_at_once,
        )
        return all_layers(cfg, deterministic, name="layers")(x, tokens, None)[0]


def attention_of(
    model: Pencil, variables: Any, batch: LinkBatch, features: jax.Array | None = None
) -> jax.Array:
    """What the last tokens of a link (its two tasks) read of every token in the last layer, mean
    over heads, float32 [B, 2, S]; of absolute values, for signed kinds of attention."""
    _, variables_with_maps = model.apply(variables, batch, features, mutable=["maps"])
    maps = jax.tree.leaves(variables_with_maps["maps"])[-1]
    return jnp.abs(maps[-1].astype(jnp.float32))[:, :, -2:].mean(axis=1)


def projection(key: jax.Array, rows: int, columns: int) -> jax.Array:
    """Orthogonal matrix float32 [rows, columns], the Q of a Gaussian matrix: orthonormal rows where
    rows <= columns, else orthonormal columns."""
    return nn.initializers.orthogonal()(key, (rows, columns), jnp.float32)


def _swap(x: jax.Array) -> jax.Array:
    """Entries 0 and 1 of axis 1 exchanged."""
    return jnp.concatenate([x[:, 1:2], x[:, :1], x[:, 2:]], axis=1)


def _reorder(batch: LinkBatch, order: jax.Array) -> LinkBatch:
    """Token i of the result is token order[b, i]."""
    ids = jnp.asarray(batch.ids)
    adj = bits.unpack(jnp.asarray(batch.adj_bits), ids.shape[1])
    adj = jnp.take_along_axis(adj, order[:, :, None], axis=1)
    adj = jnp.take_along_axis(adj, order[:, None, :], axis=2)
    ids = jnp.take_along_axis(ids, order, axis=1)
    return batch._replace(adj_bits=bits.pack(adj), ids=ids)


def swap_roots(batch: LinkBatch) -> LinkBatch:
    """The same subgraphs of links (t, s)."""
    B, N = batch.ids.shape
    return _reorder(batch, _swap(jnp.broadcast_to(jnp.arange(N)[None], (B, N))))


def permute_slots(batch: LinkBatch, keys: jax.Array) -> LinkBatch:
    """The same subgraphs with the slots of all tokens but the roots drawn anew, uniformly.

    Args:
        keys: typed keys [B], one per link, so that a link's draw depends on no other.
    """
    (B, N), n = batch.ids.shape, jnp.asarray(batch.n)[:, None]
    slot = jnp.broadcast_to(jnp.arange(N)[None], (B, N))
    draw = jax.vmap(lambda key: jax.random.uniform(key, (N,)))(keys)
    place = jnp.where(slot < 2, slot - 3.0, jnp.where(slot < n, draw, 2.0 + slot))
    return _reorder(batch, jnp.argsort(place, axis=1))


def mean_score(
    score: Callable[[LinkBatch], jax.Array], batch: LinkBatch, keys: jax.Array
) -> jax.Array:
    """Mean logit [B] over R draws of the slots, one draw at a time.

    Args:
        score: logits [B] of a batch, with any features gathered by the ids of that batch.
        keys: typed keys [R, B].
    """
    return jax.lax.map(lambda draw: score(permute_slots(batch, draw)), keys).mean(axis=0)
