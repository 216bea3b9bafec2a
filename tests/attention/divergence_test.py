# SPDX-License-Identifier: Apache-2.0
"""What is not finite stays so: a diverged model must not go on with rows of clean zeros."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention import attention, decode
from attention.kernels import Spec, pallas_tpu, power, power_slope, reference, xla
from attention.tda import normalize, tda_attention, threshold
from tests.attention import hopper as emulation
from tests.attention import oracle
from tests.attention.oracle import Case
from tests.tiers import deep, deep_unless

CASE = Case("small", T=24, S=24, H=4, K=2, Dv=8, B=1, block_q=8, block_kv=8)
QUICK = {"xla_backend_optimization_level": 0}
NAN, INF = np.float32(np.nan), np.float32(np.inf)
ROW, KEY = 13, 9


def test_norms_ignore_scale() -> None:
    """From 1e-9 to the largest floats; zeros stay zero, and their gradient too."""
    x = np.random.default_rng(0).normal(size=(5, 16)).astype(np.float32)
    wanted = x / np.linalg.norm(x, axis=-1, keepdims=True)
    for scale in (1e-9, 1.0, 1e20, 1e30, 1e38 / 4):
        np.testing.assert_allclose(normalize(jnp.asarray(x * np.float32(scale))), wanted, atol=3e-7)
    assert not np.asarray(normalize(jnp.zeros((2, 16)))).any()
    slope = jax.grad(lambda y: jnp.sum(normalize(y) * x))
    assert not np.asarray(slope(jnp.zeros((5, 16)))).any()
    # d(y / |y|) = (g - u <u, g>) / |y|, at any scale.
    g = np.roll(x, 1, axis=0)
    for scale in (1.0, 1e20):
        found = jax.grad(lambda y: jnp.sum(normalize(y) * g))(jnp.asarray(x * np.float32(scale)))
        across = g - wanted * np.sum(wanted * g, axis=-1, keepdims=True)
        exact = across / np.linalg.norm(x, axis=-1, keepdims=True)
        np.testing.assert_allclose(np.asarray(found) * scale, exact, atol=1e-6)


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_norms_of_rows_that_are_not_finite(bad: Any) -> None:
    x = jnp.ones((3, 8)).at[1, 2].set(bad)
    unit = normalize(x)
    lone = jnp.zeros((3, 64)).at[:, 5].set(bad).at[0].set(bad)  # nothing else, or everything
    assert np.isnan(normalize(lone)).all()
    assert np.isnan(unit[1]).all() and np.isfinite(unit[::2]).all()
    assert np.isnan(normalize(x.astype(jnp.bfloat16))[1]).all()


@pytest.mark.parametrize("p", [1, 2, 3, 1.5])
def test_powers_keep_nan(p: float) -> None:
    e = jnp.array([NAN, INF, 0.0, 2.0])
    np.testing.assert_allclose(power(e, p), [NAN, INF, 0, 2.0**p], rtol=1e-6)
    assert power_slope(e, p)[2] == 0 and not power_slope(e, p)[0] <= 0


def test_a_threshold_of_nan_is_nan() -> None:
    lengths = jnp.array([[1, 8]])
    assert np.isnan(threshold(lengths, 8, NAN, 1.0)).all()
    assert np.isnan(threshold(lengths, 8, 1.0, NAN)).all()


def output(q: Any, k: Any, x: dict[str, Any], module: Any, *, skip: bool, p: Any) -> jax.Array:
    """o [T, H, Dv] of the only sequence, in tiles of 8 x 8."""
    tau = jnp.full((1, CASE.H, CASE.T), 0.4)
    tuning: Any = {} if module is reference else {"block_q": 8, "block_kv": 8}
    if module is pallas_tpu:
        tuning["interpret"] = True
    call = partial(module.tda, **tuning)
    spec = Spec(causal=True, p=p, skip=skip)
    run = jax.jit(
        lambda q, k: call(normalize(q), normalize(k), x["v"], tau, x["lam"], None, None, 0, spec)
    )
    return run(q, k)[0]


@pytest.mark.parametrize("skip", [True, deep(False)])
@pytest.mark.parametrize("module", [reference, xla, pallas_tpu], ids=lambda m: m.__name__)
def test_backends_show_what_is_not_finite(module: Any, skip: bool) -> None:
    """A bad query in its own row; a bad key in rows from it on, for its query heads; no other."""
    x = {name: jnp.asarray(y) for name, y in oracle.problem(CASE).items() if y is not None}
    q, k = x["q"], x["k"]
    clean = output(q, k, x, module, skip=skip, p=2)
    for bad in (NAN, INF):
        broken = output(q.at[1, 0, ROW, 2, 3].set(bad), k, x, module, skip=skip, p=2)
        is_bad = np.isnan(np.asarray(broken))
        assert is_bad[ROW, 2].all() and is_bad.sum() == CASE.Dv
        np.testing.assert_array_equal(np.where(is_bad, 0, broken), np.where(is_bad, 0, clean))
        broken = output(q, k.at[0, 0, KEY, 1, 0].set(bad), x, module, skip=skip, p=2)
        is_bad = np.isnan(np.asarray(broken))
        assert is_bad[KEY:, 2:].all() and not is_bad[:KEY].any() and not is_bad[:, :2].any()


@pytest.mark.parametrize("module", [xla, pallas_tpu], ids=lambda m: m.__name__)
@pytest.mark.parametrize("shape", deep_unless(lambda shape: shape == (64, 64), [(64, 64), (8, 8)]))
def test_a_dead_tile_with_nan_is_not_skipped(module: Any, shape: tuple[int, int]) -> None:
    """Large tiles too: the maximum of one drops NaN on CPUs."""
    x = oracle.problem(CASE._replace(T=64, S=64, H=1, K=1))
    q, k = (normalize(jnp.asarray(x[name])) for name in ("q", "k"))
    v, lam = jnp.asarray(x["v"]), jnp.asarray(x["lam"])
    tau = jnp.full((1, 1, 64), 1.5)  # beyond every cosine
    tuning: Any = {"block_q": shape[0], "block_kv": shape[1]}
    if module is pallas_tpu:
        tuning["interpret"] = True

    @partial(jax.jit, compiler_options=QUICK)
    def run(q: jax.Array) -> Any:
        call = lambda q: module.tda(q, k, v, tau, lam, None, None, 0, Spec(True, 2), **tuning)
        o, pull = jax.vjp(call, q)
        return o[0], pull(jnp.ones_like(o))[0]

    assert not any(np.asarray(found).any() for found in run(q))
    o, dq = run(q.at[1, 0, ROW, 0, 5].set(NAN))
    assert np.isnan(o[ROW]).all() and not np.delete(o, ROW, axis=0).any()
    assert np.isnan(dq[1, 0, ROW]).all()


@pytest.mark.deep
def test_gradients_show_what_is_not_finite() -> None:
    """Through the public function, on the default backend and the interpreted kernels."""
    x = oracle.problem(CASE)
    q = x["q"].copy()
    q[0, 0, ROW, 0, 0] = NAN
    for implementation in ("xla", "interpret"):
        call = partial(tda_attention, implementation=implementation, beta=0.5)
        loss = lambda q, k, v, lam, call=call: jnp.sum(call(q, k, v, lam) ** 2)
        grads = jax.jit(jax.grad(loss, (0, 1, 2, 3)), compiler_options=QUICK)(
            q, x["k"], x["v"], x["lam"]
        )
        assert not any(np.isfinite(grad).all() for grad in grads)


@pytest.mark.parametrize("kind", ["tra", "tda"])
@pytest.mark.parametrize("implementation", [None, "reference"])
def test_kinds_and_large_rows(kind: str, implementation: str | None) -> None:
    """Rows of 1e30 are rows of 1; NaN is seen through `attention` and its maps."""
    x = oracle.problem(CASE)
    views = 2 if kind == "tda" else 1
    q, k, v = jnp.asarray(x["q"][:views]), jnp.asarray(x["k"][:views]), jnp.asarray(x["v"])
    call = partial(attention, kind=kind, knobs={"beta": 0.5}, implementation=implementation)
    run = jax.jit(call, compiler_options=QUICK)
    wanted = run(q, k, v)
    assert np.abs(wanted).max() > 0.1
    np.testing.assert_allclose(run(q * 1e30, k * 1e20, v), wanted, atol=1e-5)
    broken = run(q.at[0, 0, ROW, 0].set(NAN), k, v)
    assert np.isnan(broken[0, ROW, 0]).all() and np.isnan(broken).sum() == CASE.Dv


def test_decoding_shows_what_is_not_finite() -> None:
    """A sketch of NaN rules nothing out."""
    rng = np.random.default_rng(0)
    keys = rng.normal(size=(2, 1, 40, 2, 16)).astype(np.float32)
    values = jnp.asarray(rng.normal(size=(1, 40, 2, 8)), jnp.float32)
    q = jnp.asarray(rng.normal(size=(2, 1, 4, 16)), jnp.float32)
    lam = jnp.full(4, 0.5)
    empty = decode.empty_cache(1, 64, 2, 16, 8, jnp.float32)
    run = jax.jit(partial(decode.sketch_decode, budget=8), compiler_options=QUICK)
    cache = decode.append(empty, keys, values)
    assert np.isfinite(run(q, cache, lam)[0]).all()
    assert not run(q, cache, lam)[1].dense
    keys[0, 0, 7, 1, 0] = NAN
    o, _ = run(q, decode.append(empty, keys, values), lam)
    assert np.isnan(o[0, 2:]).all() and np.isfinite(o[0, :2]).all()
    o, statistics = run(q.at[1, 0, 0, 0].set(INF), cache, lam)
    assert np.isnan(o[0, 0]).all() and np.isfinite(o[0, 1:]).all() and statistics.dense


def test_tiles_of_the_gpu_keep_nan() -> None:
    """The forward tile of the Hopper kernels, where all other scores are far under tau."""
    case = emulation.Case("nan", T=64, S=64, H=1, K=1)
    x = emulation.problem(case)
    x = x._replace(tau=jnp.full_like(x.tau, 0.99))
    spec = Spec(case.causal, case.p)
    assert not emulation.emulate(case, x, spec)["live"].any()
    q = x.q.at[1, 0, ROW, 0, 5].set(jnp.nan)
    found = emulation.emulate(case, x._replace(q=q), spec)
    assert found["live"].any() and np.isnan(found["o"][0, ROW]).all()
    assert np.isfinite(np.delete(found["o"], ROW, axis=1)).all()
