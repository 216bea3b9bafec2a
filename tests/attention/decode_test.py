# SPDX-License-Identifier: Apache-2.0
"""Sketch decoding: a bound that holds, the bits of dense decoding, the rows of prefill."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention import decode
from attention.tda import tda_attention
from tests.attention import oracle
from tests.attention.oracle import Case

QUICK = {"xla_backend_optimization_level": 0}
append = jax.jit(decode.append, compiler_options=QUICK)
CASE = Case("cache", T=1, S=600, H=4, K=2, D=48, Dv=32)


@partial(jax.jit, static_argnames="dtype")
def fill(k: Any, v: Any, dtype: Any) -> decode.SketchCache:
    cache = decode.empty_cache(2, 640, CASE.K, CASE.D, CASE.Dv, dtype)
    return decode.append(cache, k, v)


def planted(dtype: Any) -> tuple[Any, decode.SketchCache]:
    """Queries close to about 1 key in 30, and a cache of lengths 600 and 333."""
    x = oracle.problem(CASE)
    rng = np.random.default_rng(5)
    near = rng.random((2, CASE.B, CASE.S, 1, 1)) < 0.03
    direction = x["q"].reshape(2, CASE.B, 1, CASE.K, 2, CASE.D)[..., 0, :]
    k = np.where(near, x["k"] + 0.7 * direction, x["k"]).astype(np.float32)
    cache = fill(k, x["v"], dtype)
    return x["q"][:, :, 0], cache._replace(length=jnp.asarray([600, 333], jnp.int32))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_survivors_have_the_bits_of_dense_decoding(dtype: Any) -> None:
    """Same set, same weights; outputs equal but for the order of a sum; far fewer keys read."""
    q, cache = planted(dtype)
    lam = jnp.linspace(0.2, 0.8, 4)

    @jax.jit
    def weights(q: Any, cache: Any) -> Any:
        unit, tau = decode._prepare(q, cache, lam, 0.9, 1.0, 2)
        marked = decode.candidates(unit, cache, tau)
        place, found, _ = decode.gathered_weights(unit, cache, tau, marked, 2, 128)
        # Repeats of the last place weigh 0: adding them to it changes nothing.
        rows = jnp.zeros((*found.shape[:-1], 640))
        spread = jax.vmap(jax.vmap(jax.vmap(lambda row, p, w: row.at[p].add(w), (0, None, 0))))
        spread = jax.vmap(spread, (0, None, 0))(rows, place, found)
        return decode.dense_weights(unit, cache, tau, 2), spread, marked

    dense, sparse, marked = map(np.asarray, weights(q, cache))
    np.testing.assert_array_equal(sparse, dense)
    alive = np.any(dense > 0, axis=(0, 3))
    assert 8 <= alive.sum(-1).min() and alive.sum(-1).max() <= 60
    assert not alive[1, :, 333:].any() and not marked[1, :, 333:].any()
    assert (marked >= alive).all() and marked.sum() <= 1.5 * alive.sum()
    call = dict(beta=0.9)
    wanted = jax.jit(partial(decode.dense_decode, **call))(q, cache, lam)
    o, statistics = jax.jit(partial(decode.sketch_decode, budget=128, **call))(q, cache, lam)
    assert o.dtype == dtype and o.shape == (2, 4, 32) and np.abs(wanted).max() > 0.1
    np.testing.assert_allclose(
        np.float32(o), np.float32(wanted), atol=1e-6 if dtype == jnp.float32 else 0.01
    )
    assert not statistics.dense
    np.testing.assert_array_equal(statistics.candidates, marked.sum(-1))
    np.testing.assert_array_equal(statistics.survivors, (dense > 0).sum(-1).reshape(2, 2, 4))


@pytest.mark.deep
@pytest.mark.users_compiler
def test_overflow_is_dense() -> None:
    """More candidates than the budget: the exact answer, and it is said."""
    q, cache = planted(jnp.float32)
    lam = jnp.linspace(0.2, 0.8, 4)
    o, statistics = jax.jit(partial(decode.sketch_decode, budget=4))(q, cache, lam)
    assert statistics.dense and statistics.candidates.max() > 4
    np.testing.assert_array_equal(o, jax.jit(decode.dense_decode)(q, cache, lam))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_bound_is_certified(dtype: Any) -> None:
    """q.k <= q.k_hat + |q| delta in float64 with float32's numbers, also for adverse directions."""
    rng = np.random.default_rng(0)
    k = rng.normal(size=(400, 64)) * np.exp(rng.normal(size=(400, 64)))  # uneven entries
    k[0] = 0
    unit = jnp.asarray(k / np.maximum(np.linalg.norm(k, axis=-1, keepdims=True), 1e-9), dtype)
    sketch, scale, delta = map(np.asarray, decode.make_sketch(unit))
    whole = np.asarray(unit, np.float64)
    hat = scale[:, None].astype(np.float64) * sketch
    rest = np.linalg.norm(whole - hat, axis=-1)
    assert (np.abs(rest - delta) <= 1e-6).all() and 0.001 < rest[1:].mean() < 0.1
    worst = np.where(rest[:, None] > 0, (whole - hat) / np.maximum(rest, 1e-12)[:, None], 0)
    for q in (worst, rng.permutation(whole)):
        slack = 64 * 2.0**-20
        assert ((q * whole).sum(-1) <= (q * hat).sum(-1) + delta + slack).all()


def test_a_key_that_the_sketch_underrates_is_kept() -> None:
    """A threshold right below the score of the key whose sketch falls short most."""
    rng = np.random.default_rng(2)
    k, q = rng.normal(size=(2, 1, 500, 1, 16)), rng.normal(size=(2, 1, 1, 16))
    cache = decode.empty_cache(1, 500, 1, 16, 16, jnp.float32)
    cache = append(cache, np.float32(k), jnp.zeros((1, 500, 1, 16)))
    unit = q[0, 0, 0] / np.linalg.norm(q[0, 0, 0])
    score = np.asarray(cache.k, float)[0, 0, :, 0] @ unit
    rated = np.asarray(cache.sketch, float)[0, 0, :, 0] @ unit * np.asarray(cache.scale)[0, 0, :, 0]
    key = np.argmax(np.where(score > 0.3, score - rated, -1))
    assert score[key] - rated[key] > 1e-3
    beta = jnp.float32((score[key] - 1e-5) / np.sqrt(2 * np.log(500) / 16))

    @partial(jax.jit, compiler_options=QUICK)
    def step(q: Any, cache: Any, beta: Any) -> Any:
        unit, tau = decode._prepare(q, cache, jnp.zeros(1), beta, 1.0, 2)
        return decode.dense_weights(unit, cache, tau, 2), decode.candidates(unit, cache, tau)

    weights, marked = step(np.float32(q), cache, beta)
    assert weights[0, 0, 0, 0, key] > 0 and marked[0, 0, key]


def test_incremental_decoding_is_prefill() -> None:
    """Token by token, append and decode, against the causal operator row by row."""
    case = Case("rows", T=12, S=12, H=4, K=2, D=32, Dv=16)
    x = oracle.problem(case)
    wanted = tda_attention(
        *(jnp.asarray(x[name]) for name in ("q", "k", "v", "lam")), beta=0.5, implementation="xla"
    )

    @jax.jit
    def step(cache: Any, q: Any, k: Any, v: Any) -> Any:
        cache = decode.append(cache, k[:, :, None], v[:, None])
        return cache, decode.sketch_decode(q, cache, x["lam"], beta=0.5, budget=6)

    cache = decode.empty_cache(2, 16, 2, 32, 16, jnp.float32)
    dense = []
    for i in range(12):
        cache, (o, statistics) = step(cache, x["q"][:, :, i], x["k"][:, :, i], x["v"][:, i])
        np.testing.assert_allclose(o, wanted[:, i], atol=2e-6)
        dense.append(bool(statistics.dense))
    assert any(dense) and not all(dense) and np.abs(wanted).max() > 0.1


def test_appending_at_once_or_in_pieces() -> None:
    """The same cache, with sequences of different length."""
    x = oracle.problem(Case("pieces", T=12, S=12, K=2, D=32))
    k, v = jnp.asarray(x["k"]), jnp.asarray(x["v"])
    cache = decode.empty_cache(2, 20, 2, 32, 16)
    whole = append(cache, k, v)
    pieces = append(append(cache, k[:, :, :5], v[:, :5]), k[:, :, 5:], v[:, 5:])
    jax.tree.map(np.testing.assert_array_equal, whole, pieces)
    shifted = append(cache._replace(length=jnp.asarray([0, 3])), k, v)
    np.testing.assert_array_equal(shifted.sketch[:, 1, 3:15], whole.sketch[:, 1, :12])
    np.testing.assert_array_equal(shifted.v[1, 3:15], whole.v[1, :12])
    np.testing.assert_array_equal(shifted.length, [12, 15])
    np.testing.assert_allclose(jnp.linalg.norm(whole.k[:, :, :12].astype(float), axis=-1), 1, 0.01)


def test_bad_input_is_named() -> None:
    cache = decode.empty_cache(2, 8, 2, 16, 16)
    k, v = jnp.zeros((2, 2, 9, 2, 16)), jnp.zeros((2, 9, 2, 16))
    lam = jnp.zeros(4)
    with pytest.raises(ValueError, match="k: 9 more tokens do not fit"):
        decode.append(cache, k, v)
    with pytest.raises(ValueError, match="k has shape"):
        decode.append(cache, k[..., :8], v)
    with pytest.raises(ValueError, match="v has 8 tokens, k has 9"):
        decode.append(cache, k, v[:, :8])
    with pytest.raises(ValueError, match="q has shape"):
        decode.sketch_decode(jnp.zeros((2, 2, 3, 16)), cache, lam)
    with pytest.raises(ValueError, match="lam has shape"):
        decode.dense_decode(jnp.zeros((2, 2, 4, 16)), cache, lam[:2])
    with pytest.raises(ValueError, match="beta=-1"):
        decode.sketch_decode(jnp.zeros((2, 2, 4, 16)), cache, lam, beta=-1.0)
