# SPDX-License-Identifier: Apache-2.0
"""RQ-VAE: an autoencoder whose latent is a sum of code vectors (Zeghidour et al. 2021; TIGER).

With latent z = sum_m E_m(x_m) of the sources m and r_0 = z, per level l

    c_l = argmin_k |r_l - e^l_k|^2      r_{l+1} = r_l - sg(e^l_{c_l})
    loss = sum_m |x_m - D_m(q)|^2 + sum_l (|sg(r_l) - e^l_{c_l}|^2 + beta |r_l - sg(e^l_{c_l})|^2)

with means over rows and coordinates (GRID). Residuals stay live: subtracting the code vector with
its gradient stopped lets the commitment of deep levels reach the encoder, and only it.

q has the value sum_l e^l_{c_l}; how gradient passes it is the estimator:
    ste        q = z + sg(sum_l e^l - z)                  (van den Oord et al. 2017)
    rotation   z turned and stretched onto q, the map held constant (Fifty et al. 2024); applied
               once to the whole sum [our choice], so that one level is the paper's
    gumbel     c_l is drawn with Gumbel noise, gradient of the softmax at `temperature`
    dense      q = sum_l (e^l_{c_l} + s_l C_l - sg(s_l C_l)), s_l the cosines of r_l to all codes,
               c_l = argmax s_l: every code gets a gradient (Snapchat, dense codebook gradients)
"""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rec.sid import kmeans, schedule
from rec.sid.config import SIDConfig
from rec.sid.fixed import moments, standardize

stop = jax.lax.stop_gradient


def sources(cfg: SIDConfig, width: int) -> tuple[int, ...]:
    """Widths of the sources of rows of `width` features.

    Raises:
        ValueError: cfg.source_widths does not add up to it.
    """
    if cfg.source_widths and sum(cfg.source_widths) != width:
        raise ValueError(
            f"source_widths={cfg.source_widths!r}: they add up to {sum(cfg.source_widths)}, "
            f"not {width}"
        )
    return cfg.source_widths or (width,)


def _split(x: jax.Array, widths: tuple[int, ...]) -> list[jax.Array]:
    ends = [sum(widths[: i + 1]) for i in range(len(widths))]
    return [x[:, end - width : end] for width, end in zip(widths, ends, strict=True)]


def init_mlp(key: jax.Array, widths: tuple[int, ...]) -> list[dict]:
    """Layers {"kernel", "bias"} between consecutive widths, Glorot-uniform."""
    layers = []
    for index, (fan_in, fan_out) in enumerate(itertools.pairwise(widths)):
        limit = (6.0 / (fan_in + fan_out)) ** 0.5
        uniform = jax.random.uniform(jax.random.fold_in(key, index), (fan_in, fan_out))
        layers.append({"kernel": limit * (2.0 * uniform - 1.0), "bias": jnp.zeros(fan_out)})
    return layers


def mlp(layers: list[dict], x: jax.Array) -> jax.Array:
    """ReLU between the layers: [N, D] -> [N, D']."""
    for index, layer in enumerate(layers):
        x = jax.nn.relu(x) if index else x
        x = x @ layer["kernel"] + layer["bias"][None, :]
    return x


def encoded(params: dict, x: jax.Array) -> jax.Array:
    """Latent [N, H] of raw rows [N, D]: the encoders of all sources, summed."""
    widths = tuple(layers[0]["kernel"].shape[0] for layers in params["encoder"])
    parts = _split(standardize(params, x), widths)
    latents = [mlp(layers, part) for layers, part in zip(params["encoder"], parts, strict=True)]
    return jnp.sum(jnp.stack(latents), axis=0)


def decoded(params: dict, latent: jax.Array) -> jax.Array:
    """Standardised rows [N, D] of latents [N, H], the sources side by side."""
    return jnp.concatenate([mlp(layers, latent) for layers in params["decoder"]], axis=-1)


def rotate(source: jax.Array, target: jax.Array) -> jax.Array:
    """`target` exactly, with the gradient of the rotation and scaling that takes `source` there.

    [N, H] both. With unit vectors s, t and w = (s + t) / |s + t| the map is
    (|target| / |source|) (I - 2 w w' + 2 t s'), a constant for the gradient (Fifty et al. 2024).
    """
    tiny = 1e-12
    size = jnp.maximum(jnp.linalg.norm(source, axis=-1, keepdims=True), tiny)
    goal = jnp.maximum(jnp.linalg.norm(target, axis=-1, keepdims=True), tiny)
    unit, toward = stop(source / size), stop(target / goal)
    middle = unit + toward
    middle = middle / jnp.maximum(jnp.linalg.norm(middle, axis=-1, keepdims=True), tiny)

    def along(axis: jax.Array) -> jax.Array:
        return jnp.sum(source * axis, axis=-1, keepdims=True)

    turned = source - 2.0 * along(middle) * middle + 2.0 * along(unit) * toward
    turned = stop(goal / size) * turned
    return stop(target) + (turned - stop(turned))


class Quantized(NamedTuple):
    """latent: what the decoder gets, [N, H]; codes: int32 [N, L]; codebook, commitment: the two
    sums over levels of mean squared gaps; residuals: [L, N, H], gradient stopped."""

    latent: jax.Array
    codes: jax.Array
    codebook: jax.Array
    commitment: jax.Array
    residuals: jax.Array


def cosines(rest: jax.Array, codebook: jax.Array) -> jax.Array:
    """[N, H], [W, H] -> [N, W]. The epsilon inside the root keeps gradients finite at 0."""

    def unit(v: jax.Array) -> jax.Array:
        return v * jax.lax.rsqrt(jnp.sum(v * v, axis=-1, keepdims=True) + 1e-12)

    return jnp.matmul(unit(rest), unit(codebook).T, precision=jax.lax.Precision.HIGHEST)


def select(rest: jax.Array, codebook: jax.Array, dense: bool) -> jax.Array:
    """int32 [N]: the code of a residual, nearest or (dense) of greatest cosine."""
    if dense:
        return jnp.argmax(cosines(rest, codebook), axis=-1).astype(jnp.int32)
    return kmeans.nearest(rest, codebook)


def quantize(codebooks: jax.Array, latent: jax.Array, key: jax.Array, cfg: SIDConfig) -> Quantized:
    """All levels of latents [N, H] with codebooks [L, W, H]; `key` is of the Gumbel noise."""
    rest, total, codes, residuals = latent, jnp.zeros_like(latent), [], []
    codebook_gap = commitment = jnp.zeros(())
    gumbel = cfg.estimator == "gumbel"
    for level in range(codebooks.shape[0]):
        codebook = codebooks[level]
        residuals.append(stop(rest))
        if gumbel:
            noise = jax.random.gumbel(jax.random.fold_in(key, level), (len(rest), len(codebook)))
            logits = (noise - kmeans.squared_distances(rest, codebook)) / cfg.temperature
            code = jnp.argmax(stop(logits), axis=-1).astype(jnp.int32)
            chosen = codebook[code]
            soft = jax.nn.softmax(logits, axis=-1) @ codebook
            total += stop(chosen) + (soft - stop(soft))
        else:
            code = select(stop(rest), stop(codebook), cfg.dense_gradient)
            chosen = codebook[code]
            spread = cosines(rest, codebook) @ codebook if cfg.dense_gradient else None
            total += stop(chosen) if spread is None else chosen + (spread - stop(spread))
        codes.append(code)
        codebook_gap += jnp.mean((stop(rest) - chosen) ** 2)
        commitment += jnp.mean((rest - stop(chosen)) ** 2)
        rest = rest - stop(chosen)
    if cfg.estimator == "rotation":
        total = rotate(latent, total)
    elif not gumbel and not cfg.dense_gradient:
        total = total + (latent - stop(latent))
    codes, residuals = jnp.stack(codes, axis=-1), jnp.stack(residuals)
    return Quantized(total, codes, codebook_gap, commitment, residuals)


def loss(params: dict, x: jax.Array, key: jax.Array, cfg: SIDConfig) -> tuple[jax.Array, Quantized]:
    """The loss above over rows x [N, D] and what was quantized."""
    quantized = quantize(params["codebook"], encoded(params, x), key, cfg)
    widths = sources(cfg, x.shape[1])
    gaps = (standardize(params, x) - decoded(params, quantized.latent)) ** 2
    reconstruction = sum(jnp.mean(part) for part in _split(gaps, widths))
    return reconstruction + quantized.codebook + cfg.beta * quantized.commitment, quantized


def _optimizer(cfg: SIDConfig) -> optax.GradientTransformation:
    return schedule.optimizer(cfg, cfg.steps)


def _trained(params: dict) -> dict:
    return {name: params[name] for name in ("encoder", "decoder", "codebook")}


def init(key: jax.Array, x: jax.Array, cfg: SIDConfig) -> dict:
    """State before the first update of x [N, D]; codebooks from k-means of the residuals of a
    buffer of latents, or normal where cfg.kmeans_init is False."""
    widths = sources(cfg, x.shape[1])
    net_key, code_key, buffer_key = jax.random.split(key, 3)
    inner = (*cfg.hidden, cfg.latent)
    keys = jax.random.split(net_key, 2 * len(widths))
    params = {
        "encoder": [init_mlp(keys[2 * i], (w, *inner)) for i, w in enumerate(widths)],
        "decoder": [init_mlp(keys[2 * i + 1], (*inner[::-1], w)) for i, w in enumerate(widths)],
        "codebook": jax.random.normal(code_key, (cfg.levels, cfg.codes, cfg.latent)),
        **moments(x, cfg.standardise),
    }
    if cfg.kmeans_init:
        rows = jax.random.permutation(buffer_key, x.shape[0])[: min(cfg.init_rows, x.shape[0])]

        def level(rest: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
            seeds = kmeans.plus_plus(key, rest, cfg.codes)
            codebook = kmeans.lloyd(rest, seeds, cfg.lloyd)
            return rest - codebook[select(rest, codebook, cfg.dense_gradient)], codebook

        keys = jax.random.split(code_key, cfg.levels)
        params["codebook"] = jax.lax.scan(level, encoded(params, x[rows]), keys)[1]
    return {
        "params": params,
        "opt_state": _optimizer(cfg).init(_trained(params)),
        "counts": jnp.zeros((cfg.levels, cfg.codes), jnp.float32),
        "step": jnp.zeros((), jnp.int32),
    }


def reset_dead(
    codebooks: jax.Array, counts: jax.Array, residuals: jax.Array, key: jax.Array
) -> jax.Array:
    """Codebooks [L, W, H] with every code of counts [L, W] 0 replaced by a random row of its
    level's residuals [L, N, H], distinct rows where N >= W."""
    codes = codebooks.shape[1]
    order = jnp.argsort(jax.random.uniform(key, residuals.shape[:2]), axis=-1)
    rows = order[:, np.arange(codes) % residuals.shape[1]]
    fresh = jnp.take_along_axis(residuals, rows[..., None], axis=1)
    return jnp.where((counts == 0)[..., None], fresh, codebooks)


def update(state: dict, x: jax.Array, key: jax.Array, cfg: SIDConfig) -> tuple[dict, dict]:
    """One optimiser step on rows drawn from x [N, D] with `key` and the step. Codes that were not
    used in the last `dead_code_reset` steps start again at residuals of this batch; counts are
    those of the steps since the last reset."""
    params, step = state["params"], state["step"]
    row_key, noise_key, reset_key = jax.random.split(jax.random.fold_in(key, step), 3)
    batch = x[jax.random.randint(row_key, (cfg.batch,), 0, x.shape[0])]

    def objective(trained: dict) -> tuple[jax.Array, Quantized]:
        return loss({**params, **trained}, batch, noise_key, cfg)

    before = _trained(params)
    (value, out), grads = jax.value_and_grad(objective, has_aux=True)(before)
    updates, opt_state = _optimizer(cfg).update(grads, state["opt_state"], before)
    trained: Any = optax.apply_updates(before, updates)
    levels = jnp.arange(cfg.levels)[None, :]
    counts = state["counts"].at[levels, out.codes].add(1.0)
    usage = jnp.mean((counts > 0).astype(jnp.float32))
    if cfg.dead_code_reset:
        due = (step + 1) % cfg.dead_code_reset == 0
        fresh = reset_dead(trained["codebook"], counts, out.residuals, reset_key)
        trained = {**trained, "codebook": jnp.where(due, fresh, trained["codebook"])}
        counts = jnp.where(due, 0.0, counts)
    metrics = {
        "loss": value,
        "reconstruction": value - out.codebook - cfg.beta * out.commitment,
        "codebook": out.codebook,
        "commitment": out.commitment,
        "usage": usage,
    }
    state = {
        "params": {**params, **trained},
        "opt_state": opt_state,
        "counts": counts,
        "step": step + 1,
    }
    return state, metrics


def encode(params: dict, x: jax.Array, cfg: SIDConfig) -> jax.Array:
    """Greedy codes: [N, D] -> int32 [N, L]."""
    rest, codes = encoded(params, x), []
    for codebook in params["codebook"]:
        codes.append(select(rest, codebook, cfg.dense_gradient))
        rest = rest - codebook[codes[-1]]
    return jnp.stack(codes, axis=-1)


def decode(params: dict, codes: jax.Array) -> jax.Array:
    """Rows in the units of the features: int32 [N, K], K <= L digits -> [N, D]."""
    chosen = [params["codebook"][i][codes[:, i]] for i in range(codes.shape[1])]
    rows = decoded(params, jnp.sum(jnp.stack(chosen), axis=0))
    return rows * params["std"][None, :] + params["mean"][None, :]
