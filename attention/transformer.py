# SPDX-License-Identifier: Apache-2.0
"""The shared transformer: encoder, decoder and encoder-decoder of flax linen modules.

With pre_norm a sublayer f gives x + f(norm(x)) and stacks end with a norm; without, norm(x + f(x)).
Any attention kind, grouped heads, rotary positions or T5's relative bias (one table per stack,
shared by its layers, none on cross attention). Layers are scanned or unrolled, with the same
result; stacked parameters have a leading layer axis. `t5` is a config of T5's conventions.

Dropout is on embeddings, on the hidden units of MLPs, on the output of every sublayer and after
the last norm, or on fewer of them (`dropout_sites`), with the rng stream "dropout"; attention
weights have none, for kernels do not form them [our choice]. Masks are those of
`attention.dropout`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from attention import kinds, layers, stack
from attention.dropout import Dropout
from attention.multi_head import Attention, Shared, dense, write
from attention.transformer_config import TransformerConfig, t5

Ids = jax.Array | None


__all__ = [
    "MLP",
    "Attention",
    "Decoder",
    "DecoderBlock",
    "DecoderCache",
    "Encoder",
    "EncoderBlock",
    "EncoderDecoder",
    "LayerCache",
    "LayerInput",
    "Norm",
    "RelativeBias",
    "Shared",
    "TransformerConfig",
    "init_cache",
    "t5",
]


class LayerCache(NamedTuple):
    """Keys and values of one layer, or of all with a leading layer axis; None if never read."""

    k: Any = None  # [V, B, S, KV, hd], of self attention
    v: Any = None  # [B, S, KV, hd']
    memory_k: Any = None  # [V, Bm, M, KV, hd], of cross attention
    memory_v: Any = None  # [Bm, M, KV, hd']


class LayerInput(NamedTuple):
    """What belongs to one layer, or to all with a leading layer axis."""

    index: jax.Array  # int32 [], from 0
    past: LayerCache  # what was read before; all None without a cache


class DecoderCache(NamedTuple):
    """Keys and values of a decoder; several rows [B] may read the same memory row [Bm]."""

    k: jax.Array  # [L, V, B, S, KV, hd]
    v: jax.Array  # [L, B, S, KV, hd']
    valid: jax.Array  # int32 [B, S], 1 for a token, 0 for padding and free slots
    length: jax.Array  # int32 [], slots in use
    tokens: jax.Array  # int32 [B], tokens read
    # None until the memory was read, and where there is no cross attention:
    memory_k: Any = None  # [L, V, Bm, M, KV, hd]
    memory_v: Any = None  # [L, Bm, M, KV, hd']
    memory_ids: Any = None  # int [Bm, M]

    def take(self, rows: jax.Array) -> "DecoderCache":
        """The cache with self-attention rows picked (beams): row i is the old row rows[i]. The
        memory stays: row i of the result must belong to memory row i // (rows / Bm)."""
        return self._replace(
            k=jnp.take(self.k, rows, axis=2),
            v=jnp.take(self.v, rows, axis=1),
            valid=self.valid[rows],
            tokens=self.tokens[rows],
        )


class Norm(nn.Module):
    """RMSNorm or LayerNorm of [..., D]."""

    cfg: TransformerConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        if self.cfg.norm == "rms":
            return layers.rms_norm(x, scale, self.cfg.norm_eps)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return layers.layer_norm(x, scale, bias, self.cfg.norm_eps)


class MLP(nn.Module):
    """[..., D] to [..., D]: down(act(up x)), for swiglu down(silu(gate x) * up x), for deep_relu
    down(relu(middle(relu(up x)))), whose three projections have biases (Ju et al. 2025)."""

    cfg: TransformerConfig
    deterministic: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        cfg = self.cfg
        if cfg.mlp == "deep_relu":
            return self._deep(x)
        up = dense(cfg, cfg.mlp_width, "up")(x)
        if cfg.mlp == "swiglu":
            hidden = layers.swiglu(dense(cfg, cfg.mlp_width, "gate")(x), up)
        else:
            hidden = layers.gelu(up) if cfg.mlp == "gelu" else jax.nn.relu(up)
        hidden = Dropout(cfg.hidden_dropout, self.deterministic)(hidden)
        return dense(cfg, cfg.width, "down", cfg.output_shrink)(hidden)

    def _deep(self, x: jax.Array) -> jax.Array:
        cfg = dataclasses.replace(self.cfg, bias=True)
        hidden = jax.nn.relu(dense(cfg, cfg.mlp_width, "up")(x))
        hidden = dense(cfg, cfg.mlp_width, "middle")(hidden)
        hidden = Dropout(cfg.hidden_dropout, self.deterministic)(hidden)
        return dense(cfg, cfg.width, "down", cfg.output_shrink)(jax.nn.relu(hidden))


def _residual(
    module: Any, name: str, x: jax.Array, sublayer: Callable[[jax.Array], tuple[jax.Array, Any]]
) -> tuple[jax.Array, Any]:
    """x + f(norm(x)) or norm(x + f(x)), and what `sublayer` returns beside f."""
    cfg = module.cfg
    norm = Norm(cfg, name=f"{name}_norm")
    out, extra = sublayer(norm(x) if cfg.pre_norm else x)
    x = x + Dropout(cfg.dropout, module.deterministic)(out)
    return (x if cfg.pre_norm else norm(x)), extra


class EncoderBlock(nn.Module):
    """Self attention and MLP; (x, shared, layer) to (x, None), as a scan wants it."""

    cfg: TransformerConfig
    causal: bool = False
    deterministic: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, shared: Shared, layer: LayerInput) -> tuple[jax.Array, None]:
        attend = Attention(self.cfg, self.causal, name="attn")
        x, _ = _residual(self, "attn", x, lambda h: attend(h, shared, layer.index))
        mlp = MLP(self.cfg, self.deterministic, name="mlp")
        x, _ = _residual(self, "mlp", x, lambda h: (mlp(h), None))
        return x, None


class DecoderBlock(nn.Module):
    """Causal self attention, cross attention where `cross`, and MLP.

    (x, shared, layer) to x and, with a cache, the layer's `LayerCache` with these tokens written.
    """

    cfg: TransformerConfig
    cross: bool = True
    deterministic: bool = True

    @nn.compact
    def __call__(
        self, x: jax.Array, shared: Shared, layer: LayerInput
    ) -> tuple[jax.Array, LayerCache | None]:
        past = layer.past
        has_cache = past.k is not None
        attend = Attention(self.cfg, causal=True, name="attn")
        slots = (past.k, past.v) if has_cache else None
        x, (k, v) = _residual(self, "attn", x, lambda h: attend(h, shared, layer.index, slots))
        written = LayerCache(k, v)
        if self.cross:
            attend_to_memory = Attention(self.cfg, cross=True, name="cross")
            read = None if past.memory_k is None else (past.memory_k, past.memory_v)
            x, (memory_k, memory_v) = _residual(
                self, "cross", x, lambda h: attend_to_memory(h, shared, layer.index, read)
            )
            written = LayerCache(k, v, memory_k, memory_v)
        mlp = MLP(self.cfg, self.deterministic, name="mlp")
        x, _ = _residual(self, "mlp", x, lambda h: (mlp(h), None))
        # Without a cache nothing is returned: a scan would stack keys and values that nobody reads.
        return x, written if has_cache else None


def _run_blocks(
    module: Any,
    block: type[nn.Module],
    options: dict[str, Any],
    x: jax.Array,
    shared: Shared,
    past: LayerCache,
) -> tuple[jax.Array, Any]:
    """Runs cfg.layers blocks, scanned or unrolled: x and what the blocks return, stacked."""
    cfg = module.cfg
    layers_at_once = stack.unroll(cfg.scan, cfg.layers)
    if cfg.remat:
        # A loop keeps the recomputation from being merged with the forward pass by itself.
        block = nn.remat(block, prevent_cse=layers_at_once > 1)
    axes: Any = (nn.broadcast, 0)
    blocks = nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=axes,
        length=cfg.layers,
        unroll=layers_at_once,
    )
    per_layer = LayerInput(jnp.arange(cfg.layers), past)
    return blocks(cfg, **options, name="blocks")(x, shared, per_layer)


def _final_norm(cfg: TransformerConfig, x: jax.Array, deterministic: bool) -> jax.Array:
    """The norm after the last block of a module that is being called, and its dropout."""
    return Dropout(cfg.hidden_dropout, deterministic)(Norm(cfg, name="final_norm")(x))


class RelativeBias(nn.Module):
    """T5's learned bias by distance bucket, [1, H, T, S]."""

    cfg: TransformerConfig
    bidirectional: bool

    @nn.compact
    def __call__(self, num_queries: int, num_keys: int, q_offset: Any = 0) -> jax.Array:
        cfg = self.cfg
        init = nn.initializers.normal(cfg.width**-0.5)
        table = self.param("table", init, (cfg.num_buckets, cfg.heads // cfg.split))
        buckets = layers.relative_buckets(
            num_queries,
            num_keys,
            bidirectional=self.bidirectional,
            num_buckets=cfg.num_buckets,
            max_distance=cfg.max_distance,
            q_offset=q_offset,
        )
        return jnp.moveaxis(table[buckets], 2, 0)[None]


class Encoder(nn.Module):
    """Stack of self-attention blocks over [B, T, D]; bidirectional unless causal."""

    cfg: TransformerConfig
    causal: bool = False

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        segment_ids: Ids = None,
        positions: Ids = None,
        *,
        deterministic: bool = True,
    ) -> jax.Array:
        """States [B, T, D] after the last norm.

        Args:
            segment_ids: int [B, T], 0 = padding; None is one segment. A bool mask does as well.
            positions: int [B, T] of the rotation; None counts real tokens of the segment.
            deterministic: no dropout; else the rng stream "dropout" is needed.
        """
        cfg = self.cfg
        T = x.shape[1]
        ids = None if segment_ids is None else segment_ids.astype(jnp.int32)
        bias = None
        if cfg.position == "t5":
            bias = RelativeBias(cfg, not self.causal, name="relative_bias")(T, T)
        if positions is None:
            positions = layers.segment_positions(ids, T)
        x = Dropout(cfg.dropout, deterministic)(x.astype(cfg.dtype))
        shared = Shared(positions=positions, ids=ids, key_ids=ids, bias=bias)
        options = {"causal": self.causal, "deterministic": deterministic}
        x, _ = _run_blocks(self, EncoderBlock, options, x, shared, LayerCache())
        return _final_norm(cfg, x, deterministic) if cfg.pre_norm else x


class Decoder(nn.Module):
    """Stack of causal blocks over [B, T, D], with cross attention to a memory where `cross`."""

    cfg: TransformerConfig
    cross: bool = True

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        memory: jax.Array | None = None,
        memory_ids: Ids = None,
        segment_ids: Ids = None,
        *,
        cache: DecoderCache | None = None,
        deterministic: bool = True,
    ) -> tuple[jax.Array, DecoderCache | None]:
        """States [B, T, D] after the last norm, and the cache extended by T slots.

        Args:
            memory: [Bm, M, D] encoder states, B a multiple of Bm; with a cache only in the call
                that reads it, afterwards its keys and values come from the cache.
            memory_ids: int [Bm, M], 0 = padding.
            segment_ids: int [B, T], 0 = padding; with a cache 0 or 1.
            cache: of `init_cache`. length + T must stay within its capacity.
            deterministic: no dropout; else the rng stream "dropout" is needed.
        """
        cfg = self.cfg
        T = x.shape[1]
        ids = None if segment_ids is None else segment_ids.astype(jnp.int32)
        if cache is None:
            positions = layers.segment_positions(ids, T)
            shared = Shared(positions, ids, ids, memory=memory, memory_ids=memory_ids)
            past = LayerCache()
        else:
            ids = jnp.ones(x.shape[:2], jnp.int32) if ids is None else ids
            shared, past = _continue_from(cache, ids, memory, memory_ids)
        if cfg.position == "t5":
            num_keys = T if cache is None else cache.valid.shape[1]
            start = 0 if cache is None else cache.length
            relative_bias = RelativeBias(cfg, bidirectional=False, name="relative_bias")
            shared = shared._replace(bias=relative_bias(T, num_keys, start))
        x = Dropout(cfg.dropout, deterministic)(x.astype(cfg.dtype))
        options = {"cross": self.cross, "deterministic": deterministic}
        x, written = _run_blocks(self, DecoderBlock, options, x, shared, past)
        x = _final_norm(cfg, x, deterministic) if cfg.pre_norm else x
        return x, None if cache is None else _extend(cache, shared, written)


def _continue_from(
    cache: DecoderCache, ids: jax.Array, memory: jax.Array | None, memory_ids: Ids
) -> tuple[Shared, LayerCache]:
    """What layers read where tokens with `ids` int32 [B, T] follow those of a cache."""
    past = LayerCache(cache.k, cache.v)
    if memory is None and cache.memory_k is not None:
        past = LayerCache(cache.k, cache.v, cache.memory_k, cache.memory_v)
        memory_ids = cache.memory_ids
    shared = Shared(
        # Padding takes a slot but no position: real tokens are counted on from those of the cache.
        positions=jnp.maximum(cache.tokens[:, None] + jnp.cumsum(ids, axis=1) - 1, 0),
        ids=ids,
        key_ids=write(cache.valid, ids, cache.length, axis=1),
        offset=jnp.broadcast_to(cache.length, ids.shape[:1]),
        memory=memory,
        memory_ids=memory_ids,
    )
    return shared, past


def _extend(cache: DecoderCache, shared: Shared, written: LayerCache) -> DecoderCache:
    """The cache after its tokens were read: `written` has the keys and values of all layers."""
    return DecoderCache(
        valid=shared.key_ids,
        length=cache.length + shared.ids.shape[1],
        tokens=cache.tokens + shared.ids.sum(axis=1),
        memory_ids=shared.memory_ids,
        **written._asdict(),
    )


def init_cache(cfg: TransformerConfig, batch: int, capacity: int) -> DecoderCache:
    """Empty cache of a `Decoder` for `batch` rows of `capacity` slots."""
    num_views = kinds.views(cfg.attention)
    slots = (batch, capacity, (cfg.kv_heads or cfg.heads) // cfg.split)
    return DecoderCache(
        k=jnp.zeros((cfg.layers, num_views, *slots, cfg.head_dim), cfg.dtype),
        v=jnp.zeros((cfg.layers, *slots, cfg.head_dim * cfg.split), cfg.dtype),
        valid=jnp.zeros((batch, capacity), jnp.int32),
        length=jnp.zeros((), jnp.int32),
        tokens=jnp.zeros((batch,), jnp.int32),
    )


class EncoderDecoder(nn.Module):
    """Token ids in, logits out, one embedding for both sides (T5)."""

    cfg: TransformerConfig

    def setup(self) -> None:
        cfg = self.cfg
        if cfg.vocab_size < 1:
            raise ValueError(f"vocab_size={cfg.vocab_size}: an encoder-decoder needs at least 1")
        init = nn.initializers.normal(cfg.embed_std)
        self.embed = nn.Embed(cfg.vocab_size, cfg.width, embedding_init=init, dtype=cfg.dtype)
        self.encoder = Encoder(cfg)
        self.decoder = Decoder(cfg)
        if not cfg.tied:
            self.head = nn.Dense(cfg.vocab_size, use_bias=False, dtype=cfg.dtype)

    def __call__(
        self,
        source: jax.Array,
        target: jax.Array,
        source_ids: Ids = None,
        target_ids: Ids = None,
        *,
        deterministic: bool = True,
    ) -> jax.Array:
        """Logits of the token after each target token, float32 [B, T, V].

        Args:
            source: int [B, M]; target: int [B, T], starting with the start token.
            source_ids, target_ids: segment ids or masks, 0 = padding.
        """
        memory = self.encode(source, source_ids, deterministic=deterministic)
        x, _ = self.decoder(
            self.embed(target), memory, source_ids, target_ids, deterministic=deterministic
        )
        return self.logits(x)

    def encode(
        self, source: jax.Array, source_ids: Ids = None, *, deterministic: bool = True
    ) -> jax.Array:
        """Encoder states [B, M, D]."""
        return self.encoder(self.embed(source), source_ids, deterministic=deterministic)

    def decode(
        self,
        target: jax.Array,
        cache: DecoderCache,
        memory: jax.Array | None = None,
        source_ids: Ids = None,
        target_ids: Ids = None,
    ) -> tuple[jax.Array, DecoderCache]:
        """Logits of the next tokens and the cache; memory only in the first call."""
        x, extended = self.decoder(self.embed(target), memory, source_ids, target_ids, cache=cache)
        assert extended is not None
        return self.logits(x), extended

    def logits(self, x: jax.Array) -> jax.Array:
        """float32 [..., V] of decoder states."""
        if not self.cfg.tied:
            return self.head(x).astype(jnp.float32)
        scaled = x * jnp.asarray(self.cfg.width**-0.5, x.dtype)
        return self.embed.attend(scaled).astype(jnp.float32)
