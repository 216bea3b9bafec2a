# SPDX-License-Identifier: Apache-2.0
"""The closed form of chance survivors against draws, and statistics of maps against hand counts."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention import survivors
from attention.tda import normalize, threshold


def test_closed_form_table() -> None:
    """Values of the specification, computed there with another library."""
    expected = jax.jit(survivors.expected_survivors, static_argnums=(1, 2))
    for dim, beta, n, wanted in [
        (64, 1.0, [256, 1024, 4096, 65536], [0.072, 0.048, 0.030, 0.0082]),
        (64, 0.75, [256, 1024, 4096], [1.45, 2.24, 3.42]),
        (64, 0.5, [256, 16384], [12.3, 216]),
        (128, 1.0, [1024], [0.072]),
        (32, 1.0, [256], [0.040]),
    ]:
        lengths = np.resize(n, 4)  # one shape, one compilation
        np.testing.assert_allclose(expected(lengths, dim, beta), np.resize(wanted, 4), rtol=0.02)
    assert jax.eval_shape(lambda n: survivors.expected_survivors(n, 64), 1024).shape == ()


@partial(jax.jit, static_argnums=(1, 2, 3))
def draw(key: jax.Array, n: int, beta: float, rows: int) -> tuple[jax.Array, jax.Array]:
    """Survivors of two independent views, int32 [2, rows], and keys that survive in both [rows].

    Rows share their keys: given one row the cosines are still independent, and cosines of different
    rows with one key are pairwise independent, so the mean and its binomial error hold.
    """
    q, k = (
        normalize(jax.random.normal(one, (2, size, 64)))
        for one, size in zip(jax.random.split(key), (rows, n), strict=True)
    )
    over = jnp.einsum("vrd,vnd->vrn", q, k) > threshold(jnp.full((1, 1), n), 64, beta, 1.0)[0, 0, 0]
    return over.sum(-1), over.all(0).sum(-1)


@pytest.mark.parametrize("n", [256, 1024, 4096])
def test_chance_survivors(n: int) -> None:
    """Means within 4 standard errors of the formula at beta = .75; both views at once <= 1 / n."""
    rows, draws = 512, 4
    alive, both = map(
        np.concatenate,
        zip(
            *[
                (np.asarray(a).ravel(), np.asarray(b))
                for a, b in (draw(jax.random.key(i), n, 0.75, rows) for i in range(draws))
            ],
            strict=True,
        ),
    )
    wanted = float(survivors.expected_survivors(n, 64, 0.75))
    chance = wanted / n
    error = np.sqrt(n * chance * (1 - chance) / alive.size)
    assert abs(alive.mean() - wanted) <= 4 * error
    assert error < 0.05 * wanted
    # n P^2 keys survive twice: 0.008 to 0.0028 at beta = .75, far below 1 / n at beta = 1.
    twice = n * chance**2
    assert abs(both.mean() - twice) <= 4 * np.sqrt(twice / both.size)


@pytest.mark.deep
def test_beta_one_is_mute_at_any_length() -> None:
    """At beta = 1, 2e5 rows: as the formula says, falling with n, <= 1 / n in both views."""
    means = []
    for n in (256, 1024):
        alive, both = zip(*(draw(jax.random.key(i), n, 1.0, 8192) for i in range(13)), strict=True)
        alive, both = np.concatenate([np.ravel(a) for a in alive]), np.concatenate(both)
        assert alive.size >= 200_000
        wanted = float(survivors.expected_survivors(n, 64))
        assert abs(alive.mean() - wanted) <= 4 * np.sqrt(wanted / alive.size)
        assert both.mean() <= 1 / n
        means.append(alive.mean())
    assert means[0] > means[1] > 0


MAP = np.array(
    [
        [0.5, 9.0, 9.0, 9.0],  # 9: not visible
        [0.2, -0.6, 9.0, 9.0],
        [0.0, 0.0, 0.0, 9.0],
        [-0.1, 0.0, 0.3, 0.0],
    ],
    np.float32,
)[None, None]
MASK = np.tril(np.ones((4, 4), bool))


def test_statistics_by_hand() -> None:
    np.testing.assert_allclose(survivors.zero_share(MAP, MASK), [[5 / 10]])
    np.testing.assert_array_equal(survivors.survivors_per_row(MAP, MASK), [[[1, 2, 0, 2]]])
    np.testing.assert_allclose(survivors.live_tile_share(MAP, MASK, 2, 2), [[1.0]])
    np.testing.assert_allclose(survivors.live_tile_share(MAP, MASK, 1, 2), [[4 / 6]])
    np.testing.assert_allclose(survivors.live_tile_share(MAP, MASK, 3, 3), [[2 / 3]])
    np.testing.assert_allclose(survivors.dead_row_share(MAP, MASK, 0), [[1 / 4]])
    np.testing.assert_allclose(survivors.dead_row_share(MAP, MASK, 2), [[1 / 2]])
    np.testing.assert_allclose(
        survivors.first_token_mass(MAP, MASK, 1), [[(0.25 + 0.25) / 2]], rtol=1e-6
    )
    np.testing.assert_allclose(
        survivors.pooled_first_token_mass(MAP, MASK, 0), [[0.8 / 1.7]], rtol=1e-6
    )
    uniform = survivors.uniform_first_token_mass(MASK, 1)
    np.testing.assert_allclose(uniform, (1 / 2 + 1 / 3 + 1 / 4) / 3, rtol=1e-6)
    np.testing.assert_allclose(survivors.pooled_uniform_first_token_mass(MASK, 1), uniform)
    entropy = -0.25 * np.log(0.25) - 0.75 * np.log(0.75)
    np.testing.assert_allclose(survivors.row_entropy(MAP, MASK), [[[0, entropy, 0, entropy]]], 1e-6)


def test_live_tiles_need_visible_entries() -> None:
    """Tiles above the diagonal do not count, neither as live nor as dead."""
    a = np.zeros((1, 1, 8, 8), np.float32)
    a[..., 7, 0], a[..., 0, 7] = 1, 1
    mask = np.tril(np.ones((8, 8), bool))
    np.testing.assert_allclose(survivors.live_tile_share(a, mask, 4, 4), [[1 / 3]])
    np.testing.assert_allclose(survivors.live_tile_share(a, mask, 3, 5), [[1 / 5]])


@pytest.mark.deep
def test_dead_heads_and_summary() -> None:
    maps = np.concatenate([MAP, 0 * MAP, MAP], axis=1)
    np.testing.assert_array_equal(survivors.dead_heads(maps, MASK), [False, True, False])
    found = survivors.statistics(maps, MASK, block_q=1, block_kv=2, first=0)
    assert all(value.shape == () for value in found.values())
    np.testing.assert_allclose(found["dead_heads"], 1 / 3)
    np.testing.assert_allclose(found["zeros"], (0.5 + 1 + 0.5) / 3, rtol=1e-6)
    np.testing.assert_allclose(found["survivors"], 10 / 12, rtol=1e-6)
    np.testing.assert_allclose(found["live_tiles"], 2 / 3 * 4 / 6, rtol=1e-6)
    np.testing.assert_allclose(found["dead_rows"], (2 / 4 + 1) / 3, rtol=1e-6)
    np.testing.assert_allclose(found["first_token_uniform"], (1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)


def test_padding_rows_count_nowhere() -> None:
    """Rows that see nothing are neither dead nor part of a mean."""
    mask = MASK & (np.arange(4) != 2)[:, None]
    np.testing.assert_allclose(survivors.dead_row_share(MAP, mask, 0), [[0.0]])
    np.testing.assert_allclose(survivors.statistics(MAP, mask, first=0)["survivors"], 5 / 3)
