# SPDX-License-Identifier: Apache-2.0
"""The shared transformer: encoder, decoder and encoder-decoder of flax linen modules.

With pre_norm a sublayer f gives x + f(norm(x)) and stacks end with a norm; without, norm(x + f(x)).
Any attention kind, grouped heads, rotary positions or T5's relative bias (one table per stack,
shared by its layers, none on cross attention). Layers are scanned or unrolled, with the same
result; stacked parameters have a leading layer axis. `t5` is a config of T5's conventions.

Dropout is on embeddings, on the hidden units of MLPs and on the output of every sublayer, with the
rng stream "dropout"; attention weights have none, for kernels do not form them [our choice].
"""

import dataclasses
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from attention import kinds, layers, tda
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
    "Norm",
    "RelativeBias",
    "Shared",
    "TransformerConfig",
    "init_cache",
    "t5",
]


class Shared(NamedTuple):
    """What all layers of a stack read; fields that do not apply are None.

    positions: int [B or 1, T]; ids, key_ids: segment ids of tokens and of the keys of self
    attention; offset: int32 [B], slot of the first token in the cache; bias: [1, H, T, S] of self
    attention; memory: [Bm, M, D] encoder states; memory_ids: their segment ids [Bm, M].
    """

    positions: Any = None
    ids: Any = None
    key_ids: Any = None
    offset: Any = None
    bias: Any = None
    memory: Any = None
    memory_ids: Any = None


class DecoderCache(NamedTuple):
    """Keys and values of a decoder. Rows [B] of self attention may be `copies` per memory row [Bm].

    k: [L, V, B, S, KV, hd], v: [L, B, S, KV, hd'], valid: int32 [B, S], length: int32 [] slots in
    use, tokens: int32 [B] tokens read; memory_k: [L, V, Bm, M, KV, hd], memory_v and memory_ids
    [Bm, M]: None until the memory was read, and where there is no cross attention.
    """

    k: jax.Array
    v: jax.Array
    valid: jax.Array
    length: jax.Array
    tokens: jax.Array
    memory_k: Any = None
    memory_v: Any = None
    memory_ids: Any = None

    def take(self, rows: jax.Array) -> "DecoderCache":
        """The cache with self-attention rows picked (beams): row i is the old row rows[i]. The
        memory stays: row i of the result must belong to memory row i // (rows / Bm)."""
        return self._replace(
            k=jnp.take(self.k, rows, axis=2),
            v=jnp.take(self.v, rows, axis=1),
            valid=self.valid[rows],
            tokens=self.tokens[rows],
        )


def _dense(cfg: TransformerConfig, features: int, name: str, shrink: float = 1.0) -> nn.Dense:
    return nn.Dense(
        features,
        use_bias=cfg.bias,
        dtype=jnp.dtype(cfg.dtype),
        kernel_init=nn.initializers.variance_scaling(shrink**2, "fan_in", "normal"),
        name=name,
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
        up = _dense(cfg, cfg.mlp_width, "up")(x)
        if cfg.mlp == "swiglu":
            hidden = layers.swiglu(_dense(cfg, cfg.mlp_width, "gate")(x), up)
        else:
            hidden = layers.gelu(up) if cfg.mlp == "gelu" else jax.nn.relu(up)
        hidden = nn.Dropout(cfg.dropout, deterministic=self.deterministic)(hidden)
        return _dense(cfg, cfg.width, "down")(hidden)

    def _deep(self, x: jax.Array) -> jax.Array:
        cfg = dataclasses.replace(self.cfg, bias=True)
        hidden = jax.nn.relu(_dense(cfg, cfg.mlp_width, "up")(x))
        hidden = _dense(cfg, cfg.mlp_width, "middle")(hidden)
        hidden = nn.Dropout(cfg.dropout, deterministic=self.deterministic)(hidden)
        return _dense(cfg, cfg.width, "down")(jax.nn.relu(hidden))


class Attention(nn.Module):
    """Multi-head attention of any kind: self attention, or cross attention to `Shared.memory`.

    Returns the output [B, T, D] and the keys and values: of self attention with the cache they were
    written to, of cross attention those of the memory. Rows [B] of cross attention may be a
    multiple of memory rows [Bm]: row i reads memory row i // (B / Bm), whose keys are not copied.
    """

    cfg: TransformerConfig
    causal: bool = False
    cross: bool = False

    @nn.compact
    def __call__(
        self, x: jax.Array, shared: Shared, layer: jax.Array, held: tuple[Any, Any] | None = None
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        cfg, views = self.cfg, kinds.views(self.cfg.attention)
        H, KV = cfg.heads // cfg.split, (cfg.kv_heads or cfg.heads) // cfg.split
        hd, v_dim = cfg.head_dim, cfg.head_dim * cfg.split
        shrink = 1.0 if cfg.scale_logits else hd**-0.5
        q = self._heads("q", x, H, views, hd, shrink)
        if not self.cross or shared.memory is not None:
            source = shared.memory if self.cross else x
            k = self._heads("k", source, KV, views, hd)
            v = self._heads("v", source, KV, 1, v_dim)[0]
        elif held is not None:
            k, v = held
        else:
            raise ValueError("memory: cross attention needs it, or a cache that has read it")
        if cfg.position == "rope" and not self.cross:
            frequencies = layers.rope_frequencies(hd, cfg.rope_theta, ntk_factor=cfg.ntk_factor)
            q, k = (layers.rope(z, shared.positions, frequencies) for z in (q, k))
        if held is not None and not self.cross:
            start = shared.offset[0]
            k = jax.lax.dynamic_update_slice_in_dim(held[0], k.astype(held[0].dtype), start, 2)
            v = jax.lax.dynamic_update_slice_in_dim(held[1], v.astype(held[1].dtype), start, 1)
        options: dict[str, Any] = {
            "kind": cfg.attention,
            "knobs": self._knobs(H, layer),
            "implementation": None if cfg.implementation == "auto" else cfg.implementation,
        }
        if self.cross:
            o = self._over_memory(q, k, v, shared, options)
        else:
            o = kinds.attention(
                q,
                k,
                v,
                causal=self.causal,
                q_segment_ids=shared.ids,
                kv_segment_ids=shared.key_ids,
                q_offset=shared.offset,
                bias=shared.bias,
                **options,
            )
        if kinds.needs_output_norm(cfg.attention):
            scale = self.param("out_norm", nn.initializers.ones, (H, v_dim))
            o = tda.output_norm(o, scale, eps=float(cfg.output_norm_eps))
        o = o.reshape(*x.shape[:2], cfg.heads * hd)
        return _dense(cfg, cfg.width, "o")(o), (k, v)

    def _heads(
        self, name: str, x: jax.Array, count: int, views: int, dim: int, shrink: float = 1.0
    ) -> jax.Array:
        """[V, B, T, count, dim]; views of a head lie side by side in the projection."""
        out = _dense(self.cfg, count * views * dim, name, shrink)(x)
        return jnp.moveaxis(out.reshape(*x.shape[:2], count, views, dim), 3, 0)

    def _over_memory(
        self, q: jax.Array, k: jax.Array, v: jax.Array, shared: Shared, options: dict[str, Any]
    ) -> jax.Array:
        """Rows of the same memory become queries of one row: no key is copied per beam."""
        views, B, T, H, hd = q.shape
        rows = k.shape[1]
        if B % rows:
            raise ValueError(f"memory has {rows} rows: must divide the {B} rows of the decoder")
        folded = q.reshape(views, rows, B // rows * T, H, hd)
        ids, memory_ids = shared.ids, shared.memory_ids
        if ids is not None or memory_ids is not None:
            # Padding on either side stays padding; every token sees its whole memory.
            ids = jnp.ones((B, T), jnp.int32) if ids is None else (ids != 0).astype(jnp.int32)
            ids = ids.reshape(rows, B // rows * T)
            ones = jnp.ones((rows, k.shape[2]), jnp.int32)
            memory_ids = ones if memory_ids is None else (memory_ids != 0).astype(jnp.int32)
        o = kinds.attention(
            folded,
            k,
            v,
            causal=False,
            q_segment_ids=ids,
            kv_segment_ids=memory_ids,
            **options,
        )
        return o.reshape(B, T, H, v.shape[3])

    def _knobs(self, heads: int, layer: jax.Array) -> dict[str, Any]:
        """Learned values per head, [heads], of the kind."""
        cfg, out = self.cfg, {}
        if kinds.views(cfg.attention) == 2:

            def start(_: jax.Array) -> jax.Array:
                depth = 0.8 - 0.6 * jnp.exp(-0.3 * layer.astype(jnp.float32))
                value = depth if cfg.lambda_init == "depth" else jnp.full((), 0.5)
                return jnp.broadcast_to(jnp.log(value / (1 - value)), (heads,))

            out["lam"] = jax.nn.sigmoid(self.param("lam", start))
        if cfg.attention == "ssmax":
            # Nakanishi 2025 starts the scale at a constant; 0.43 makes it 1 at 10 keys [our choice]
            out["scale"] = self.param("scale", nn.initializers.constant(0.43), (heads,))
        if cfg.attention in ("tra", "tda"):
            out |= {"beta": cfg.beta, "kappa": cfg.kappa, "p": cfg.power}
            if cfg.learn_beta:
                begin = nn.initializers.constant(math.log(math.expm1(cfg.beta)))
                out["beta"] = jax.nn.softplus(self.param("beta", begin, (heads,)))
        elif not cfg.scale_logits:
            out["logit_scale"] = 1.0
        return out


def _residual(module: Any, name: str, x: jax.Array, sublayer: Any) -> tuple[jax.Array, Any]:
    """x + f(norm(x)) or norm(x + f(x)); sublayer returns (output, extra)."""
    cfg, norm = module.cfg, Norm(module.cfg, name=f"{name}_norm")
    out, extra = sublayer(norm(x) if cfg.pre_norm else x)
    x = x + nn.Dropout(cfg.dropout, deterministic=module.deterministic)(out)
    return (x if cfg.pre_norm else norm(x)), extra


class EncoderBlock(nn.Module):
    """Self attention and MLP; (x, shared, {"layer": index}) to (x, {})."""

    cfg: TransformerConfig
    causal: bool = False
    deterministic: bool = True

    @nn.compact
    def __call__(
        self, x: jax.Array, shared: Shared, own: dict[str, Any]
    ) -> tuple[jax.Array, dict[str, Any]]:
        attend = Attention(self.cfg, self.causal, name="attn")
        x, _ = _residual(self, "attn", x, lambda h: attend(h, shared, own["layer"]))
        mlp = MLP(self.cfg, self.deterministic, name="mlp")
        x, _ = _residual(self, "mlp", x, lambda h: (mlp(h), None))
        return x, {}


class DecoderBlock(nn.Module):
    """Causal self attention, cross attention where asked for, and MLP.

    own: {"layer": index} and, with a cache, {"k", "v", "memory_k", "memory_v"} of this layer; what
    is returned beside x has the same keys, less the index.
    """

    cfg: TransformerConfig
    cross: bool = True
    deterministic: bool = True

    @nn.compact
    def __call__(
        self, x: jax.Array, shared: Shared, own: dict[str, Any]
    ) -> tuple[jax.Array, dict[str, Any]]:
        held, kept = (own["k"], own["v"]) if "k" in own else None, {}
        attend = Attention(self.cfg, causal=True, name="attn")
        x, (k, v) = _residual(self, "attn", x, lambda h: attend(h, shared, own["layer"], held))
        if self.cross:
            memory = (own["memory_k"], own["memory_v"]) if "memory_k" in own else None
            look = Attention(self.cfg, cross=True, name="cross")
            x, found = _residual(self, "cross", x, lambda h: look(h, shared, own["layer"], memory))
            kept = {"memory_k": found[0], "memory_v": found[1]}
        mlp = MLP(self.cfg, self.deterministic, name="mlp")
        x, _ = _residual(self, "mlp", x, lambda h: (mlp(h), None))
        return x, ({"k": k, "v": v, **kept} if held is not None else {})


def _stack(
    module: Any,
    block: type[nn.Module],
    options: dict[str, Any],
    x: jax.Array,
    shared: Shared,
    own: dict[str, Any],
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Runs cfg.layers blocks, scanned or unrolled: x and what the blocks return, stacked."""
    cfg = module.cfg
    if cfg.remat:
        block = nn.remat(block, prevent_cse=not cfg.scan)
    own = {"layer": jnp.arange(cfg.layers), **own}
    if cfg.scan:
        axes: Any = (nn.broadcast, 0)
        scanned = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=axes,
            length=cfg.layers,
        )
        return scanned(cfg, **options, name="blocks")(x, shared, own)
    each = []
    for layer in range(cfg.layers):
        mine = jax.tree.map(lambda leaf: leaf[layer], own)  # noqa: B023
        x, out = block(cfg, **options, name=f"block_{layer}")(x, shared, mine)
        each.append(out)
    return x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)


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
        cfg, T = self.cfg, x.shape[1]
        ids = None if segment_ids is None else segment_ids.astype(jnp.int32)
        bias = None
        if cfg.position == "t5":
            bias = RelativeBias(cfg, not self.causal, name="relative_bias")(T, T)
        if positions is None:
            positions = layers.segment_positions(ids, T)
        drop = nn.Dropout(cfg.dropout, deterministic=deterministic)
        x = drop(x.astype(cfg.dtype))
        shared = Shared(positions=positions, ids=ids, key_ids=ids, bias=bias)
        options = {"causal": self.causal, "deterministic": deterministic}
        x, _ = _stack(self, EncoderBlock, options, x, shared, {})
        return drop(Norm(cfg, name="final_norm")(x)) if cfg.pre_norm else x


class Decoder(nn.Module):
    """Stack of causal blocks over [B, T, D], with cross attention to a memory where `cross`."""

    cfg: TransformerConfig
    cross: bool = True

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        memory: Ids = None,
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
        cfg, (B, T) = self.cfg, x.shape[:2]
        ids: Any = None if segment_ids is None else segment_ids.astype(jnp.int32)
        keys, S, offset, own = ids, T, None, {}
        positions = layers.segment_positions(ids, T)
        if cache is not None:
            ids = jnp.ones((B, T), jnp.int32) if ids is None else ids
            keys = jax.lax.dynamic_update_slice_in_dim(cache.valid, ids, cache.length, 1)
            S, offset = keys.shape[1], jnp.broadcast_to(cache.length, (B,))
            positions = jnp.maximum(cache.tokens[:, None] + jnp.cumsum(ids, axis=1) - 1, 0)
            own = {"k": cache.k, "v": cache.v}
            if memory is None and cache.memory_k is not None:
                memory_ids = cache.memory_ids
                own |= {"memory_k": cache.memory_k, "memory_v": cache.memory_v}
        bias = None
        if cfg.position == "t5":
            start = 0 if cache is None else cache.length
            bias = RelativeBias(cfg, False, name="relative_bias")(T, S, start)
        drop = nn.Dropout(cfg.dropout, deterministic=deterministic)
        x = drop(x.astype(cfg.dtype))
        shared = Shared(positions, ids, keys, offset, bias, memory, memory_ids)
        options = {"cross": self.cross, "deterministic": deterministic}
        x, kept = _stack(self, DecoderBlock, options, x, shared, own)
        x = drop(Norm(cfg, name="final_norm")(x)) if cfg.pre_norm else x
        if cache is not None:
            cache = DecoderCache(
                valid=keys,
                length=cache.length + T,
                tokens=cache.tokens + ids.sum(axis=1),
                memory_ids=memory_ids,
                **kept,
            )
        return x, cache


def init_cache(cfg: TransformerConfig, batch: int, capacity: int) -> DecoderCache:
    """Empty cache of a `Decoder` for `batch` rows of `capacity` slots."""
    kv, views = (cfg.kv_heads or cfg.heads) // cfg.split, kinds.views(cfg.attention)
    k = (cfg.layers, views, batch, capacity, kv, cfg.head_dim)
    v = (cfg.layers, batch, capacity, kv, cfg.head_dim * cfg.split)
    return DecoderCache(
        k=jnp.zeros(k, cfg.dtype),
        v=jnp.zeros(v, cfg.dtype),
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
        self.encoder, self.decoder = Encoder(cfg), Decoder(cfg)
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
        memory: Ids = None,
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
