# SPDX-License-Identifier: Apache-2.0
"""Residual mini-batch k-means, level after level (GRID, CIKM 2025; Sculley 2010)."""

import jax

from rec.sid import kmeans, residual
from rec.sid.config import SIDConfig


def _start(centroids: jax.Array) -> dict:
    """Nothing is kept beside centroids and counts."""
    del centroids
    return {}


def init(key: jax.Array, x: jax.Array, cfg: SIDConfig) -> dict:
    """State before the first update of x [N, D]: see `residual.init`; the key is not needed."""
    del key
    return residual.init(cfg, x, _start)


def update(state: dict, x: jax.Array, key: jax.Array, cfg: SIDConfig) -> tuple[dict, dict]:
    """One Sculley step; a level ends with `cfg.lloyd` full-batch iterations [our choice], which
    also reseed codes that mini-batches left empty."""

    def learn(
        method_state: dict, centroids: jax.Array, counts: jax.Array, batch: jax.Array
    ) -> tuple[dict, jax.Array, jax.Array, jax.Array]:
        centroids, counts = kmeans.mini_batch_step(batch, centroids, counts)
        return method_state, centroids, counts, kmeans.inertia(batch, centroids) / batch.shape[0]

    return residual.update(cfg, state, x, key, _start, learn, cfg.lloyd)
