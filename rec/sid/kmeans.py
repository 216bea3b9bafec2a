# SPDX-License-Identifier: Apache-2.0
"""k-means as pure functions: seeding, full-batch and mini-batch iterations.

Shapes: N rows of width D, W centroids. All distances are squared Euclidean, in float32.
"""

import math

import jax
import jax.numpy as jnp

ROWS = 65536  # of one distance matrix: more rows are assigned block by block


def squared_distances(x: jax.Array, centroids: jax.Array) -> jax.Array:
    """|x - c|^2: [N, D], [W, D] -> [N, W], never below 0."""
    cross = jnp.matmul(x, centroids.T, precision=jax.lax.Precision.HIGHEST)
    norms = jnp.sum(centroids * centroids, axis=-1)[None, :]
    return jnp.maximum(jnp.sum(x * x, axis=-1)[:, None] - 2.0 * cross + norms, 0.0)


def nearest(x: jax.Array, centroids: jax.Array) -> jax.Array:
    """int32 [N]: the nearest centroid of every row, the lowest index among equals."""

    def nearest_of_block(block: jax.Array) -> jax.Array:
        return jnp.argmin(squared_distances(block, centroids), axis=-1).astype(jnp.int32)

    if x.shape[0] <= ROWS:
        return nearest_of_block(x)
    return jax.lax.map(lambda row: nearest_of_block(row[None])[0], x, batch_size=ROWS)


def gathered_distances(x: jax.Array, chosen: jax.Array) -> jax.Array:
    """|x - c|^2 of rows and their own centroids, [N, D] both -> [N]; by differences, so exact."""
    gap = x - chosen
    return jnp.sum(gap * gap, axis=-1)


def inertia(x: jax.Array, centroids: jax.Array) -> jax.Array:
    """float32: sum over rows of the squared distance to the nearest centroid."""
    return jnp.sum(gathered_distances(x, centroids[nearest(x, centroids)]))


def plus_plus(key: jax.Array, x: jax.Array, codes: int) -> jax.Array:
    """Greedy k-means++ seeding (Arthur and Vassilvitskii 2007): [N, D] -> [codes, D].

    Every next centroid is drawn from the rows with probability in proportion to the squared
    distance to the nearest centroid so far; of 2 + ln(codes) draws the one that leaves the least
    total distance is kept. Where all rows are centroids already, draws are uniform.
    """
    trials = 2 + int(math.log(codes))
    first_key, key = jax.random.split(key)
    first = x[jax.random.randint(first_key, (), 0, x.shape[0])]

    def add(index: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        centroids, closest = carry
        weights = jnp.where(jnp.sum(closest) > 0, closest, jnp.ones_like(closest))
        logits = jnp.log(weights)
        rows = jax.random.categorical(jax.random.fold_in(key, index), logits, shape=(trials,))
        after = jnp.minimum(closest[:, None], squared_distances(x, x[rows]))  # [N, trials]
        best = jnp.argmin(jnp.sum(after, axis=0))
        return centroids.at[index].set(x[rows[best]]), after[:, best]

    centroids = jnp.zeros((codes, x.shape[1]), x.dtype).at[0].set(first)
    closest = squared_distances(x, first[None])[:, 0]
    return jax.lax.fori_loop(1, codes, add, (centroids, closest))[0]


def means(x: jax.Array, assigned: jax.Array, codes: int) -> tuple[jax.Array, jax.Array]:
    """(means [W, D], counts float32 [W]) of the rows of every cluster; the mean of none is 0."""
    counts = jnp.zeros(codes, x.dtype).at[assigned].add(1.0)
    sums = jnp.zeros((codes, x.shape[1]), x.dtype).at[assigned].add(x)
    return sums / jnp.maximum(counts, 1.0)[:, None], counts


def lloyd_step(x: jax.Array, centroids: jax.Array) -> jax.Array:
    """One full-batch iteration (Lloyd 1982): assign, average; inertia never increases.

    An empty cluster is reseeded with the row that is farthest from its centroid (the next
    farthest for the next empty cluster) [our choice]; that row was badly served, and a centroid
    more can only shorten distances.
    """
    codes = centroids.shape[0]
    assigned = nearest(x, centroids)
    averaged, counts = means(x, assigned, codes)
    empty = counts == 0
    # One distinct row for each empty cluster, worst first; rows run out where N < W.
    gaps = gathered_distances(x, averaged[assigned])
    worst = jax.lax.top_k(gaps, min(codes, x.shape[0]))[1]
    turn = jnp.minimum(jnp.cumsum(empty) - 1, worst.shape[0] - 1)
    return jnp.where(empty[:, None], x[worst[jnp.maximum(turn, 0)]], averaged)


def lloyd(x: jax.Array, centroids: jax.Array, iterations: int) -> jax.Array:
    """`iterations` full-batch iterations: [N, D], [W, D] -> [W, D]."""
    return jax.lax.fori_loop(0, iterations, lambda _, c: lloyd_step(x, c), centroids)


def mini_batch_step(
    batch: jax.Array, centroids: jax.Array, counts: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """One mini-batch iteration (Sculley 2010, as in GRID): n += b, c -= (b / n) (c - m).

    Args:
        batch: [B, D] rows; m and b are the mean and number of those nearest to a centroid.
        centroids: [W, D].
        counts: float32 [W], n before this batch.

    Returns:
        (centroids, counts) after it; centroids without a row stay.
    """
    averaged, seen = means(batch, nearest(batch, centroids), centroids.shape[0])
    counts = counts + seen
    rate = (seen / jnp.maximum(counts, 1.0))[:, None]
    return centroids - rate * (centroids - averaged), counts
