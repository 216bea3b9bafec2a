# SPDX-License-Identifier: Apache-2.0
"""Properties of threshold differential attention, its argument checks and its output norm."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention.kernels import Spec, pallas_tpu
from attention.tda import normalize, output_norm, tda_attention, threshold
from tests.attention import oracle
from tests.attention.oracle import Case

CASE = Case("small", T=24, S=24, H=4, K=2, Dv=8)
NAMES = ("q", "k", "v", "lam", "beta", "kappa")


def attend_as_shipped(
    q: Any,
    k: Any,
    v: Any,
    lam: Any,
    beta: Any = 0.5,
    kappa: Any = 1.0,
    ids: Any = None,
    **options: Any,
) -> jax.Array:
    return tda_attention(
        q, k, v, lam, beta=beta, kappa=kappa, q_segment_ids=ids, kv_segment_ids=ids, **options
    )


# Compiling takes all the time here; one test compiles as users do.
QUICK = {"xla_backend_optimization_level": 0}
attend = jax.jit(
    attend_as_shipped,
    static_argnames=("causal", "p", "implementation"),
    compiler_options=QUICK,
)


def gradients(loss: Any, *inputs: Any) -> tuple[jax.Array, ...]:
    """Of a scalar in all inputs; `loss` calls attend_as_shipped."""
    grad = jax.grad(loss, argnums=tuple(range(len(inputs))))
    return jax.jit(grad, compiler_options=QUICK)(*inputs)


@pytest.fixture(scope="module")
def x() -> dict[str, Any]:
    return oracle.problem(CASE)


def inputs(x: dict[str, Any]) -> list[Any]:
    return [x[name] for name in NAMES]


@pytest.mark.parametrize("implementation", ["reference", "xla", None, "interpret"])
def test_implementations_agree(x: dict[str, Any], implementation: str | None) -> None:
    o = attend(*inputs(x), implementation=implementation)
    wanted = oracle.solve(CASE, x)["o"]
    assert o.shape == wanted.shape and o.dtype == jnp.float32
    assert np.abs(o - wanted).max() <= 2e-6 * np.abs(wanted).max()


@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_float64(x: dict[str, Any], implementation: str) -> None:
    """Under x64 everything is computed in float64, thresholds and norms included."""
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(y, np.float64)) for y in inputs(x)]
        o = attend(*wide, implementation=implementation)
        assert o.dtype == jnp.float64
        np.testing.assert_allclose(np.asarray(o), oracle.solve(CASE, x)["o"], atol=1e-12)


def test_gradients_through_the_public_function(x: dict[str, Any]) -> None:
    """platform_dependent, rematerialized norms and thresholds in between: same gradients."""
    grads = gradients(lambda *y: jnp.sum(attend_as_shipped(*y) * x["g"]), *inputs(x))
    wanted = oracle.solve(CASE, x)
    for name, grad in zip(NAMES, grads, strict=True):
        error = np.abs(grad - wanted[name]).max() / np.abs(wanted[name]).max()
        assert error <= 2e-6, (name, error)


def test_scale_of_queries_and_keys_is_ignored(x: dict[str, Any]) -> None:
    q, k, *rest = inputs(x)
    o = attend(q, k, *rest)
    rows = np.random.default_rng(0).uniform(0.1, 9, (*q.shape[:-1], 1)).astype(np.float32)
    np.testing.assert_allclose(attend(q * rows, k * np.float32(3), *rest), o, atol=1e-5)
    # ... so the gradient has no part along the query itself.
    (dq,) = gradients(lambda q: jnp.sum(attend_as_shipped(q, k, *rest) * x["g"]), q)
    along = np.abs(np.einsum("vbthd,vbthd->vbth", q, dq)).max()
    assert along <= 1e-5 * np.abs(dq).max() * np.abs(q).max() * CASE.D and np.abs(dq).max() > 0.01


def test_linear_in_values(x: dict[str, Any]) -> None:
    q, k, v, *rest = inputs(x)
    other = np.roll(v, 1, axis=1)
    both = attend(q, k, 2 * v - other, *rest)
    np.testing.assert_allclose(
        both, 2 * attend(q, k, v, *rest) - attend(q, k, other, *rest), atol=2e-5
    )
    assert np.abs(both).max() > 0.1


def test_key_order_is_ignored_without_causality(x: dict[str, Any]) -> None:
    q, k, v, *rest = inputs(x)
    order = np.random.default_rng(0).permutation(CASE.S)
    o = attend(q, k, v, *rest, causal=False)
    np.testing.assert_allclose(
        attend(q, k[:, :, order], v[:, order], *rest, causal=False), o, atol=1e-5
    )
    assert np.abs(o - attend(q, k, v[:, order], *rest, causal=False)).max() > 0.1


def test_values_of_losers_do_not_matter(x: dict[str, Any]) -> None:
    """Changing v where a row has no survivor changes not one bit of that row."""
    q, k, v, *rest = inputs(x)
    a = oracle.solve(CASE, x)["a"]  # [B, H, T, S]
    o, key = attend(q, k, v, *rest), 9
    changed = attend(q, k, np.where(np.arange(CASE.S)[None, :, None, None] == key, v + 5, v), *rest)
    lost = np.moveaxis(a[..., key] == 0, 1, 2)
    assert 0.1 < lost.mean() < 1
    np.testing.assert_array_equal(np.asarray(changed)[lost], np.asarray(o)[lost])
    assert (np.asarray(changed)[~lost] != np.asarray(o)[~lost]).any(-1).all()


def test_lambda(x: dict[str, Any]) -> None:
    """0 leaves the first view alone; identical views with 1 cancel exactly."""
    q, k, v, lam, *rest = inputs(x)
    second = np.stack([q[0], q[1][:, ::-1]]), np.stack([k[0], k[1][:, ::-1]])
    zero = np.zeros_like(lam)
    o = attend(q, k, v, zero, *rest)
    np.testing.assert_array_equal(attend(*second, v, zero, *rest), o)
    assert np.abs(o).max() > 0.1 and np.abs(attend(*second, v, lam, *rest) - o).max() > 0.1
    twins = np.stack([q[0], q[0]]), np.stack([k[0], k[0]])
    assert not np.asarray(jax.jit(attend_as_shipped)(*twins, v, zero + 1, *rest)).any()


def test_the_future_is_not_seen(x: dict[str, Any]) -> None:
    q, k, v, *rest = inputs(x)
    late = np.arange(CASE.T) >= 11
    row, key = late[None, None, :, None, None], late[None, :, None, None]
    o = attend(q, k, v, *rest)
    changed = attend(np.where(row, -q, q), np.where(row, 2 - k, k), np.where(key, 7, v), *rest)
    np.testing.assert_array_equal(changed[:, :11], o[:, :11])
    assert np.abs(changed[:, 11:] - o[:, 11:]).max() > 0.1


def test_segments_are_alone(x: dict[str, Any]) -> None:
    """A packed document gets what it gets on its own; padding gets 0 and gives no gradient."""
    q, k, v, *rest = inputs(x)
    ids = np.repeat(np.array([[4] * 10 + [9] * 9 + [0] * 5], np.int32), 2, axis=0)
    packed = attend(q, k, v, *rest, ids=ids)
    alone = attend(q[:, :, 10:19], k[:, :, 10:19], v[:, 10:19], *rest)
    np.testing.assert_allclose(packed[:, 10:19], alone, atol=1e-6)
    assert np.abs(alone).max() > 0.1 and not np.asarray(packed[:, 19:]).any()
    grads = gradients(lambda *y: jnp.sum(attend_as_shipped(*y, *rest, ids=ids) ** 2), q, k, v)
    assert not any(np.asarray(g)[..., 19:, :, :].any() for g in grads)
    assert all(np.asarray(g)[..., :19, :, :].any() for g in grads)


def test_the_first_row_has_no_threshold(x: dict[str, Any]) -> None:
    q, k, v, lam, *_ = inputs(x)
    units = (normalize(jnp.asarray(y))[:, :, 0] for y in (q, np.repeat(k, 2, 3)))
    cosine = np.einsum("vbhd,vbhd->vbh", *units)
    w = np.maximum(cosine, 0) ** 2
    wanted = (w[0] - lam * w[1])[..., None] * np.repeat(v, 2, axis=2)[:, 0]
    assert (w > 0).mean() > 0.2
    np.testing.assert_allclose(attend(q, k, v, lam, beta=50.0)[:, 0], wanted, atol=1e-6)


def test_huge_beta_is_silent_and_finite(x: dict[str, Any]) -> None:
    """All rows but the first are exactly 0, with gradients of exactly 0; also for zero queries."""
    q, k, v, lam, *_ = inputs(x)
    q = q * (np.arange(CASE.T) != 5)[None, None, :, None, None]
    silent = lambda *y: attend_as_shipped(*y)[:, 1:]
    arguments = (q, k, v, lam, np.float32(50.0), np.float32(1.0))
    assert not np.asarray(silent(*arguments)).any()
    loss = lambda *y: jnp.sum((silent(*y) + 0.5) ** 2)
    for grad in gradients(loss, *arguments):
        assert not np.asarray(grad).any()
    arguments = (*arguments[:4], np.float32(0.3), np.float32(1.0))
    live = gradients(lambda *y: jnp.sum(attend_as_shipped(*y)), *arguments)
    assert all(np.isfinite(grad).all() and np.asarray(grad).any() for grad in live)


def test_per_sequence_offsets(x: dict[str, Any]) -> None:
    """A batch of caches of different fill, each against its own call."""
    q, k, v, *rest = inputs(x)
    offsets = np.array([7, 15])
    o = attend(q[:, :, :5], k, v, *rest, q_offset=offsets)
    for b, offset in enumerate(offsets):
        one = slice(b, b + 1)
        alone = attend(q[:, one, :5], k[:, one], v[one], *rest, q_offset=jnp.int32(offset))
        np.testing.assert_allclose(o[one], alone, atol=1e-6)
        cut = offset + 5
        wanted = attend(q[:, one, :5], k[:, one, :cut], v[one, :cut], *rest)
        np.testing.assert_allclose(o[one], wanted, atol=1e-6)


def test_threshold() -> None:
    """tau = beta sqrt(2 log(n / kappa) / d), 0 up to n = kappa, with finite gradients there."""
    n = jnp.asarray([[0, 1, 4, 1024]])
    tau = threshold(n, 64, 1.0, 1.0)
    np.testing.assert_allclose(tau, [[[0, 0, np.sqrt(np.log(4) / 32), 0.46540]]], rtol=1e-4)
    np.testing.assert_allclose(threshold(n, 64, 2.0, 1.0), 2 * tau)
    assert not np.asarray(threshold(n, 64, 1.0, 1024.0)).any()
    for argument in (0, 1):
        slope = jax.grad(lambda *y: threshold(n, 64, *y).sum(), argument)(1.0, 1.0)
        assert np.isfinite(slope) and slope != 0


def test_output_norm() -> None:
    o = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4, 8)), jnp.float32)
    scale = jnp.linspace(0.5, 2, 32).reshape(4, 8)
    wanted = np.asarray(o) / np.sqrt(np.mean(np.square(o), -1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(output_norm(o, scale), wanted * np.asarray(scale), rtol=1e-5)
    faint = output_norm(o * 1e-3)  # mean squares near eps: damped, not blown up to 1
    assert 0.4 < np.sqrt(np.mean(np.square(faint))) < 0.9
    assert output_norm(o.astype(jnp.bfloat16)).dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="scale has shape"):
        output_norm(o, scale[0])


def malformed() -> dict[str, tuple[dict[str, Any], str]]:
    """What is changed in a good call, and how the message begins."""
    f32 = np.float32

    def zeros(*shape: int, dtype: Any = f32) -> np.ndarray:
        return np.zeros(shape, dtype)

    ids = zeros(2, 24, dtype=np.int32)
    return {
        "views": (dict(q=zeros(3, 2, 24, 4, 16)), "q has shape"),
        "rank": (dict(q=zeros(2, 2, 24, 64)), "q has shape"),
        "head dim": (dict(k=zeros(2, 2, 24, 2, 8)), "k has shape"),
        "batch": (dict(k=zeros(2, 1, 24, 2, 16)), "k has shape"),
        "keys": (dict(v=zeros(2, 23, 2, 8)), "v has shape"),
        "empty": (dict(q=zeros(2, 2, 0, 4, 16)), "q has shape"),
        "groups": (dict(k=zeros(2, 2, 24, 3, 16), v=zeros(2, 24, 3, 8)), "q has H=4 heads"),
        "integers": (dict(q=zeros(2, 2, 24, 4, 16, dtype=np.int32)), "q has dtype"),
        "mixed": (dict(v=zeros(2, 24, 2, 8, dtype=np.float16)), "v has dtype"),
        "lam": (dict(lam=zeros(2)), "lam has shape"),
        "one id": (dict(q_segment_ids=ids), "kv_segment_ids is missing"),
        "id length": (
            dict(q_segment_ids=ids, kv_segment_ids=ids[:, 1:]),
            "kv_segment_ids has shape",
        ),
        "id dtype": (
            dict(q_segment_ids=ids + f32(0), kv_segment_ids=ids),
            "q_segment_ids has dtype",
        ),
        "offset": (dict(q_offset=zeros(3, dtype=np.int32)), "q_offset has shape"),
        "p": (dict(p=0.5), "p=0.5"),
        "beta": (dict(beta=0.0), "beta=0.0"),
        "a beta": (dict(beta=np.array([1, 1, -1, 1], f32)), "beta="),
        "betas": (dict(beta=zeros(2) + 1), "beta has shape"),
        "kappa": (dict(kappa=-1.0), "kappa=-1.0"),
        "name": (dict(implementation="triton"), "implementation='triton'"),
        "uncovered": (dict(q_offset=np.array([1, 2]), implementation="pallas_tpu"), ".*q_offset"),
    }


@pytest.mark.parametrize("what", malformed())
def test_bad_input_is_named(x: dict[str, Any], what: str) -> None:
    """ValueError while tracing: nothing is lowered."""
    change, message = malformed()[what]
    good = {name: x[name] for name in ("q", "k", "v", "lam")}
    with pytest.raises(ValueError, match=f"^{message}"):
        tda_attention(**(good | change))


def test_bad_blocks() -> None:
    rows, tau = jnp.zeros((2, 1, 64, 1, 8)), jnp.zeros((1, 1, 64))
    call = (rows, rows, rows[0], tau, jnp.zeros(1), None, None, 0, Spec(True, 2))
    with pytest.raises(ValueError, match="block_q=64"):
        pallas_tpu.tda(*call, block_q=64)
