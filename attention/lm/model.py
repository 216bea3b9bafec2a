# SPDX-License-Identifier: Apache-2.0
"""The language model: init(key, cfg) -> params and forward(params, cfg, ids) -> LMOut.

Params are a plain dict; leaves under "blocks" are stacked over layers [L, ...] and scanned:

    embed [V, D]    final_norm/scale [D]    head [V, D] unless tied
    blocks/attn_norm/scale [L, D]           blocks/mlp_norm/scale [L, D]      (+ bias for "layer")
    blocks/attn/q [L, D, H * views * hd]    blocks/attn/{k, v} [L, D, KV * (views) * hd]
    blocks/attn/o [L, H * hd, D]            blocks/attn/{q,k,v}_bias, {q,k}_norm [L, hd]
    blocks/attn/lam, beta, scale [L, H]     blocks/attn/out_norm [L, H, hd]   as the kind wants
    blocks/mlp/{gate, up} [L, D, F]         blocks/mlp/down [L, F, D]

Matrices are stored [in, out]. Two-view kinds keep the views of a head side by side, so that a split
over heads keeps both on one device.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from attention import kinds, layers, stack, tda
from attention.lm.config import LMConfig

TAPS = frozenset({"resid", "mlp_hidden", "mlp_out", "attn_out", "attn"})
Params = dict[str, Any]
Adapters = Mapping[str, Mapping[str, jax.Array]]
SSMAX_INIT = 0.43  # start of ssmax's scale per head [our choice], so that scale * log(10) = 1


class Cache(NamedTuple):
    """Keys and values of what was read so far; every row writes at the same slots."""

    k: Any  # [L, views, B, S, KV, hd], rotated
    v: Any  # [L, B, S, KV, hd]
    valid: Any  # int32 [B, S], 1 for a token, 0 for padding and free slots
    length: Any  # int32 [], slots in use
    tokens: Any  # int32 [B], tokens read


class Rewire(NamedTuple):
    """Copies residual states between positions before every block l with lo <= l < hi.

    All sources are read before anything is written, so chains do not cascade. Valid destinations of
    a row must differ.
    """

    dst: jax.Array  # int [B, R], positions in this call's tokens
    src: jax.Array  # int [B, R], as dst
    valid: jax.Array  # bool [B, R]; others do nothing
    lo: int | jax.Array  # first block
    hi: int | jax.Array  # one after the last block


class LMOut(NamedTuple):
    """What `forward` gives."""

    logits: jax.Array  # float32 [B, T, V], of the next token
    taps: dict[str, jax.Array]  # by the names that were asked for
    cache: Any  # the given `Cache`, extended; None without one


def init(key: jax.Array, cfg: LMConfig, dtype: Any = jnp.float32) -> Params:
    """Random parameters in `dtype`: normal weights, norms 1, biases 0."""
    L = cfg.layers
    D = cfg.width
    F = cfg.mlp_width
    q_width, k_width = (n * cfg.head_dim * cfg.views for n in (cfg.heads, cfg.kv_heads))
    v_width = cfg.kv_heads * cfg.head_dim
    inner = cfg.heads * cfg.head_dim
    keys = iter(jax.random.split(key, 16))

    def normal(*shape: int, shrink: float = 1.0) -> jax.Array:
        return cfg.init_std * shrink * jax.random.normal(next(keys), shape, dtype)

    def norm(*lead: int) -> dict[str, jax.Array]:
        out = {"scale": jnp.ones((*lead, D), dtype)}
        return out | {"bias": jnp.zeros((*lead, D), dtype)} if cfg.norm == "layer" else out

    residual = 1 / math.sqrt(2 * L)
    attn = {
        "q": normal(L, D, q_width),
        "k": normal(L, D, k_width),
        "v": normal(L, D, v_width),
        "o": normal(L, inner, D, shrink=residual),
    }
    if cfg.qkv_bias:
        widths = {"q_bias": q_width, "k_bias": k_width, "v_bias": v_width}
        attn |= {name: jnp.zeros((L, width), dtype) for name, width in widths.items()}
    if cfg.qk_norm:
        attn |= {name: jnp.ones((L, cfg.head_dim), dtype) for name in ("q_norm", "k_norm")}
    attn |= _init_knobs(cfg, dtype)
    mlp = {"up": normal(L, D, F), "down": normal(L, F, D, shrink=residual)}
    if cfg.mlp == "swiglu":
        mlp["gate"] = normal(L, D, F)
    params = {
        "embed": normal(cfg.vocab_size, D),
        "blocks": {"attn_norm": norm(L), "attn": attn, "mlp_norm": norm(L), "mlp": mlp},
        "final_norm": norm(),
    }
    if not cfg.tied:
        params["head"] = normal(cfg.vocab_size, D)
    return params


def _init_knobs(cfg: LMConfig, dtype: Any) -> dict[str, jax.Array]:
    """Learned values per head of the kind: what the knobs of `attention.kinds` are made from."""
    shape = (cfg.layers, cfg.heads)
    out = {}
    if cfg.views == 2:
        depth = np.arange(cfg.layers, dtype=np.float64)[:, None]
        by_depth = 0.8 - 0.6 * np.exp(-0.3 * depth)
        lam = by_depth if cfg.lambda_init == "depth" else np.full_like(depth, 0.5)
        # The inverse of the sigmoid in `knobs`.
        out["lam"] = jnp.asarray(np.broadcast_to(np.log(lam / (1 - lam)), shape), dtype)
    if cfg.learn_beta:
        out["beta"] = jnp.full(shape, math.log(math.expm1(cfg.beta)), dtype)
    if cfg.attention == "ssmax":
        out["scale"] = jnp.full(shape, SSMAX_INIT, dtype)
    if kinds.needs_output_norm(cfg.attention):
        out["out_norm"] = jnp.ones((*shape, cfg.head_dim), dtype)
    return out


def knobs(cfg: LMConfig, attn: Mapping[str, jax.Array]) -> dict[str, Any]:
    """Knobs of `attention.kinds` from the parameters of one layer's attention."""
    out: dict[str, Any] = {}
    if "lam" in attn:
        out["lam"] = jax.nn.sigmoid(attn["lam"].astype(jnp.float32))
    if "scale" in attn:
        out["scale"] = attn["scale"].astype(jnp.float32)
    if cfg.attention in ("tra", "tda"):
        beta = jax.nn.softplus(attn["beta"].astype(jnp.float32)) if "beta" in attn else cfg.beta
        out |= {"beta": beta, "kappa": cfg.kappa, "p": cfg.power}
    return out


def init_cache(cfg: LMConfig, batch: int, capacity: int) -> Cache:
    """Empty cache of `capacity` slots a row, in the dtype of activations."""
    shape = (batch, capacity, cfg.kv_heads, cfg.head_dim)
    return Cache(
        k=jnp.zeros((cfg.layers, cfg.views, *shape), cfg.dtype),
        v=jnp.zeros((cfg.layers, *shape), cfg.dtype),
        valid=jnp.zeros((batch, capacity), jnp.int32),
        length=jnp.zeros((), jnp.int32),
        tokens=jnp.zeros((batch,), jnp.int32),
    )


def take_rows(cache: Cache, rows: jax.Array) -> Cache:
    """The cache with rows picked: row i of the result is the old row rows[i]."""
    return cache._replace(
        k=jnp.take(cache.k, rows, axis=2),
        v=jnp.take(cache.v, rows, axis=1),
        valid=cache.valid[rows],
        tokens=cache.tokens[rows],
    )


def forward(
    params: Params,
    cfg: LMConfig,
    ids: jax.Array | np.ndarray,
    *,
    mask: jax.Array | np.ndarray | None = None,
    positions: jax.Array | np.ndarray | None = None,
    segment_ids: jax.Array | np.ndarray | None = None,
    rewire: Rewire | None = None,
    taps: frozenset[str] | set[str] = frozenset(),
    lora: Adapters | None = None,
    lora_scale: int | float | jax.Array = 1.0,
    cache: Cache | None = None,
) -> LMOut:
    """Logits of the next token at every position.

    Args:
        ids: int [B, T].
        mask: bool [B, T], False for padding, on either side; None is all True.
        positions: int [B, T] for the rotation; None counts real tokens (of each segment, and on
            from what the cache has read).
        segment_ids: int [B, T] of packed texts, each a run of equal ids, 0 for padding; not with a
            cache or a mask.
        rewire: hidden states to copy.
        taps: names to return: "resid" [L + 1, B, T, D] (0: embeddings, l: after block l, before the
            final norm), "mlp_hidden" [L, B, T, F] (before down), "mlp_out" and "attn_out"
            [L, B, T, D], "attn" [L, B, H, T, S] float32 (forces the dense path; signed for some
            kinds). Names that are not asked for cost nothing.
        lora: adapters of `attention.lm.lora`, {matrix: {"a": [L, in, r], "b": [L, r, out]}}.
        lora_scale: alpha / r.
        cache: keys and values to continue from; T slots are appended to every row. The caller sees
            to it that length + T <= capacity: beyond, the last slots are overwritten.

    Raises:
        ValueError: an argument has a wrong shape or name, or two that exclude each other are given.
    """
    _check(ids, mask, positions, segment_ids, taps, cache)
    B, T = ids.shape
    ids = jnp.asarray(ids)
    params = jax.tree.map(jnp.asarray, params)  # as a checkpoint reads back: NumPy arrays
    segments: Any = _segments(mask, segment_ids, cache, B, T)
    if positions is None:
        positions = _positions(segments, segment_ids is not None, cache, T)
    dtype = jnp.dtype(cfg.dtype)
    context = _Context(
        cfg=cfg,
        positions=jnp.asarray(positions),
        segments=segments,
        valid=None
        if cache is None
        else jax.lax.dynamic_update_slice_in_dim(cache.valid, segments, cache.length, axis=1),
        start=None if cache is None else cache.length,
        taps=frozenset(taps),
        rewire=rewire,
        lora_scale=lora_scale,
    )
    per_layer = {
        "params": params["blocks"],
        "lora": dict(lora or {}),
        "layer": jnp.arange(cfg.layers),
    }
    embedded = params["embed"][ids].astype(dtype)
    slots = None if cache is None else (cache.k, cache.v)
    (x, slots), ys = _run_blocks(context, (embedded, slots), per_layer)
    tapped = {name: ys[name] for name in taps}
    if "resid" in taps:
        tapped["resid"] = jnp.concatenate([embedded[None], tapped["resid"]])
    x = _norm(cfg, params["final_norm"], x)
    logits = layers.class_logits(x, params["embed" if cfg.tied else "head"])
    if cache is not None:
        cache = Cache(
            k=slots[0],
            v=slots[1],
            valid=context.valid,
            length=cache.length + T,
            tokens=cache.tokens + segments.sum(axis=1),
        )
    return LMOut(logits, tapped, cache)


class _Context(NamedTuple):
    """What every block reads."""

    cfg: LMConfig
    positions: jax.Array  # int [B or 1, T], of the rotation
    segments: jax.Array | None  # int32 [B, T], 0 for padding
    valid: Any  # int32 [B, S], segments of cached keys, these tokens among them; None without cache
    start: jax.Array | None  # int32 [], slot of the first of these tokens
    taps: frozenset[str]
    rewire: Rewire | None
    lora_scale: Any


# States [B, T, D], and keys and values of all layers as a cache has them; None without a cache.
# They are carried from layer to layer, and not stacked anew by the scan: a token is then written
# where it belongs, and nothing else of the cache is copied.
_Carry = tuple[jax.Array, Any]


def _run_blocks(
    context: _Context, carry: _Carry, per_layer: dict[str, Any]
) -> tuple[_Carry, dict[str, jax.Array]]:
    """All blocks, scanned or unrolled: what the last leaves, and their taps, stacked.

    Args:
        per_layer: parameters, adapters and index of the layers, stacked.
    """
    cfg = context.cfg
    layers_at_once = stack.unroll(cfg.scan, cfg.layers)

    def block(carry: _Carry, xs: dict[str, Any]) -> tuple[_Carry, dict[str, Any]]:
        return _block(context, carry, xs)

    if cfg.remat:
        # A scan keeps the recomputation from being merged with the forward pass by itself.
        block = jax.checkpoint(block, prevent_cse=layers_at_once > 1)
    return jax.lax.scan(block, carry, per_layer, unroll=layers_at_once)


def _block(
    context: _Context, carry: _Carry, xs: dict[str, Any]
) -> tuple[_Carry, dict[str, jax.Array]]:
    """One layer: (carry, its parameters, adapters and index) -> (carry, its taps)."""
    x, slots = carry
    cfg = context.cfg
    taps = context.taps
    if context.rewire is not None:
        x = _apply_rewire(context.rewire, xs["layer"], x)
    params = xs["params"]
    out, slots, ys = _attention(context, _norm(cfg, params["attn_norm"], x), slots, xs)
    if "attn_out" in taps:
        ys["attn_out"] = out
    x = x + out
    h = _norm(cfg, params["mlp_norm"], x)
    up = _linear(context, xs, "mlp", "up", h)
    if cfg.mlp == "swiglu":
        hidden = layers.swiglu(_linear(context, xs, "mlp", "gate", h), up)
    else:
        hidden = layers.gelu(up) if cfg.mlp == "gelu" else jax.nn.relu(up)
    out = _linear(context, xs, "mlp", "down", hidden)
    if "mlp_hidden" in taps:
        ys["mlp_hidden"] = hidden
    if "mlp_out" in taps:
        ys["mlp_out"] = out
    x = x + out
    if "resid" in taps:
        ys["resid"] = x
    return (x, slots), ys


def _attention(
    context: _Context, h: jax.Array, slots: Any, xs: dict[str, Any]
) -> tuple[jax.Array, Any, dict[str, jax.Array]]:
    """Output [B, T, D] of the block's attention to h; the cache; its map where it is wanted."""
    cfg = context.cfg
    attn = xs["params"]["attn"]
    ys = {}
    B, T, _ = h.shape

    def heads(name: str, count: int, views: int) -> jax.Array:
        out = _linear(context, xs, "attn", name, h)
        if f"{name}_bias" in attn:
            out = out + attn[f"{name}_bias"].astype(out.dtype)[None, None]
        return jnp.moveaxis(out.reshape(B, T, count, views, cfg.head_dim), 3, 0)

    q = heads("q", cfg.heads, cfg.views)
    k = heads("k", cfg.kv_heads, cfg.views)
    v = heads("v", cfg.kv_heads, 1)[0]
    if cfg.qk_norm:
        q = layers.rms_norm(q, attn["q_norm"], cfg.norm_eps)
        k = layers.rms_norm(k, attn["k_norm"], cfg.norm_eps)
    frequencies = layers.rope_frequencies(
        cfg.head_dim, cfg.rope_theta, ntk_factor=cfg.ntk_factor, llama3=_llama3(cfg)
    )
    q = layers.rope(q, context.positions, frequencies)
    k = layers.rope(k, context.positions, frequencies)
    masking: dict[str, Any] = {
        "q_segment_ids": context.segments,
        "kv_segment_ids": context.segments,
        "causal": True,
    }
    if context.start is not None:
        k_slots = _write_layer(slots[0], k, xs["layer"], context.start, axis=2)
        v_slots = _write_layer(slots[1], v, xs["layer"], context.start, axis=1)
        slots = (k_slots, v_slots)
        k, v = (jax.lax.dynamic_index_in_dim(x, xs["layer"], keepdims=False) for x in slots)
        masking["kv_segment_ids"] = context.valid
        masking["q_offset"] = jnp.broadcast_to(context.start, (B,))
    options: dict[str, Any] = {"kind": cfg.attention, "knobs": knobs(cfg, attn), **masking}
    if "attn" in context.taps:
        ys["attn"] = kinds.attention_map(q, k, **options)
        o = kinds.apply_map(ys["attn"], v)
    else:
        implementation = None if cfg.implementation == "auto" else cfg.implementation
        o = kinds.attention(q, k, v, **options, implementation=implementation)
    if "out_norm" in attn:
        o = tda.output_norm(o, attn["out_norm"], eps=float(cfg.output_norm_eps))
    o = o.reshape(B, T, cfg.heads * cfg.head_dim)
    return _linear(context, xs, "attn", "o", o), slots, ys


def _llama3(cfg: LMConfig) -> layers.Llama3Scaling | None:
    if cfg.llama3_factor == 1:
        return None
    return layers.Llama3Scaling(
        cfg.llama3_factor, cfg.llama3_low, cfg.llama3_high, cfg.llama3_original
    )


def _linear(
    context: _Context, xs: dict[str, Any], group: str, name: str, x: jax.Array
) -> jax.Array:
    """x W, plus the low-rank path of an adapter."""
    out = layers.matmul(x, xs["params"][group][name].astype(x.dtype))
    if name in xs["lora"]:
        a, b = (xs["lora"][name][side].astype(x.dtype) for side in ("a", "b"))
        out = out + jnp.asarray(context.lora_scale, x.dtype) * ((x @ a) @ b)
    return out


def _norm(cfg: LMConfig, params: Mapping[str, jax.Array], x: jax.Array) -> jax.Array:
    if cfg.norm == "layer":
        return layers.layer_norm(x, params["scale"], params["bias"], cfg.norm_eps)
    return layers.rms_norm(x, params["scale"], cfg.norm_eps)


def _write_layer(
    into: jax.Array, new: jax.Array, layer: jax.Array, start: jax.Array, axis: int
) -> jax.Array:
    """`into` [L, ...] with `new` [...] of one layer, from `start` on along an axis of `new`."""
    corner: list[Any] = [layer] + [0] * new.ndim
    corner[axis + 1] = start
    return jax.lax.dynamic_update_slice(into, new.astype(into.dtype)[None], corner)


def _apply_rewire(rewire: Rewire, layer: jax.Array, x: jax.Array) -> jax.Array:
    T = x.shape[1]
    moved = jnp.take_along_axis(x, rewire.src[:, :, None], axis=1)
    is_layer_rewired = (layer >= rewire.lo) & (layer < rewire.hi)
    # Slots that do nothing write outside and are dropped: several may name the same position.
    dst = jnp.where(rewire.valid & is_layer_rewired, rewire.dst, T)
    return jax.vmap(lambda row, d, m: row.at[d].set(m, mode="drop"))(x, dst, moved)


def _segments(
    mask: Any, segment_ids: Any, cache: Cache | None, batch: int, length: int
) -> jax.Array | None:
    """int32 [B, T], 0 for padding; None where nothing needs masking."""
    if segment_ids is not None:
        return jnp.asarray(segment_ids, jnp.int32)
    if mask is not None:
        return jnp.asarray(mask).astype(jnp.int32)
    return None if cache is None else jnp.ones((batch, length), jnp.int32)


def _positions(segments: jax.Array | None, packed: bool, cache: Cache | None, T: int) -> jax.Array:
    """Real tokens of the same text before each, int32 [B or 1, T]."""
    if segments is None or packed:
        return layers.segment_positions(segments, T)
    first = 0 if cache is None else cache.tokens[:, None]
    return jnp.maximum(first + jnp.cumsum(segments, axis=1) - 1, 0)


def _check(
    ids: Any, mask: Any, positions: Any, segment_ids: Any, taps: Any, cache: Cache | None
) -> None:
    """ValueError naming the first argument that is not allowed, and what is."""
    if ids.ndim != 2 or not jnp.issubdtype(ids.dtype, jnp.integer):
        raise ValueError(f"ids is {ids.dtype} of shape {ids.shape}: must be integers [B, T]")
    given = {"mask": mask, "positions": positions, "segment_ids": segment_ids}
    for name, value in given.items():
        if value is not None and value.shape != ids.shape:
            raise ValueError(f"{name} has shape {value.shape}: must be {ids.shape}, as ids")
    if segment_ids is not None and (mask is not None or cache is not None):
        raise ValueError("segment_ids: not together with mask (use id 0) or cache")
    unknown = set(taps) - TAPS
    if unknown:
        raise ValueError(f"taps {sorted(unknown)}: must be among {', '.join(sorted(TAPS))}")
    if cache is not None and cache.valid.shape[0] != ids.shape[0]:
        raise ValueError(f"cache has {cache.valid.shape[0]} rows: ids has {ids.shape[0]}")
    if cache is not None and cache.valid.shape[1] < ids.shape[1]:
        raise ValueError(f"cache has {cache.valid.shape[1]} slots: ids has {ids.shape[1]} tokens")


def partition_rules() -> tuple[tuple[str, PartitionSpec], ...]:
    """(regex over "/"-joined leaf paths, spec) on mesh axes ("data", "model"), first match wins.

    Embeddings are split over vocabulary and width, matrices over heads or hidden units (model) and
    the other side (data); norms and knobs are replicated. Paths may have a prefix, so optimizer
    moments are split like their parameters.
    """
    into = PartitionSpec(None, "data", "model")
    out = PartitionSpec(None, "model", "data")
    return (
        (r"(.*/)?(embed|head)", PartitionSpec("model", "data")),
        (r"(.*/)?blocks/attn/[qkv]", into),
        (r"(.*/)?blocks/mlp/(gate|up)", into),
        (r"(.*/)?blocks/(attn/o|mlp/down)", out),
        (r"(.*/)?blocks/attn/[qkv]_bias", PartitionSpec(None, "model")),
        (r"(.*/)?blocks/.*", PartitionSpec()),
        (r"(.*/)?final_norm/.*", PartitionSpec()),
    )


def cache_rules(cfg: LMConfig, model_devices: int) -> Cache:
    """PartitionSpec of every leaf of a cache; heads are split where kv_heads divides evenly."""
    heads = "model" if cfg.kv_heads % model_devices == 0 else None
    return Cache(
        k=PartitionSpec(None, None, "data", None, heads, None),
        v=PartitionSpec(None, "data", None, heads, None),
        valid=PartitionSpec("data", None),
        length=PartitionSpec(),
        tokens=PartitionSpec("data"),
    )
