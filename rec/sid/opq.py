# SPDX-License-Identifier: Apache-2.0
"""Optimized product quantization (Ge et al. 2013): a rotation and one k-means per part.

Its digits have no order: every digit describes its own D / L coordinates of the rotated row, all
of them one after the other. Features are padded with zeros to a multiple of L.
"""

import jax
import jax.numpy as jnp

from rec.sid import kmeans
from rec.sid.config import SIDConfig


def _parts(centered: jax.Array, rotation: jax.Array, levels: int) -> jax.Array:
    """Rotated rows in parts: [N, D] -> [L, N, P]."""
    padded = jnp.pad(centered, ((0, 0), (0, rotation.shape[0] - centered.shape[1])))
    rotated = jnp.matmul(padded, rotation, precision=jax.lax.Precision.HIGHEST)
    return jnp.swapaxes(rotated.reshape(centered.shape[0], levels, -1), 0, 1)


def init(key: jax.Array, x: jax.Array, cfg: SIDConfig) -> dict:
    """{"rotation": [P L, P L], "codebook": [L, W, P], "mean": [D]} after `cfg.lloyd` alternations.

    One alternation is a k-means iteration of every part, then the rotation that brings rows
    closest to their code vectors (orthogonal Procrustes by SVD); neither raises the error. The
    start is a random rotation [our choice] that spreads the variance over the parts.
    """
    width = -(-x.shape[1] // cfg.levels) * cfg.levels
    rotation_key, row_key, seed_key = jax.random.split(key, 3)
    mean = jnp.mean(x, axis=0)
    x = x - mean[None, :]
    rotation = jnp.linalg.qr(jax.random.normal(rotation_key, (width, width)))[0]
    rows = jax.random.permutation(row_key, x.shape[0])[: min(cfg.init_rows, x.shape[0])]
    keys = jax.random.split(seed_key, cfg.levels)
    seeds = _parts(x[rows], rotation, cfg.levels)
    codebook = jax.lax.map(
        lambda pair: kmeans.plus_plus(pair[0], pair[1], cfg.codes), (keys, seeds)
    )
    padded = jnp.pad(x, ((0, 0), (0, width - x.shape[1])))

    def alternate(params: dict, _: None) -> tuple[dict, None]:
        parts = _parts(x, params["rotation"], cfg.levels)
        codebook = jax.lax.map(lambda pair: kmeans.lloyd_step(*pair), (parts, params["codebook"]))
        params = {**params, "codebook": codebook}
        quantized = _concatenated(params, _nearest(params, x))
        cross = jnp.matmul(padded.T, quantized, precision=jax.lax.Precision.HIGHEST)
        left, right = jnp.linalg.svd(cross)[::2]
        return {**params, "rotation": left @ right}, None

    params = {"rotation": rotation, "codebook": codebook}
    return {**jax.lax.scan(alternate, params, None, length=cfg.lloyd)[0], "mean": mean}


def _nearest(params: dict, centered: jax.Array) -> jax.Array:
    parts = _parts(centered, params["rotation"], params["codebook"].shape[0])
    return jax.lax.map(lambda pair: kmeans.nearest(*pair), (parts, params["codebook"])).T


def encode(params: dict, x: jax.Array) -> jax.Array:
    """[N, D] -> int32 [N, L]."""
    return _nearest(params, x - params["mean"][None, :])


def _concatenated(params: dict, codes: jax.Array) -> jax.Array:
    """Code vectors side by side, zeros for missing digits: int32 [N, K] -> [N, P L]."""
    levels, _, part = params["codebook"].shape
    chosen = [params["codebook"][i][codes[:, i]] for i in range(codes.shape[1])]
    chosen += [jnp.zeros((codes.shape[0], part))] * (levels - codes.shape[1])
    return jnp.concatenate(chosen, axis=-1)


def decode(params: dict, codes: jax.Array) -> jax.Array:
    """int32 [N, K], K <= L digits -> [N, D]."""
    precision = jax.lax.Precision.HIGHEST
    back = jnp.matmul(_concatenated(params, codes), params["rotation"].T, precision=precision)
    return back[:, : params["mean"].shape[0]] + params["mean"][None, :]
