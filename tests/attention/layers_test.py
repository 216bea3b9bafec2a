# SPDX-License-Identifier: Apache-2.0
"""Norms, rotary and relative positions, activations, against NumPy in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention import layers
from attention.layers import Llama3Scaling


def test_norms_against_numpy() -> None:
    rng = np.random.default_rng(0)
    x, scale, bias = rng.normal(3, 2, (2, 5, 3, 8)), rng.normal(size=(3, 8)), rng.normal(size=8)
    x32 = jnp.asarray(x, jnp.float32)
    rms = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-3) * scale
    np.testing.assert_allclose(layers.rms_norm(x32, jnp.asarray(scale), 1e-3), rms, rtol=1e-5)
    centered = x - x.mean(-1, keepdims=True)
    normed = centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-3)
    got = layers.layer_norm(x32, jnp.asarray(scale), jnp.asarray(bias), 1e-3)
    np.testing.assert_allclose(got, normed * scale + bias, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(layers.layer_norm(x32, eps=1e-3), normed, rtol=1e-4, atol=1e-5)


def test_norms_of_bfloat16_are_taken_in_float32() -> None:
    """Mean and square of 4096 entries of 300 overflow the mantissa of bfloat16, not of float32."""
    x = jnp.full((1, 4096), 300.0, jnp.bfloat16).at[0, 0].set(-300.0)
    got = layers.rms_norm(x)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.abs(got.astype(jnp.float32)), 1.0)


def test_rope_turns_pairs_and_keeps_relative_angles() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2, 3, 7, 4, 6))  # views, rows, tokens, heads, D
    positions = rng.integers(0, 500, (3, 7))
    frequencies = layers.rope_frequencies(6, 1000.0)
    np.testing.assert_allclose(frequencies, [1000.0 ** (-2 * j / 6) for j in range(3)], rtol=1e-6)
    angle = positions[None, :, :, None, None] * frequencies.astype(np.float64)
    turned = (x[..., :3] + 1j * x[..., 3:]) * np.exp(1j * angle)
    got = layers.rope(jnp.asarray(x, jnp.float32), jnp.asarray(positions), frequencies)
    np.testing.assert_allclose(got, np.concatenate([turned.real, turned.imag], -1), atol=2e-4)
    shifted = layers.rope(jnp.asarray(x, jnp.float32), jnp.asarray(positions + 11), frequencies)
    dots = [np.einsum("vbthd,vbshd->vbhts", z, z) for z in (got, shifted)]
    np.testing.assert_allclose(dots[0], dots[1], atol=1e-3)


def test_ntk_keeps_the_fastest_and_slows_the_slowest() -> None:
    plain, slow = (layers.rope_frequencies(64, 1e4, ntk_factor=s) for s in (1, 8))
    assert slow[0] == plain[0] == 1
    np.testing.assert_allclose(plain[-1] / slow[-1], 8, rtol=1e-5)
    assert (np.diff(plain / slow) > 0).all()


def test_llama3_scaling_piecewise() -> None:
    """Short wavelengths kept, long ones divided, between them the published blend."""
    scaling = Llama3Scaling(factor=8, low=1, high=4, original=100)
    plain = layers.rope_frequencies(32, 1e4)
    got = layers.rope_frequencies(32, 1e4, llama3=scaling)
    kinds = set()
    for before, after in zip(plain.astype(np.float64), got, strict=True):
        wavelength = 2 * math.pi / before
        if wavelength < 100 / 4:
            want, kind = before, "kept"
        elif wavelength > 100 / 1:
            want, kind = before / 8, "divided"
        else:
            t = (100 / wavelength - 1) / (4 - 1)
            want, kind = (1 - t) * before / 8 + t * before, "blended"
        kinds.add(kind)
        np.testing.assert_allclose(after, want, rtol=1e-6)
    assert kinds == {"kept", "divided", "blended"}


def scalar_bucket(ahead: int, bidirectional: bool, count: int, far: int) -> int:
    """T5's rule for one distance, in exact integers where the logarithm would be an integer."""
    base = 0
    if bidirectional:
        count //= 2
        base, distance = (count if ahead > 0 else 0), abs(ahead)
    else:
        distance = max(-ahead, 0)
    if distance < count // 2:
        return base + distance
    grown = count // 2 + int(
        math.log(distance / (count // 2)) / math.log(far / (count // 2)) * (count - count // 2)
        + 1e-6
    )
    return base + min(grown, count - 1)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_relative_buckets(bidirectional: bool) -> None:
    got = np.asarray(
        layers.relative_buckets(
            60, 300, bidirectional=bidirectional, num_buckets=32, max_distance=128, q_offset=140
        )
    )
    for query in range(60):
        for key in range(300):
            ahead = key - (query + 140)
            assert got[query, key] == scalar_bucket(ahead, bidirectional, 32, 128), ahead
    assert set(np.unique(got)) == set(range(32)) - ({16} if bidirectional else set())


def test_activations() -> None:
    x = np.linspace(-4, 4, 41)
    exact = x * np.array([0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x])
    x32 = jnp.asarray(x, jnp.float32)
    np.testing.assert_allclose(layers.gelu(x32, approximate=False), exact, atol=1e-6)
    assert 1e-5 < np.abs(layers.gelu(x32) - exact).max() < 1e-3  # the tanh form, and not the same
    want = x / (1 + np.exp(-x)) * x[::-1]
    np.testing.assert_allclose(layers.swiglu(x32, x32[::-1]), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: layers.rope_frequencies(7), "dim=7"),
        (lambda: layers.rope_frequencies(8, 0), "theta=0"),
        (lambda: layers.rope_frequencies(8, ntk_factor=0.5), "ntk_factor=0.5"),
        (lambda: layers.rope_frequencies(8, llama3=Llama3Scaling(low=4, high=4)), "high"),
        (
            lambda: layers.rope(jnp.ones((1, 2, 1, 8)), jnp.ones((1, 2)), jnp.ones(3)),
            "frequencies of shape",
        ),
        (
            lambda: layers.relative_buckets(2, 2, bidirectional=True, num_buckets=5),
            "num_buckets=5",
        ),
        (
            lambda: layers.relative_buckets(2, 2, bidirectional=False, max_distance=16),
            "max_distance=16",
        ),
    ],
)
def test_bad_arguments_are_named(call, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        call()


def test_norms_have_finite_slopes_at_zero() -> None:
    for norm in (layers.rms_norm, layers.layer_norm):
        slope = jax.grad(lambda x, norm=norm: norm(x).sum())(jnp.zeros((2, 4)))
        assert jnp.isfinite(slope).all()


def test_places_in_packed_texts() -> None:
    ids = jnp.asarray([[0, 0, 1, 1, 1, 2, 2], [3, 3, 3, 1, 1, 0, 0]])
    got = layers.segment_positions(ids, 7)
    want = np.array([[0, 1, 0, 1, 2, 0, 1], [0, 1, 2, 0, 1, 0, 1]])
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(layers.segment_positions(None, 7), [np.arange(7)])


@pytest.mark.parametrize("lead", [(), (5,), (2, 5)])
def test_gradient_of_matmul(lead: tuple[int, ...]) -> None:
    """The gradient that is written out is the one JAX derives, for any number of leading axes."""
    rng = np.random.default_rng(3)
    x = jnp.asarray(rng.normal(size=(*lead, 4)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)
    want = jax.grad(lambda x, w: jnp.sin(x @ w).sum(), argnums=(0, 1))(x, kernel)
    got = jax.grad(lambda x, w: jnp.sin(layers.matmul(x, w)).sum(), argnums=(0, 1))(x, kernel)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_cross_entropy_and_its_gradient() -> None:
    """-log softmax[target] and softmax - one_hot in float64 NumPy, far logits too."""
    rng = np.random.default_rng(4)
    logits = rng.normal(size=(3, 5, 7)) * 30
    targets = rng.integers(0, 7, (3, 5))
    weights = rng.normal(size=(3, 5))
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    one_hot = np.eye(7)[targets]
    nats = -np.log((p * one_hot).sum(-1))

    def loss(x: jax.Array) -> jax.Array:
        return (layers.cross_entropy(x, jnp.asarray(targets)) * weights.astype(np.float32)).sum()

    x = jnp.asarray(logits, jnp.float32)
    np.testing.assert_allclose(
        layers.cross_entropy(x, jnp.asarray(targets)), nats, rtol=1e-4, atol=1e-4
    )
    np.testing.assert_allclose(jax.grad(loss)(x), (p - one_hot) * weights[..., None], atol=1e-5)
