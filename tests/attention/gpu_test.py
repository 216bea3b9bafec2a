# SPDX-License-Identifier: Apache-2.0
"""Mathematics of the Hopper kernels, tile by tile, against float64; what they cover."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention import gpu_check
from attention.kernels import Spec, hopper, pallas_gpu, reference
from attention.tda import tda_attention
from tests.attention import hopper as emulation
from tests.attention.hopper import Case
from tests.tiers import deep_unless

CASES = [
    Case("gqa", H=2, K=1),
    Case("wide", T=130, S=260, D=128, Dv=128, H=1, offset=40, p=3),
    Case("packed", T=140, S=140, Dv=128, H=1, packed=True, p=1),
    Case("full", T=100, S=210, H=1, causal=False, dtype=jnp.float16),
    # tau below 0: masked and added keys must still weigh nothing.
    Case("negative", T=200, S=140, H=1, shift=-0.6),
]


@pytest.mark.parametrize(
    "case", deep_unless(lambda case: case.name == "packed", CASES), ids=lambda case: case.name
)
def test_tiles_against_float64(case: Case) -> None:
    """Output by the bfloat16 rule, gradients of everything within 1 % (measured .25 %)."""
    x = emulation.problem(case)
    wanted = emulation.dense(case, x)
    assert (wanted["e"] > 0)[:, wanted["seen"]].mean() >= 0.05
    found = emulation.emulate(case, x, Spec(case.causal, case.p))
    assert (np.abs(found["o"] - wanted["o"]) <= 2**-7 * (wanted["mass"] + 1e-3)).all()
    bars = {"o": 5e-3, "q": 1e-2, "k": 1e-2, "v": 1e-2, "tau": 1e-4, "lam": 1e-4}
    for name, bar in bars.items():
        error = emulation.relative(found[name], wanted[name])
        assert error <= bar, f"{name}: {error:.1e}"


def test_flags_are_those_of_live_tiles() -> None:
    """Exactly the tiles with a survivor in either view; some only in the second, some in none."""
    case = Case("sparse", T=300, S=300, shift=0.25)
    x = emulation.problem(case)
    e = emulation.dense(case, x)["e"]
    found = emulation.emulate(case, x, Spec(case.causal, case.p))
    keys = hopper.tiling(case.D, case.Dv).keys
    size = [(0, 0)] * 3 + [(0, -case.T % 128), (0, -case.S % keys)]
    tiles = np.pad(e, size)
    tiles = tiles.reshape(*e.shape[:3], tiles.shape[3] // 64, 64, tiles.shape[4] // keys, keys)
    live = tiles.max((4, 6)) > 0
    np.testing.assert_array_equal(found["live"], live[0] | live[1])
    assert (live[1] & ~live[0]).any() and (live[0] & ~live[1]).any()
    assert 0.1 < found["live"].mean() < 0.5
    # ... and leaving the others out changes no bit of anything.
    every = emulation.emulate(case, x, Spec(case.causal, case.p, skip=False))
    assert every["fine"].sum() > found["fine"].sum()
    for name in ("o", *emulation.NAMES):
        np.testing.assert_array_equal(found[name], every[name], err_msg=name)


def test_scores_within_rounding_of_tau_are_live() -> None:
    """p = 1, whose slope jumps: no tile is dead that another order of additions may find alive."""
    case = Case("ulp", T=64, S=64, H=1, p=1)
    x = emulation.problem(case)
    s = np.stack([emulation.dot(x.q[t, 0, :, 0], x.k[t, 0, :, 0].T) for t in range(2)])
    largest = np.where(np.tri(64, dtype=bool), s, -1).max((0, 2))
    assert 0.5 < largest.min() and largest.max() < 1.1
    spec = Spec(case.causal, case.p)
    ulp = np.spacing(largest)
    for added, is_live in ((-ulp, True), (ulp, True), (8 * ulp, True), (1e-3, False)):
        near = x._replace(tau=jnp.asarray(largest + added)[None, None])
        found = emulation.emulate(case, near, spec)
        assert found["live"][0, 0, 0, 0] == is_live
        if np.all(added > ulp):
            assert not found["o"].any()  # no survivor in this order of additions
        every = emulation.emulate(case, near, spec._replace(skip=False))
        for name in ("o", *emulation.NAMES):
            np.testing.assert_array_equal(found[name], every[name], err_msg=name)


def test_lists_of_live_tiles() -> None:
    live = np.random.default_rng(0).random((2, 3, 5, 7)) < 0.3
    live[0, 0, 0], live[0, 0, 1] = False, True
    counts, index = (np.asarray(y) for y in hopper.compact(jnp.asarray(live)))
    np.testing.assert_array_equal(counts, live.sum(-1))
    for at in np.ndindex(live.shape[:-1]):
        np.testing.assert_array_equal(index[at][: counts[at]], np.flatnonzero(live[at]))


def test_causal_limits() -> None:
    """How many key tiles rows see, and which tiles are cut, pair by pair."""
    num, keys, rows = 4, 8, 6
    for offset, first in itertools.product((-20, -3, 0, 1, 5, 7, 40), (0, 6, 12)):
        i, j = first + np.arange(rows)[:, None], np.arange(num * keys)[None]
        seen = (j <= i + offset).reshape(rows, num, keys)
        found = hopper.key_tiles(jnp.int32(first), rows, keys, num, offset)
        assert int(found) == seen.any((0, 2)).sum(), (offset, first)
        for tile in range(num):
            cut = bool(hopper.crosses(jnp.int32(first), jnp.int32(tile * keys), keys, offset))
            assert cut == (not seen[:, tile].all()), (offset, first, tile)
    assert int(hopper.key_tiles(jnp.int32(6), rows, keys, num, None)) == num


@pytest.mark.parametrize("D", hopper.HEAD_SIZES)
@pytest.mark.parametrize("Dv", hopper.HEAD_SIZES)
def test_tilings_fit(D: int, Dv: int) -> None:
    tiles = hopper.tiling(D, Dv)
    assert min(tiles.stages, tiles.stages_dq, tiles.stages_dkv) >= 2 and tiles.keys % 64 == 0
    scores = 2 * 64 * tiles.keys / 128  # float32 registers a thread, two views
    assert scores + 64 * Dv / 128 <= 192


def shapes(**change: Any) -> tuple[list[Any], dict[str, Any]]:
    B, T, S, H, K, D = 2, 40, 50, 4, 2, 64
    dtype = change.pop("dtype", jnp.bfloat16)
    D, Dv = change.pop("D", D), change.pop("Dv", D)
    struct = lambda *shape: jax.ShapeDtypeStruct(shape, dtype)
    options = dict(q_segment_ids=None, kv_segment_ids=None, q_offset=None, spec=Spec(True, 2))
    return [struct(2, B, T, H, D), struct(2, B, S, K, D), struct(B, S, K, Dv)], options | change


def test_covers() -> None:
    ids = dict(q_segment_ids=np.ones((2, 40), np.int32), kv_segment_ids=np.ones((2, 50), np.int32))
    good = [{}, {"dtype": jnp.float16}, {"D": 128}, {"Dv": 128}, {"q_offset": 3}, ids]
    good += [{"spec": Spec(causal, p)} for causal in (True, False) for p in (1, 2, 3)]
    for change in good:
        arguments, options = shapes(**change)
        assert pallas_gpu.covers(*arguments, **options) == "", change
    bad: list[tuple[dict[str, Any], str]] = [
        ({"dtype": jnp.float32}, "v has dtype float32"),
        ({"D": 96}, "D=96"),
        ({"Dv": 32}, "Dv=32"),
        ({"spec": Spec(True, 1.5)}, "p=1.5"),
        ({"spec": Spec(True, 4)}, "p=4"),
        ({"q_offset": jnp.zeros(2, jnp.int32)}, "q_offset is an array"),
    ]
    for change, reason in bad:
        arguments, options = shapes(**change)
        assert pallas_gpu.covers(*arguments, **options).startswith(reason), change
    arguments, options = shapes()
    arguments[1] = jax.ShapeDtypeStruct(arguments[1].shape, jnp.float16)
    assert "must agree" in pallas_gpu.covers(*arguments, **options)


def test_bad_input_is_named() -> None:
    q = np.ones((2, 1, 8, 2, 32), np.float32)
    with pytest.raises(ValueError, match=r"pallas_gpu.*does not cover.*float32"):
        tda_attention(q, q, q[0], np.ones(2, np.float32), implementation="pallas_gpu")
    half = jnp.asarray(q, jnp.bfloat16)
    with pytest.raises(ValueError, match="D=32"):
        tau, lam = jnp.zeros((1, 2, 8)), jnp.ones(2)
        pallas_gpu.tda(half, half, half[0], tau, lam, None, None, 0, Spec(True, 2))


def test_check_needs_a_hopper_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    if gpu_check.hopper() is not None:
        pytest.skip("there is a Hopper GPU: python -m attention.gpu_check")
    assert gpu_check.main([]) == 2
    assert "not run: no Hopper GPU" in capsys.readouterr().out


@pytest.mark.deep
@pytest.mark.parametrize("D", hopper.HEAD_SIZES)
def test_check_compares(monkeypatch: pytest.MonkeyPatch, D: int) -> None:
    """The comparison itself: what is right passes, a wrong gradient fails by name."""

    def play(q: Any, k: Any, v: Any, tau: Any, lam: Any) -> jax.Array:
        q, k, v = (y.astype(jnp.float32) for y in (q, k, v))
        return reference.tda(q, k, v, tau, lam, None, None, 0, gpu_check.SPEC)

    monkeypatch.setattr(gpu_check, "oracle", play)  # dense: compiles fast
    shape = gpu_check.Shape(T=1000 if D == 64 else 130, D=D, H=1, K=1)
    row = gpu_check.compare(shape, play)
    assert not gpu_check.failures(row)
    if D == 64:
        return

    def wrong(q: Any, k: Any, *rest: Any) -> jax.Array:
        return play(q, k + 0.05 * (k - jax.lax.stop_gradient(k)), *rest)

    row = gpu_check.compare(shape, wrong)
    (failure,) = gpu_check.failures(row)
    assert failure.startswith("dk: ") and 0.03 < row["errors"]["dk"] < 0.06
    assert gpu_check.failures({**row, "errors": {"o": float("nan")}}) == ["o: nan > 5.0e-03"]
    assert gpu_check.failures({"errors": {}, "bit_equal": False, "density": 0.1})
    assert gpu_check.failures({"errors": {}, "bit_equal": True, "density": 0.0})
