# SPDX-License-Identifier: Apache-2.0
"""Multi-head attention of the shared transformer, as a flax linen module of any kind."""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from attention import kinds, layers, tda
from attention.transformer_config import TransformerConfig

KeysAndValues = tuple[jax.Array, jax.Array]


class Shared(NamedTuple):
    """What all layers of a stack read; fields that do not apply are None."""

    positions: Any = None  # int [B or 1, T], of the rotation
    ids: Any = None  # int32 [B, T], segment ids of tokens
    key_ids: Any = None  # int32 [B, S], segment ids of the keys of self attention
    offset: Any = None  # int32 [B], slot of the first token in the cache
    bias: Any = None  # [1, H, T, S], of self attention
    memory: Any = None  # [Bm, M, D], encoder states
    memory_ids: Any = None  # int [Bm, M], segment ids of the memory


def dense(cfg: TransformerConfig, features: int, name: str, shrink: float = 1.0) -> nn.Dense:
    """Linear map as the config wants it; `shrink` scales its initial weights."""
    return nn.Dense(
        features,
        use_bias=cfg.bias,
        dtype=jnp.dtype(cfg.dtype),
        dot_general=layers.dense_product,
        kernel_init=nn.initializers.variance_scaling(shrink**2, "fan_in", "normal"),
        name=name,
    )


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
        self, x: jax.Array, shared: Shared, layer: jax.Array, past: KeysAndValues | None = None
    ) -> tuple[jax.Array, KeysAndValues]:
        """Args: layer: its index; past: keys and values to write to, or those of a memory."""
        cfg = self.cfg
        num_heads = cfg.heads // cfg.split
        shrink = 1.0 if cfg.scale_logits else cfg.head_dim**-0.5
        num_views = kinds.views(cfg.attention)
        q = self._project("q", x, (num_heads, num_views, cfg.head_dim), shrink)
        k, v = self._keys_and_values(x, shared, past)
        if cfg.position == "rope" and not self.cross:
            frequencies = layers.rope_frequencies(
                cfg.head_dim, cfg.rope_theta, ntk_factor=cfg.ntk_factor
            )
            # Keys are rotated before they are cached: their positions do not change later.
            q = layers.rope(q, shared.positions, frequencies)
            k = layers.rope(k, shared.positions, frequencies)
        if past is not None and not self.cross:
            k = write(past[0], k, shared.offset[0], axis=2)
            v = write(past[1], v, shared.offset[0], axis=1)
        options: dict[str, Any] = {
            "kind": cfg.attention,
            "knobs": self._knobs(num_heads, layer),
            "implementation": None if cfg.implementation == "auto" else cfg.implementation,
        }
        attend = self._attend_to_memory if self.cross else self._attend_to_itself
        o = attend(q, k, v, shared, options)
        if kinds.needs_output_norm(cfg.attention):
            scale = self.param("out_norm", nn.initializers.ones, o.shape[2:])
            o = tda.output_norm(o, scale, eps=float(cfg.output_norm_eps))
        o = o.reshape(*x.shape[:2], cfg.heads * cfg.head_dim)
        return dense(cfg, cfg.width, "o", cfg.output_shrink)(o), (k, v)

    def _project(
        self, name: str, x: jax.Array, shape: tuple[int, int, int], shrink: float = 1.0
    ) -> jax.Array:
        """[V, B, T, heads, dim] for shape (heads, V, dim); views of a head lie side by side."""
        out = dense(self.cfg, math.prod(shape), name, shrink)(x)
        return jnp.moveaxis(out.reshape(*x.shape[:2], *shape), 3, 0)

    def _keys_and_values(
        self, x: jax.Array, shared: Shared, past: KeysAndValues | None
    ) -> KeysAndValues:
        """Those of x, or of the memory: projected in the call that brings it, afterwards `past`."""
        cfg = self.cfg
        if self.cross and shared.memory is None:
            if past is None:
                raise ValueError("memory: cross attention needs it, or a cache that has read it")
            return past
        source = shared.memory if self.cross else x
        num_heads = (cfg.kv_heads or cfg.heads) // cfg.split
        k = self._project("k", source, (num_heads, kinds.views(cfg.attention), cfg.head_dim))
        v = self._project("v", source, (num_heads, 1, cfg.head_dim * cfg.split))[0]
        return k, v

    def _attend_to_itself(
        self, q: jax.Array, k: jax.Array, v: jax.Array, shared: Shared, options: dict[str, Any]
    ) -> jax.Array:
        return kinds.attention(
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

    def _attend_to_memory(
        self, q: jax.Array, k: jax.Array, v: jax.Array, shared: Shared, options: dict[str, Any]
    ) -> jax.Array:
        """Rows of the same memory become queries of one row: no key is copied per beam."""
        views, B, T, H, hd = q.shape
        rows = k.shape[1]
        if B % rows:
            raise ValueError(f"memory has {rows} rows: must divide the {B} rows of the decoder")
        folded = q.reshape(views, rows, B // rows * T, H, hd)
        ids = shared.ids
        memory_ids = shared.memory_ids
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
        """Knobs of the kind: numbers, and learned values per head, [heads]."""
        cfg = self.cfg
        knobs: dict[str, Any] = {}
        if kinds.views(cfg.attention) == 2:

            def initial_logit(_: jax.Array) -> jax.Array:
                by_depth = 0.8 - 0.6 * jnp.exp(-0.3 * layer.astype(jnp.float32))
                lam = by_depth if cfg.lambda_init == "depth" else jnp.full((), 0.5)
                return jnp.broadcast_to(jnp.log(lam / (1 - lam)), (heads,))

            knobs["lam"] = jax.nn.sigmoid(self.param("lam", initial_logit))
        if cfg.attention == "ssmax":
            # Nakanishi 2025 starts the scale at a constant; 0.43 makes it 1 at 10 keys [our choice]
            knobs["scale"] = self.param("scale", nn.initializers.constant(0.43), (heads,))
        if cfg.attention in ("tra", "tda"):
            knobs |= {"beta": cfg.beta, "kappa": cfg.kappa, "p": cfg.power}
            if cfg.learn_beta:
                # The inverse of softplus, so that it starts at cfg.beta.
                initial_beta = nn.initializers.constant(math.log(math.expm1(cfg.beta)))
                knobs["beta"] = jax.nn.softplus(self.param("beta", initial_beta, (heads,)))
        elif not cfg.scale_logits:
            knobs["logit_scale"] = 1.0
        return knobs


def write(slots: jax.Array, new: jax.Array, start: jax.Array, *, axis: int) -> jax.Array:
    """The cached `slots` with `new` at `start` along an axis."""
    return jax.lax.dynamic_update_slice_in_dim(slots, new.astype(slots.dtype), start, axis)
