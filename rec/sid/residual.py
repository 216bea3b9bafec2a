# SPDX-License-Identifier: Apache-2.0
"""What residual k-means and residual vector quantisation share: residuals, encode, decode, levels.

Parameters are {"codebook": float32 [L, W, D], "scale": float32 [L]}. With normalized residuals a
code is chosen for a direction and the length is lost; `scale` holds one length per level, the
least-squares one over the training rows [our choice], so that decoding is a sum again:
x / |x| ~ sum_l scale_l codebook_l[c_l]. Without normalisation every scale is 1.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rec.sid import kmeans
from rec.sid.config import SIDConfig

# (own state, centroids [W, D], counts [W], batch [B, D]) -> (own state, centroids, counts, loss)
Learn = Callable[
    [dict, jax.Array, jax.Array, jax.Array], tuple[dict, jax.Array, jax.Array, jax.Array]
]


def normalize(x: jax.Array, on: bool) -> jax.Array:
    """Scales rows to length 1 (rows of zeros stay zero), or x where `on` is False."""
    if not on:
        return x
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def encode(params: dict, x: jax.Array, is_normalized: bool) -> jax.Array:
    """Greedy codes: [N, D] -> int32 [N, L]."""
    rest, codes = x, []
    for codebook in params["codebook"]:
        rest = normalize(rest, is_normalized)
        codes.append(kmeans.nearest(rest, codebook))
        rest = rest - codebook[codes[-1]]
    return jnp.stack(codes, axis=-1)


def decode(params: dict, codes: jax.Array) -> jax.Array:
    """Sum of scaled code vectors: int32 [N, K], K <= L digits -> [N, D]."""
    levels = range(codes.shape[1])
    parts = [params["scale"][i] * params["codebook"][i][codes[:, i]] for i in levels]
    return jnp.sum(jnp.stack(parts), axis=0)


def residuals(
    codebook: jax.Array, x: jax.Array, level: jax.Array, is_normalized: bool
) -> jax.Array:
    """What level `level` (int32 scalar) quantizes: [N, D] -> [N, D], normalized where asked."""

    def down(index: jax.Array, rest: jax.Array) -> jax.Array:
        rest = rest - codebook[index][kmeans.nearest(rest, codebook[index])]
        return normalize(rest, is_normalized)

    return jax.lax.fori_loop(0, level, down, normalize(x, is_normalized))


def fit_scale(params: dict, x: jax.Array, level: jax.Array, is_normalized: bool) -> jax.Array:
    """scale [L] with entry `level` the least-squares length, given the levels before it."""
    if not is_normalized:
        return params["scale"]
    codebook, scale = params["codebook"], params["scale"]
    start = normalize(x, True)

    def down(index: jax.Array, carry: tuple) -> tuple:
        rest, error = carry
        chosen = codebook[index][kmeans.nearest(rest, codebook[index])]
        return normalize(rest - chosen, True), error - scale[index] * chosen

    rest, error = jax.lax.fori_loop(0, level, down, (start, start))
    chosen = codebook[level][kmeans.nearest(rest, codebook[level])]
    best = jnp.sum(error * chosen) / jnp.maximum(jnp.sum(chosen * chosen), 1e-12)
    return scale.at[level].set(best)


def init(cfg: SIDConfig, x: jax.Array, start: Callable[[jax.Array], dict]) -> dict:
    """State before the first update; `start`: centroids [W, D] -> what a method keeps per level."""
    codebook = jnp.zeros((cfg.levels, cfg.codes, x.shape[1]), jnp.float32)
    return {
        "params": {"codebook": codebook, "scale": jnp.ones(cfg.levels, jnp.float32)},
        **start(codebook[0]),
        "counts": jnp.zeros((cfg.levels, cfg.codes), jnp.float32),
        "step": jnp.zeros((), jnp.int32),
    }


def update(
    cfg: SIDConfig,
    state: dict,
    x: jax.Array,
    key: jax.Array,
    start: Callable[[jax.Array], dict],
    learn: Learn,
    polish: int,
) -> tuple[dict, dict]:
    """One step of the level that is due: level = step // (steps // levels), the last one longest.

    The first step of a level seeds its codebook by k-means++ on a buffer of residuals; its last
    one runs `polish` full-batch iterations and fits the level's scale.

    Args:
        cfg: sizes and recipe.
        state: of `init`.
        x: float32 [N, D], all rows; a batch is drawn from it.
        key: the same in every step; the step is folded in.
        start: centroids [W, D] -> the method's own state of a fresh level.
        learn: what one batch of residuals does to the level, see `Learn`.
        polish: full-batch iterations at the end of a level.
    """
    params, step, is_normalized = state["params"], state["step"], cfg.normalise
    per_level = cfg.steps // cfg.levels
    level = jnp.minimum(step // per_level, cfg.levels - 1)
    local = step - level * per_level
    last = jnp.where(level == cfg.levels - 1, cfg.steps - level * per_level, per_level) - 1
    draw_key, buffer_key, seed_key = jax.random.split(jax.random.fold_in(key, step), 3)
    method_state = {name: state[name] for name in state if name not in ("params", "counts", "step")}

    def fresh(_: dict) -> tuple[dict, jax.Array]:
        size = min(cfg.init_rows, x.shape[0])
        rows = jax.random.permutation(buffer_key, x.shape[0])[:size]
        buffer = residuals(params["codebook"], x[rows], level, is_normalized)
        centroids = kmeans.plus_plus(seed_key, buffer, cfg.codes)
        return start(centroids), centroids

    method_state, centroids = jax.lax.cond(
        local == 0,
        fresh,
        lambda method_state: (method_state, params["codebook"][level]),
        method_state,
    )
    rows = jax.random.randint(draw_key, (cfg.batch,), 0, x.shape[0])
    batch = residuals(params["codebook"], x[rows], level, is_normalized)
    method_state, centroids, counts, loss = learn(
        method_state, centroids, state["counts"][level], batch
    )

    def finish(centroids: jax.Array) -> tuple[jax.Array, jax.Array]:
        rest = residuals(params["codebook"], x, level, is_normalized)
        centroids = kmeans.lloyd(rest, centroids, polish)
        done = {**params, "codebook": params["codebook"].at[level].set(centroids)}
        return centroids, fit_scale(done, x, level, is_normalized)

    centroids, scale = jax.lax.cond(
        local == last, finish, lambda centroids: (centroids, params["scale"]), centroids
    )
    state = {
        **method_state,
        "params": {"codebook": params["codebook"].at[level].set(centroids), "scale": scale},
        "counts": state["counts"].at[level].set(counts),
        "step": step + 1,
    }
    used = jnp.mean((counts > 0).astype(jnp.float32))
    return state, {"loss": loss, "usage": used, "level": level.astype(jnp.float32)}
