# SPDX-License-Identifier: Apache-2.0
"""What the heads of a language model do on some text: `attention.survivors` for every layer."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from attention import masks, survivors
from attention.lm import model
from attention.lm.config import LMConfig

REFERENCES = ("first_token_uniform", "entropy_uniform")  # of the mask alone: no layer has its own


def stretched(cfg: LMConfig, factor: int | float) -> LMConfig:
    """The config with NTK-aware rotary frequencies for contexts `factor` times as long."""
    return dataclasses.replace(cfg, ntk_factor=cfg.ntk_factor * factor)


def tile(length: int) -> int:
    """Side of the tiles that `live_tiles` counts: the kernels' 128, smaller for short contexts so
    that a map has some: length / 8, at least 16 [our choice]."""
    return max(16, min(128, length // 8))


def statistics(params: model.Params, cfg: LMConfig, ids: jax.Array) -> dict[str, jax.Array]:
    """Mean statistics of the attention maps over rows of text, one row at a time.

    Args:
        ids: int [B, T].

    Returns: {name: float32 [L]} with the names of `survivors.statistics`, and "entropy_uniform", of
        a map that spreads every row evenly. A head is dead if it has no survivor in any row.
    """
    length = ids.shape[1]
    mask = masks.visible(
        length, length, causal=True, q_segment_ids=None, kv_segment_ids=None, q_offset=None
    )[:, None]

    def layer_statistics(a: jax.Array) -> tuple[dict[str, jax.Array], jax.Array]:
        side = tile(length)
        values = survivors.statistics(a, mask, block_q=side, block_kv=side)
        return values, survivors.dead_heads(a, mask)

    def row_statistics(row: jax.Array) -> tuple[dict[str, jax.Array], jax.Array]:
        maps = model.forward(params, cfg, row[None], taps={"attn"}).taps["attn"]
        return jax.vmap(layer_statistics)(maps)

    by_row, dead = jax.lax.map(row_statistics, ids)
    out = {name: value.mean(axis=0) for name, value in by_row.items()}
    out["dead_heads"] = dead.all(axis=0).mean(axis=-1, dtype=jnp.float32)
    keys = jnp.arange(1, length + 1, dtype=jnp.float32)
    out["entropy_uniform"] = jnp.full((cfg.layers,), jnp.log(keys).mean())
    return out


def named(prefix: str, values: Mapping[str, Any], *, layers: bool) -> dict[str, Any]:
    """{prefix/zeros: mean over layers, ...} and, if `layers`, {prefix/zeros/layer1: ...}.

    What belongs in one plot shares a name: first_token, first_token/pooled, first_token/uniform.
    """
    out: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}/" + re.sub("_(pooled|uniform)$", r"/\1", name)
        out[key] = value.mean()
        if layers and name not in REFERENCES:
            out |= {f"{key}/layer{i + 1}": x for i, x in enumerate(value)}
    return out
