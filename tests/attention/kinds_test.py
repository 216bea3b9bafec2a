# SPDX-License-Identifier: Apache-2.0
"""Every kind of attention against a NumPy oracle of its own, row by row in float64."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from attention import kinds

B, T, S, H, KV, D, DV = 2, 11, 13, 4, 2, 8, 6
# Rows: padding, two packed texts; keys: padding at both ends.
Q_IDS = np.array([[0, 0] + [1] * 5 + [2] * 4, [1] * 3 + [2] * 6 + [0] * 2], np.int32)
KV_IDS = np.array([[0] * 2 + [1] * 6 + [2] * 5, [1] * 4 + [2] * 7 + [0] * 2], np.int32)
MASKS: dict[str, dict[str, Any]] = {
    "causal": {},
    "full": {"causal": False},
    "packed": {"q_segment_ids": Q_IDS, "kv_segment_ids": KV_IDS},
    "packed_full": {"q_segment_ids": Q_IDS, "kv_segment_ids": KV_IDS, "causal": False},
    "early": {"q_offset": -3},  # the first three rows see nothing
    "rows": {"q_offset": np.array([2, 5], np.int32)},
}
KNOBS: dict[str, dict[str, Any]] = {
    "softmax": {"logit_scale": 0.7},
    "ssmax": {"scale": np.linspace(0.3, 1.2, H)},
    "rela": {},
    "tra": {"beta": 0.4, "p": 2},
    "diff": {"lam": np.linspace(0.1, 0.9, H)},
    "sigmoid": {},
    "entmax15": {"logit_scale": 1.0},
    "tda": {"beta": np.linspace(0.3, 0.7, H), "kappa": 1.2, "lam": np.linspace(0.1, 0.9, H)},
}


def draw(kind: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng, V = np.random.default_rng(seed), kinds.views(kind)
    return (
        rng.normal(size=(V, B, T, H, D)),
        rng.normal(size=(V, B, S, KV, D)),
        # softmax hands values as wide as keys to jax.nn, others go through blocks
        rng.normal(size=(B, S, KV, D if kind == "softmax" else DV)),
    )


def seen_keys(mask: dict[str, Any], b: int, i: int) -> list[int]:
    offset = mask.get("q_offset", S - T)
    last = i + (offset if np.ndim(offset) == 0 else int(offset[b]))
    keys = [j for j in range(S) if not mask.get("causal", True) or j <= last]
    if "q_segment_ids" in mask:
        mine = Q_IDS[b, i]
        keys = [j for j in keys if mine != 0 and KV_IDS[b, j] == mine]
    return keys


def softmax(x: np.ndarray) -> np.ndarray:
    grown = np.exp(x - x.max())
    return grown / grown.sum()


def entmax(x: np.ndarray) -> np.ndarray:
    """Bisection for the threshold, to the last bit of float64."""
    low, high = x.max() / 2 - 1, x.max() / 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if (np.maximum(x / 2 - middle, 0) ** 2).sum() > 1 else (low, middle)
        )
    return np.maximum(x / 2 - low, 0) ** 2


def one_row(kind: str, s: list[np.ndarray], cos: list[np.ndarray], knobs: dict[str, Any], h: int):
    """Weights of one row over the keys it sees, from scaled scores and cosines of its views."""
    n = len(s[0])
    value = {k: (v if np.ndim(v) == 0 else v[h]) for k, v in knobs.items()}
    if kind == "softmax":
        return softmax(s[0])
    if kind == "ssmax":
        return softmax(value["scale"] * math.log(n) * s[0])
    if kind == "rela":
        return np.maximum(s[0], 0)
    if kind == "diff":
        return softmax(s[0]) - value["lam"] * softmax(s[1])
    if kind == "sigmoid":
        return 1 / (1 + np.exp(-(s[0] - math.log(n))))
    if kind == "entmax15":
        return entmax(s[0])
    tau = value["beta"] * math.sqrt(2 * math.log(max(n / value.get("kappa", 1), 1)) / D)
    w = [np.maximum(c - tau, 0) ** 2 for c in cos]
    return w[0] if kind == "tra" else w[0] - value["lam"] * w[1]


def oracle(kind: str, q: np.ndarray, k: np.ndarray, mask: dict[str, Any], knobs: dict[str, Any]):
    A = np.zeros((B, H, T, S))
    scale = knobs.get("logit_scale", D**-0.5)
    for b in range(B):
        for h in range(H):
            for i in range(T):
                keys = seen_keys(mask, b, i)
                if not keys:
                    continue
                rows, heads = q[:, b, i, h], k[:, b, keys, h // (H // KV)]
                dots = [heads[t] @ rows[t] for t in range(len(rows))]
                cos = [
                    dots[t] / np.linalg.norm(rows[t]) / np.linalg.norm(heads[t], axis=-1)
                    for t in range(len(rows))
                ]
                A[b, h, i, keys] = one_row(kind, [scale * x for x in dots], cos, knobs, h)
    return A


def single(*arrays: np.ndarray) -> list[jax.Array]:
    return [jnp.asarray(x, jnp.float32) for x in arrays]


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_map_and_output_against_the_oracle(kind: str) -> None:
    q, k, v = draw(kind)
    for name, mask in MASKS.items():
        want = oracle(kind, q, k, mask, KNOBS[kind])
        arrays = single(q, k, v)
        A = kinds.attention_map(*arrays[:2], kind=kind, knobs=KNOBS[kind], **mask)
        assert A.dtype == jnp.float32 and A.shape == (B, H, T, S)
        np.testing.assert_allclose(A, want, atol=3e-6, err_msg=name)
        seen = np.array([[len(seen_keys(mask, b, i)) for i in range(T)] for b in range(B)])
        live = (want != 0).sum() / (H * seen.sum())
        assert live >= 0.05, f"{live:.3f} of the visible entries are live"
        out = np.einsum("bhts,bshd->bthd", want, np.repeat(v, H // KV, axis=2))
        for implementation in (None, "reference"):
            options: Any = {"kind": kind, "knobs": KNOBS[kind], "implementation": implementation}
            o = kinds.attention(*arrays, **options, **mask)
            np.testing.assert_allclose(o, out, atol=1e-5, err_msg=f"{name} {implementation}")
            assert (np.asarray(o)[seen == 0] == 0).all()  # rows that see nothing


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_blocks_of_queries_equal_the_whole(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values and gradients of the memory-linear path, with a last block that is not full."""
    arrays = single(*draw(kind, 1))
    bias = None
    if kinds.takes_bias(kind):
        bias = jax.random.normal(jax.random.key(0), (1, H, T, S))
    wide = arrays[2].shape[-1]
    weights = jnp.asarray(np.random.default_rng(2).normal(size=(B, T, H, wide)), jnp.float32)

    def loss(implementation: str, q: Any, k: Any, v: Any, bias: Any) -> jax.Array:
        options: Any = {"kind": kind, "knobs": KNOBS[kind], "bias": bias, **MASKS["packed"]}
        return (kinds.attention(q, k, v, implementation=implementation, **options) * weights).sum()

    results = []
    for implementation in ("reference", "xla"):
        monkeypatch.setattr(kinds, "CHUNK", 4)
        call = jax.jit(
            jax.value_and_grad(lambda *xs, i=implementation: loss(i, *xs), argnums=(0, 1, 2, 3))
            if bias is not None
            else jax.value_and_grad(lambda *xs, i=implementation: loss(i, *xs), argnums=(0, 1, 2))
        )
        results.append(call(*arrays, bias))
    for want, got in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-5)
    assert all(float(jnp.abs(x).max()) > 1e-3 for x in jax.tree.leaves(results[0]))


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_gradients_by_finite_differences(kind: str) -> None:
    """Of the map, in q, k and every learned knob, in float64."""
    with jax.enable_x64(True):
        q, k, _ = draw(kind, 3)
        knobs = {n: v for n, v in KNOBS[kind].items() if n not in ("p", "logit_scale")}
        fixed = {n: v for n, v in KNOBS[kind].items() if n in ("p", "logit_scale")}
        names = list(knobs)
        weights = np.random.default_rng(4).normal(size=(1, H, 5, S))

        @jax.jit
        def loss(q: jax.Array, k: jax.Array, *values: jax.Array) -> jax.Array:
            given = {**fixed, **dict(zip(names, values, strict=True))}
            A = kinds.attention_map(q, k, kind=kind, knobs=given, q_offset=0)
            return (A * weights).sum()

        arguments = (q[:, :1, :5], k[:, :1], *(jnp.asarray(knobs[n], float) for n in names))
        check_grads(loss, arguments, order=1, modes=["rev"], atol=1e-5, rtol=1e-5, eps=1e-6)


def test_rows_have_the_weight_their_kind_promises() -> None:
    """Sums, signs and exact zeros."""
    maps = {
        kind: np.asarray(
            kinds.attention_map(*single(*draw(kind)[:2]), kind=kind, knobs=KNOBS[kind])
        )
        for kind in kinds.KINDS
    }
    for kind in ("softmax", "ssmax", "entmax15"):
        np.testing.assert_allclose(maps[kind].sum(-1), 1, atol=1e-6)
    lam = KNOBS["diff"]["lam"]
    want = np.broadcast_to(1 - lam[None, :, None], (B, H, T))
    np.testing.assert_allclose(maps["diff"].sum(-1), want, atol=1e-6)
    seen = np.tril(np.ones((T, S), bool), S - T)
    zeros = {kind: (A[:, :, seen] == 0).mean() for kind, A in maps.items()}
    for kind in ("rela", "tra", "tda", "entmax15"):
        assert 0.05 < zeros[kind] < 0.95, (kind, zeros[kind])
    for kind in ("softmax", "ssmax", "sigmoid", "diff"):
        assert zeros[kind] == 0, kind
    for kind in ("diff", "tda"):
        assert (maps[kind] < 0).any() and (maps[kind] > 0).any()
    for kind in set(kinds.KINDS) - {"diff", "tda"}:
        assert (maps[kind] >= 0).all()
    assert maps["sigmoid"].sum(-1).max() > 1.05  # rows of a sigmoid have no fixed weight
    for A in maps.values():
        assert (A[:, :, ~seen] == 0).all()


def test_equal_scores_give_what_the_formulas_say() -> None:
    """All scores 0: softmax, ssmax and entmax are uniform; a sigmoid weighs 1 / (1 + n)."""
    q, k = jnp.zeros((1, 1, 3, 2, 4)), jnp.ones((1, 1, 3, 1, 4))
    n = np.array([1, 2, 3])
    for kind in ("softmax", "ssmax", "entmax15", "sigmoid", "rela"):
        A = np.asarray(kinds.attention_map(q, k, kind=kind))[0, 0]
        want = {"sigmoid": 1 / (1 + n), "rela": 0 * n}.get(kind, 1 / n)
        np.testing.assert_allclose(A[:, 0], want, atol=1e-6, err_msg=kind)


@pytest.mark.parametrize("spread", [1e-3, 0.3, 3.0, 30.0])
def test_entmax_of_long_rows(spread: float) -> None:
    """5000 entries, from almost uniform to one winner: the sum is 1 and the support is right."""
    x = np.random.default_rng(5).normal(size=(3, 5000)) * spread
    x[1] = np.sort(x[1])
    x[2, :4] = x[2].max() + np.array([0, 0.5, 1.0, 1.5])
    got = np.asarray(kinds.entmax15(jnp.asarray(x, jnp.float32), jnp.ones((1, 5000), bool)))
    x = np.asarray(jnp.asarray(x, jnp.float32), np.float64)
    want = np.stack([entmax(row) for row in x])
    np.testing.assert_allclose(got.sum(-1), 1, atol=1e-5)
    np.testing.assert_allclose(got, want, atol=2e-6)


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_nothing_reads_what_it_may_not_see(kind: str) -> None:
    """Later keys, other texts and padding may hold anything, even infinities in v's place."""
    q, k, v = single(*draw(kind, 6))
    options: Any = {"kind": kind, "knobs": KNOBS[kind], **MASKS["packed"]}
    want = kinds.attention(q, k, v, **options)
    first = 5  # of row 0: sees keys up to 7; text 2 begins at key 8, padding ends at key 1
    hidden = np.r_[0:2, 8:13]
    k, v = k.at[:, 0, hidden].set(1e4), v.at[0, hidden].set(-1e4)
    got = kinds.attention(q, k, v, **options)
    np.testing.assert_array_equal(got[0, : first + 2], want[0, : first + 2])
    assert jnp.abs(want[0, 2:7]).max() > 0
    assert not jnp.array_equal(got[0, 8:], want[0, 8:])  # text 2 does see the change


@pytest.mark.parametrize("kind", kinds.BIASED)
def test_bias_is_added_to_the_scaled_scores(kind: str) -> None:
    """After the scale, and after the log n of ssmax; in both views of diff."""
    q, k, v = draw(kind, 7)
    bias = np.random.default_rng(8).normal(size=(1, H, T, S))
    knobs = KNOBS[kind]
    scale = knobs.get("logit_scale", D**-0.5)
    want = np.zeros((B, H, T, S))
    for b in range(B):
        for h in range(H):
            for i in range(T):
                keys = seen_keys({}, b, i)
                dots = [scale * (k[t, b, keys, h // 2] @ q[t, b, i, h]) for t in range(len(q))]
                factor = knobs["scale"][h] * math.log(len(keys)) if kind == "ssmax" else 1.0
                total = [factor * x + bias[0, h, i, keys] for x in dots]
                given = {n: value for n, value in knobs.items() if n != "scale"}
                row = "softmax" if kind == "ssmax" else kind
                want[b, h, i, keys] = one_row(row, total, total, given, h)
    options: Any = {"kind": kind, "knobs": knobs, "bias": single(bias)[0]}
    np.testing.assert_allclose(kinds.attention_map(*single(q, k), **options), want, atol=3e-6)
    out = np.einsum("bhts,bshd->bthd", want, np.repeat(v, H // KV, axis=2))
    np.testing.assert_allclose(kinds.attention(*single(q, k, v), **options), out, atol=1e-5)


def test_bfloat16_is_close_and_keeps_its_dtype() -> None:
    for kind in kinds.KINDS:
        arrays = [jnp.asarray(x, jnp.bfloat16) for x in draw(kind, 9)]
        wide = [x.astype(jnp.float32) for x in arrays]
        got = kinds.attention(*arrays, kind=kind, knobs=KNOBS[kind])
        want = kinds.attention(*wide, kind=kind, knobs=KNOBS[kind])
        assert got.dtype == jnp.bfloat16
        error = float(jnp.abs(got.astype(jnp.float32) - want).max() / jnp.abs(want).max())
        assert error < 0.03, (kind, error)


def test_which_kinds_want_what() -> None:
    assert {k for k in kinds.KINDS if kinds.views(k) == 2} == {"diff", "tda"}
    assert {k for k in kinds.KINDS if kinds.needs_output_norm(k)} == {"rela", "tra", "diff", "tda"}
    refused = {k for k in kinds.KINDS if not kinds.takes_bias(k)}
    assert refused == {"rela", "tra", "tda"}


Q, K, VALUE = jnp.ones((1, 2, 4, 4, 8)), jnp.ones((1, 2, 4, 2, 8)), jnp.ones((2, 4, 2, 8))
IDS = np.ones((2, 4), np.int32)


@pytest.mark.parametrize(
    ("arrays", "options", "named"),
    [
        ((Q, K, VALUE), {"kind": "linear"}, "kind='linear': must be one of softmax, ssmax"),
        ((Q, K, VALUE), {"kind": "tda"}, r"q has shape .* tda takes \[2, B"),
        ((Q, K[:, :1], VALUE), {}, "k has shape"),
        ((Q, jnp.ones((1, 2, 4, 3, 8)), VALUE), {}, "must be a multiple of the Hkv=3"),
        ((Q, K.astype(jnp.bfloat16), VALUE), {}, "k has dtype bfloat16"),
        ((Q, K, VALUE[:, :3]), {}, "v has shape"),
        ((Q, K, VALUE.astype(jnp.float16)), {}, "v has dtype float16"),
        ((Q, K, VALUE), {"kind": "tra", "bias": jnp.ones((1, 4, 4, 4))}, "bias: tra adds none"),
        ((Q, K, VALUE), {"bias": jnp.ones((1, 2, 4, 4))}, "bias has shape"),
        ((Q, K, VALUE), {"knobs": {"lam": 0.5}}, "knobs .'lam'.: softmax allows logit_scale"),
        ((Q, K, VALUE), {"kind": "tra", "knobs": {"beta": 0.0}}, "beta'.=0.0: must be > 0"),
        ((Q, K, VALUE), {"kind": "tra", "knobs": {"p": 0.5}}, "p'.=0.5: must be a number >= 1"),
        ((Q, K, VALUE), {"kind": "tra", "knobs": {"kappa": np.ones(3)}}, "kappa'. has shape"),
        ((Q, K, VALUE), {"q_segment_ids": IDS}, "kv_segment_ids is missing"),
        (
            (Q, K, VALUE),
            {"q_segment_ids": IDS, "kv_segment_ids": IDS[:, :3]},
            "kv_segment_ids has shape",
        ),
        ((Q, K, VALUE), {"q_offset": np.zeros(3, np.int32)}, "q_offset has shape"),
        ((Q, K, VALUE), {"implementation": "flash"}, "softmax allows None, reference, xla, cudnn"),
        ((Q, K, VALUE), {"kind": "rela", "implementation": "cudnn"}, "rela allows None"),
    ],
)
def test_bad_arguments_are_named(arrays: Any, options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        kinds.attention(*arrays, **options)


@pytest.mark.parametrize("kind", ["softmax", "tra"])
def test_memory_grows_linearly(kind: str) -> None:
    """Temporary bytes of the compiled forward and backward, T = 2k to 4k, against dense."""

    def temporary(length: int, implementation: str) -> int:
        q = jax.ShapeDtypeStruct((1, 1, length, 2, 16), jnp.float32)
        v = jax.ShapeDtypeStruct((1, length, 2, 16), jnp.float32)

        def loss(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            return kinds.attention(q, k, v, kind=kind, implementation=implementation).sum()

        compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(q, q, v).compile()
        analysis = compiled.memory_analysis()
        assert analysis is not None
        return analysis.temp_size_in_bytes

    assert temporary(4096, "xla") <= 2.2 * temporary(2048, "xla")
    if kind == "softmax":
        assert temporary(4096, "reference") >= 3.5 * temporary(2048, "reference")
