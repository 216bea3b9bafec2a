# SPDX-License-Identifier: Apache-2.0
"""Residual vector quantisation: codebooks by gradient, level after level (GRID, CIKM 2025)."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from rec.sid import kmeans, residual, schedule
from rec.sid.config import SIDConfig


def loss(centroids: jax.Array, batch: jax.Array, beta: int | float) -> jax.Array:
    """Two-sided loss, mean over rows: |sg(r) - e|^2 + beta |r - sg(e)|^2.

    Features are fixed here, so the second term only shows in the value.
    """
    chosen = centroids[kmeans.nearest(batch, jax.lax.stop_gradient(centroids))]
    codebook = kmeans.gathered_distances(jax.lax.stop_gradient(batch), chosen)
    commitment = kmeans.gathered_distances(batch, jax.lax.stop_gradient(chosen))
    return jnp.mean(codebook + beta * commitment)


def _level_optimizer(cfg: SIDConfig) -> optax.GradientTransformation:
    return schedule.optimizer(cfg, cfg.steps // cfg.levels)


def init(key: jax.Array, x: jax.Array, cfg: SIDConfig) -> dict:
    """State before the first update of x [N, D], with the optimiser state of one level."""
    del key
    tx = _level_optimizer(cfg)
    return residual.init(cfg, x, lambda centroids: {"opt_state": tx.init(centroids)})


def update(state: dict, x: jax.Array, key: jax.Array, cfg: SIDConfig) -> tuple[dict, dict]:
    """One gradient step of the level that is due; every level has a fresh optimiser state, else
    the momentum of a finished level would go on moving it."""
    tx = _level_optimizer(cfg)

    def start(centroids: jax.Array) -> dict:
        return {"opt_state": tx.init(centroids)}

    def learn(
        method_state: dict, centroids: jax.Array, counts: jax.Array, batch: jax.Array
    ) -> tuple[dict, jax.Array, jax.Array, jax.Array]:
        value, grads = jax.value_and_grad(loss)(centroids, batch, cfg.beta)
        updates, opt_state = tx.update(grads, method_state["opt_state"], centroids)
        counts = counts.at[kmeans.nearest(batch, centroids)].add(1.0)
        moved: Any = optax.apply_updates(centroids, updates)
        return {"opt_state": opt_state}, moved, counts, value

    return residual.update(cfg, state, x, key, start, learn, 0)
