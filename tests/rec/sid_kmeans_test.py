# SPDX-License-Identifier: Apache-2.0
"""k-means, the residual tokenizers, OPQ and the codes that learn nothing."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rec.sid import fixed, kmeans, opq, report, residual, rvq, tokenizer
from rec.sid.config import METHODS, SIDConfig
from tests import jitter
from tests.jitter import jittered
from tests.tiers import deep_unless

SMALL = dict(levels=3, codes=8, steps=30, batch=64, init_rows=128, lloyd=3)
RQVAE = dict(hidden=(16,), latent=4)


@functools.cache
def rows() -> np.ndarray:
    """float32 [300, 13]: clusters within clusters."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, 13))[rng.integers(0, 8, 300)]
    x = x + 0.4 * rng.normal(size=(8, 13))[rng.integers(0, 8, 300)]
    return (x + 0.1 * rng.normal(size=x.shape)).astype(np.float32)


@functools.cache
def fitted(method: str) -> tuple[SIDConfig, dict]:
    cfg = SIDConfig(method=method, **SMALL, **(RQVAE if method == "rqvae" else {}))
    return cfg, tokenizer.fit(jax.random.key(0), rows(), cfg)


@pytest.mark.trains
def test_lloyd_never_raises_the_inertia_and_reseeds_empty_clusters() -> None:
    x = jittered(jnp.asarray(rows()))
    step, cost = jax.jit(kmeans.lloyd_step), jax.jit(kmeans.inertia)
    for start in (kmeans.plus_plus(jax.random.key(0), x, 8), jnp.zeros((8, 13)) + 50.0):
        centroids, costs = start, [float(cost(x, start))]
        for _ in range(8):
            centroids = step(x, centroids)
            costs.append(float(cost(x, centroids)))
        rises = [after / before for before, after in itertools.pairwise(costs)]
        jitter.at_most("inertia / the one before", rises, 1 + 1e-6)  # never above 1 over ten seeds
        assert len(np.unique(np.asarray(kmeans.nearest(x, centroids)))) == 8
    # Fewer distinct rows than clusters: no NaN, every row is a centroid.
    few = jnp.asarray(np.repeat(rows()[:2], 3, axis=0))
    centroids = jax.jit(lambda: kmeans.lloyd(few, jnp.zeros((8, 13)) + 50.0, 4))()
    assert float(kmeans.inertia(few, centroids)) < 1e-6


@pytest.mark.trains
def test_seeding_takes_rows_and_is_better_than_uniform_draws() -> None:
    x = jittered(jnp.asarray(rows()))
    seed = jax.jit(kmeans.plus_plus, static_argnums=2)
    seeds = np.asarray(seed(jax.random.key(1), x, 8))
    assert len(np.unique(seeds, axis=0)) == 8
    assert all((np.asarray(x) == row).all(axis=1).any() for row in seeds)
    uniform = [float(kmeans.inertia(x, x[i : i + 8])) for i in range(0, 160, 16)]
    share = float(kmeans.inertia(x, jnp.asarray(seeds))) / np.mean(uniform)
    jitter.at_most("inertia / of uniform draws", share, 0.8)  # .47 +- .07 over 20 seeds
    same = seed(jax.random.key(0), jnp.ones((300, 13)), 8)
    assert bool(jnp.isfinite(same).all())


def test_a_mini_batch_moves_centroids_to_the_running_mean() -> None:
    batch = jnp.asarray([[1.0], [3.0], [10.0]])
    centroids, counts = kmeans.mini_batch_step(
        batch, jnp.asarray([[0.0], [9.0], [99.0]]), jnp.asarray([2.0, 0.0, 5.0])
    )
    # n = 2 + 2: half way from 0 to the mean 2; n = 0 + 1: all the way; no row: stays.
    np.testing.assert_allclose(centroids[:, 0], [1.0, 10.0, 99.0], rtol=1e-6)
    np.testing.assert_allclose(counts, [4.0, 1.0, 5.0])


def test_blocks_of_rows_are_assigned_as_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    x = jnp.asarray(rows())
    whole = np.asarray(kmeans.nearest(x, x[:8]))
    monkeypatch.setattr(kmeans, "ROWS", 64)
    np.testing.assert_array_equal(np.asarray(kmeans.nearest(x, x[:8])), whole)


@pytest.mark.trains
@pytest.mark.parametrize("method", deep_unless(lambda method: method == "rkmeans", METHODS))
def test_one_interface(method: str) -> None:
    """Shapes, ranges, order and number of rows, JSON-like states, repeatable fits."""
    cfg, params = fitted(method)
    made = tokenizer.make(cfg)
    assert (made.update is None) == (made.steps == 0) == (method in ("opq", "random", "lsh"))
    codes = tokenizer.encode(params, rows(), cfg)
    assert codes.shape == (300, 3) and codes.dtype == np.int32
    assert codes.min() >= 0 and codes.max() < 8
    order = np.random.default_rng(0).permutation(300)
    np.testing.assert_array_equal(tokenizer.encode(params, rows()[order], cfg), codes[order])
    np.testing.assert_array_equal(tokenizer.encode(params, rows()[:7], cfg), codes[:7])
    again = tokenizer.fit(jax.random.key(0), rows(), cfg)
    assert all(map(np.array_equal, jax.tree.leaves(params), jax.tree.leaves(again)))
    state = jax.eval_shape(made.init, jax.random.key(0), rows())
    assert {"params", "step"} <= set(state) and state["step"].dtype == jnp.int32
    partial = tokenizer.reconstruct(params, codes, cfg)
    assert (partial is None) == (method in ("random", "lsh")) == (made.decode is None)
    sids = tokenizer.assign(params, rows(), cfg)
    assert sids.shape == (300, len(cfg.sizes)) and len(np.unique(sids, axis=0)) == 300


@pytest.mark.trains
@pytest.mark.parametrize("method", ["rkmeans", "rvq", "opq"])
def test_errors_fall_with_every_level(method: str) -> None:
    cfg, params = fitted(method)
    codes = tokenizer.encode(params, rows(), cfg)
    target = np.asarray(residual.normalize(jnp.asarray(rows()), method != "opq"))
    figures = report.report(codes, (8,) * 3, target, tokenizer.reconstruct(params, codes, cfg))
    errors = [figures[f"reconstruction/level{level}"] for level in (1, 2, 3)]
    # Least of ten seeds: 1.37 and 1.17, both of rvq (1.26 +- .07); no seed moves under jitter.
    jitter.at_least("gains of levels", [errors[0] / errors[1], errors[1] / errors[2]], 1.05)
    assert figures["alarm"] == 0 and figures["reconstruction"] == errors[-1]


@pytest.mark.trains
def test_residuals_that_are_not_normalised_are_fitted_too() -> None:
    cfg = SIDConfig(normalise=False, **SMALL)
    params = tokenizer.fit(jax.random.key(0), rows(), cfg)
    codes = tokenizer.encode(params, rows(), cfg)
    np.testing.assert_allclose(params["scale"], 1.0, rtol=1e-6)
    partial = tokenizer.reconstruct(params, codes, cfg)
    errors = ((rows() - partial) ** 2).sum(axis=(1, 2))
    # Least of ten seeds: 3.6 and 1.44.
    jitter.at_least("gains of levels", [errors[0] / errors[1], errors[1] / errors[2]], 1.05)


def test_sums_of_far_apart_code_vectors_are_their_own_codes() -> None:
    """encode(decode(codes)) == codes where every prefix is nearest to itself."""
    basis = np.eye(12, dtype=np.float32).reshape(3, 4, 12)
    book = np.concatenate([basis, -basis], axis=1) * np.array([9.0, 3.0, 1.0])[:, None, None]
    params = {"codebook": jnp.asarray(book, jnp.float32), "scale": jnp.ones(3)}
    every = np.stack(np.meshgrid(*[np.arange(8)] * 3, indexing="ij"), -1).reshape(-1, 3)
    codes = jnp.asarray(every, jnp.int32)
    back = residual.encode(params, residual.decode(params, codes), False)
    np.testing.assert_array_equal(back, codes)
    # Normalised residuals see directions, so unit vectors and their scales do the same.
    unit = {"codebook": params["codebook"] / jnp.asarray([[[9.0]], [[3.0]], [[1.0]]])}
    unit["codebook"] = unit["codebook"] * jnp.asarray([0.9, 0.9, 0.9])[:, None, None]
    unit["scale"] = jnp.asarray([10.0, 3.0, 1.0])
    back = residual.encode(unit, residual.decode(unit, codes), True)
    np.testing.assert_array_equal(back, codes)


@pytest.mark.trains
def test_levels_are_trained_one_by_one() -> None:
    """A level is fixed once the next begins (no momentum moves it), and is zero before its turn."""
    cfg = SIDConfig(method="rvq", **{**SMALL, "steps": 7})
    made = tokenizer.make(cfg)
    assert made.update is not None
    x, key = jittered(jnp.asarray(rows())), jax.random.key(3)
    state, update, books = made.init(key, x), jax.jit(made.update), []
    for _ in range(7):
        state, metrics = update(state, x, key)
        books.append(np.asarray(state["params"]["codebook"]))
        assert {v.dtype for v in metrics.values()} == {jnp.dtype("float32")}
    assert int(state["step"]) == 7 and float(metrics["level"]) == 2
    for level, (start, stop) in enumerate([(0, 2), (2, 4), (4, 7)]):
        before = books[start - 1][level] if start else np.zeros_like(books[0][level])
        assert (before == 0).all() and (books[start][level] != 0).any()
        assert (books[stop - 1][level] != books[stop - 2][level]).any()
        np.testing.assert_array_equal(books[stop - 1][level], books[-1][level])


def test_rvq_gradients_are_those_of_the_code_vectors_alone() -> None:
    batch = jnp.asarray(rows()[:40])
    centroids = jnp.asarray(rows()[40:48])
    to_codes, to_rows = jax.grad(rvq.loss, argnums=(0, 1))(centroids, batch, 0.25)
    assigned = np.asarray(kmeans.nearest(batch, centroids))
    for code in range(8):
        gap = (np.asarray(centroids[code]) - rows()[:40][assigned == code]).sum(axis=0)
        np.testing.assert_allclose(to_codes[code], 2 * gap / 40, rtol=1e-4, atol=1e-6)
    chosen = np.asarray(centroids)[assigned]
    np.testing.assert_allclose(to_rows, 0.5 * (rows()[:40] - chosen) / 40, rtol=1e-4, atol=1e-6)


@pytest.mark.trains
def test_opq_turns_by_a_rotation_and_lowers_the_error() -> None:
    _, params = fitted("opq")
    turned = np.asarray(params["rotation"])
    np.testing.assert_allclose(turned @ turned.T, np.eye(len(turned)), atol=1e-5)

    assert turned.shape == (15, 15)  # 13 features in 3 parts of 5

    def error(found: dict) -> float:
        gaps = rows() - opq.decode(found, opq.encode(found, jnp.asarray(rows())))
        return float((gaps**2).sum())

    start = SIDConfig(method="opq", **{**SMALL, "lloyd": 0})
    first = jax.jit(lambda key, x: opq.init(key, x, start))(jax.random.key(0), rows())
    spread = ((rows() - rows().mean(axis=0)) ** 2).sum()
    # Over ten seeds: .484 +- .026 of the start, whose error is .25 +- .01 of the spread.
    jitter.at_most("error / at the start", error(params) / error(first), 0.7)
    jitter.at_most("error at the start / spread", error(first) / spread, 0.5)


@pytest.mark.trains
def test_random_codes_are_uniform_and_lsh_keeps_neighbours() -> None:
    rng = np.random.default_rng(0)
    x = jittered(rng.normal(size=(4000, 12)).astype(np.float32))
    cfg = SIDConfig(method="random", levels=2, codes=8, init_rows=8)
    params = tokenizer.fit(jax.random.key(0), x, cfg)
    codes = tokenizer.encode(params, x, cfg)
    pairs = np.bincount(codes[:, 0] * 8 + codes[:, 1], minlength=64)
    # A hash of the last bits: another machine's bits are another draw. At .001 the bound of chi^2
    # with 63 degrees of freedom would be 103, here it is that of one draw in ten million.
    jitter.at_most("chi^2", ((pairs - 62.5) ** 2 / 62.5).sum(), 138.0)
    near = x.copy()
    near[:, 0] = np.nextafter(near[:, 0], np.float32(9))  # one bit of one feature
    assert (tokenizer.encode(params, near, cfg) == codes).mean() < 0.2
    cfg = SIDConfig(method="lsh", levels=2, codes=8, init_rows=8)
    params = tokenizer.fit(jax.random.key(0), x, cfg)
    codes = tokenizer.encode(params, x, cfg)
    assert (tokenizer.encode(params, near, cfg) == codes).mean() > 0.99
    sides = (x - x.mean(axis=0)) / x.std(axis=0) @ np.asarray(params["planes"])[1].T > 0
    assert (codes[:, 1] == sides @ np.array([1, 2, 4])).mean() > 0.999
    raw = fixed.moments(jnp.asarray(x), False)
    np.testing.assert_array_equal(fixed.standardize(raw, jnp.asarray(x)), x)


def test_bad_configs_and_features_are_named() -> None:
    for words, match in [
        (dict(method="vq"), "method='vq': must be one of"),
        (dict(levels=0), "levels=0"),
        (dict(codes=1), "codes=1"),
        (dict(method="lsh", codes=100), "power of two"),
        (dict(steps=2), "steps=2: must be at least levels=3"),
        (dict(init_rows=100), "init_rows=100: must be at least codes=256"),
        (dict(dense_gradient=True), "only for method='rqvae'"),
        (dict(method="rqvae", dense_gradient=True, estimator="gumbel"), "estimator"),
        (dict(method="opq", conflict="psid_ecm"), "conflict"),
        (dict(hidden=(8, 0)), "hidden"),
        (dict(temperature=0), "temperature"),
    ]:
        with pytest.raises(ValueError, match=match):
            SIDConfig(**words)
    assert SIDConfig().sizes == (256, 256, 256, 256)
    assert SIDConfig(conflict="none").sizes == (256, 256, 256)
    x = rows().copy()
    for bad, match in [(x[0], "items, width"), (x[:0], "items, width")]:
        with pytest.raises(ValueError, match=match):
            tokenizer.fit(jax.random.key(0), bad, SIDConfig())
    x[4, 2] = np.nan
    with pytest.raises(ValueError, match="item 4 are not finite"):
        tokenizer.fit(jax.random.key(0), x, SIDConfig())
    with pytest.raises(ValueError, match="add up to 9, not 13"):
        tokenizer.fit(jax.random.key(0), rows(), SIDConfig(source_widths=(4, 5)))
    crowd = np.repeat(rows()[:1], 9, axis=0)
    cfg = SIDConfig(method="lsh", levels=1, codes=2, digit_limit=9, init_rows=2)
    with pytest.raises(ValueError, match="9 items share the codes"):
        tokenizer.assign(tokenizer.fit(jax.random.key(0), crowd, cfg), crowd, cfg)
