# SPDX-License-Identifier: Apache-2.0
"""Codes that learn nothing: random ones and random hyperplanes (baselines of TIGER)."""

import jax
import jax.numpy as jnp
import numpy as np

from rec.sid.config import SIDConfig


def moments(x: jax.Array, on: bool) -> dict:
    """{"mean", "std"} [D] of the rows of x, or 0 and 1 where `on` is False.

    A feature that hardly varies keeps std 1, so it is not blown up.
    """
    if not on:
        return {"mean": jnp.zeros(x.shape[1]), "std": jnp.ones(x.shape[1])}
    std = jnp.std(x, axis=0)
    return {"mean": jnp.mean(x, axis=0), "std": jnp.where(std > 1e-6, std, 1.0)}


def standardize(params: dict, x: jax.Array) -> jax.Array:
    """(x - mean) / std with the moments of the training rows."""
    return (x - params["mean"][None, :]) / params["std"][None, :]


def init_random(key: jax.Array, x: jax.Array, cfg: SIDConfig) -> dict:
    """Odd multipliers uint32 [L, D] and offsets uint32 [L] of the hashes."""
    multiplier_key, offset_key = jax.random.split(key)
    multipliers = jax.random.bits(multiplier_key, (cfg.levels, x.shape[1]), jnp.uint32) | 1
    return {"multipliers": multipliers, "offsets": jax.random.bits(offset_key, (cfg.levels,))}


def encode_random(params: dict, x: jax.Array, cfg: SIDConfig) -> jax.Array:
    """One keyed hash of the row's bits per level: [N, D] -> int32 [N, L].

    A pure function of the row [our choice]: rows keep their codes in any order and number, equal
    rows share them, and similar rows have nothing in common.
    """
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    bits = bits ^ (bits >> 15)  # low bits of the mantissa are often all that differs

    def hash_level(multipliers: jax.Array, offset: jax.Array) -> jax.Array:
        mixed = jnp.sum(bits * multipliers[None, :], axis=-1, dtype=jnp.uint32) + offset
        for multiplier in (0x7FEB352D, 0x846CA68B):
            mixed = (mixed ^ (mixed >> 16)) * jnp.uint32(multiplier)
        return ((mixed ^ (mixed >> 16)) % jnp.uint32(cfg.codes)).astype(jnp.int32)

    return jax.vmap(hash_level, out_axes=1)(params["multipliers"], params["offsets"])


def init_lsh(key: jax.Array, x: jax.Array, cfg: SIDConfig) -> dict:
    """Normals of log2(W) random hyperplanes per level, float32 [L, log2 W, D], and moments."""
    planes = (cfg.levels, int(cfg.codes).bit_length() - 1, x.shape[1])
    return {"planes": jax.random.normal(key, planes), **moments(x, cfg.standardise)}


def encode_lsh(params: dict, x: jax.Array) -> jax.Array:
    """Bit j of digit l is the side of hyperplane (l, j) (Charikar 2002): [N, D] -> int32 [N, L]."""
    precision = jax.lax.Precision.HIGHEST
    sides = jnp.einsum("nd,lbd->nlb", standardize(params, x), params["planes"], precision=precision)
    powers = jnp.asarray(2 ** np.arange(sides.shape[-1]), jnp.int32)
    return jnp.sum((sides > 0) * powers[None, None, :], axis=-1).astype(jnp.int32)
