# SPDX-License-Identifier: Apache-2.0
"""Every backend against the float64 oracle; skipping; bfloat16; memory."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from attention import masks
from attention.kernels import Spec, pallas_tpu, pallas_tpu_tiles, reference, xla
from attention.tda import normalize, tda_attention, threshold
from tests.attention import oracle
from tests.attention.oracle import Case
from tests.tiers import deep_unless

CASES = [
    Case("square", D=32, Dv=32),
    Case("gqa", H=4, K=2, Dv=24, offset=0, skip=False),
    Case("mqa", H=4, K=1, T=35, S=35, block_q=32, block_kv=16),
    Case("packed", ids="packed", T=45, S=45),
    Case("full", causal=False, T=24, S=50, block_q=8, block_kv=16),
    Case("full_mixed", causal=False, ids="mixed", S=33, H=4, p=3),
    Case("chunk", T=20, S=60, D=64, p=1, block_q=16, block_kv=16, skip=False),
    Case("late", T=40, S=24, offset=-6, p=1.5, block_q=16, block_kv=8),
]
# Compiling takes all the time here.
QUICK = {"xla_backend_optimization_level": 0}
INPUTS = ("q", "k", "v", "lam", "beta", "kappa")


def function(case: Case, x: dict[str, Any], module: Any, skip: bool = True, **tuning: Any) -> Any:
    """(q, k, v, lam, beta, kappa) -> o of a backend with given blocks."""
    ids: dict[str, Any] = dict(q_segment_ids=x["q_ids"], kv_segment_ids=x["kv_ids"])
    offset: Any = case.S - case.T if case.offset is None else case.offset

    def call(q: Any, k: Any, v: Any, lam: Any, beta: Any, kappa: Any) -> jax.Array:
        n = masks.row_lengths(case.T, case.S, causal=case.causal, q_offset=offset, **ids)
        tau = threshold(n, case.D, beta, kappa)
        tau = jnp.broadcast_to(tau, (case.B, case.H, case.T))
        spec = Spec(case.causal, case.p, skip)
        return module.tda(
            normalize(q), normalize(k), v, tau, lam, x["q_ids"], x["kv_ids"], offset, spec, **tuning
        )

    return call


def solve(case: Case, x: dict[str, Any], call: Callable[..., jax.Array]) -> dict[str, np.ndarray]:
    """o and the gradients of sum(o * g), by name."""

    @partial(jax.jit, compiler_options=QUICK)
    def run(*inputs: jax.Array) -> Any:
        o, pull = jax.vjp(call, *inputs)
        return o, pull(jnp.asarray(x["g"], o.dtype))

    o, grads = run(*(jnp.asarray(x[name]) for name in INPUTS))
    return {"o": np.asarray(o), **{n: np.asarray(y) for n, y in zip(INPUTS, grads, strict=True)}}


def assert_close(found: Any, wanted: Any, bar: float = 2e-6) -> None:
    for name in ("o", *INPUTS):
        error = np.abs(found[name] - wanted[name]).max() / np.abs(wanted[name]).max()
        assert error <= bar, f"{name}: {error:.1e}"


@pytest.mark.parametrize(
    "case",
    deep_unless(lambda case: case.name in ("gqa", "packed", "late"), CASES),
    ids=lambda case: case.name,
)
def test_parity(case: Case) -> None:
    """Forward and all gradients within 2e-6 of the largest entry, on maps that are not empty."""
    x = oracle.problem(case)
    wanted = oracle.solve(case, x)
    assert (wanted["e"] > 0)[:, wanted["seen"]].mean() >= 0.05
    blocks: Any = dict(block_q=case.block_q, block_kv=case.block_kv)
    if case.name in ("gqa", "full_mixed", "late"):
        assert_close(solve(case, x, function(case, x, reference)), wanted)
    assert_close(solve(case, x, function(case, x, xla, case.skip, **blocks)), wanted)
    interpreted = function(case, x, pallas_tpu, case.skip, interpret=True, **blocks)
    assert_close(solve(case, x, interpreted), wanted)


def clustered(case: Case) -> dict[str, Any]:
    """A problem whose survivors sit in few tiles: blocks of keys share a direction."""
    x = oracle.problem(case)
    rng = np.random.default_rng(3)
    directions = rng.normal(size=(2, 1, case.S // 16, case.K, case.D)).repeat(16, axis=2)
    x["k"] = (3 * directions + x["k"]).astype(np.float32)
    wanted = rng.permutation(case.S // 16).repeat(16)[: case.T] * 16
    x["q"] = (x["k"][:, :, wanted].repeat(case.H // case.K, 3) + 0.3 * x["q"]).astype(np.float32)
    x["beta"] = np.full(case.H, 1.75, np.float32)  # faint survivors: e is 0.1 at most
    return x


def test_skipping_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """With and without a bitmap, where most tiles are dead and some are live."""
    case = Case("clustered", T=64, S=64, H=4, K=2, causal=False, D=32, block_q=16, block_kv=16)
    x = clustered(case)
    wanted = oracle.solve(case, x)
    blocks: Any = dict(block_q=16, block_kv=16)
    interpreted: Any = dict(interpret=True, **blocks)
    small = pallas_tpu_tiles.BITMAP_BYTES, 0
    for module, tuning, sizes in ((pallas_tpu, interpreted, small), (xla, blocks, small[:1])):
        off = solve(case, x, function(case, x, module, False, **tuning))
        assert_close(off, wanted, 5e-5)
        for size in sizes:
            monkeypatch.setattr(pallas_tpu_tiles, "BITMAP_BYTES", size)
            on = solve(case, x, function(case, x, module, True, **tuning))
            for name, value in on.items():
                np.testing.assert_array_equal(value, off[name], err_msg=name)


def test_the_bitmap_marks_live_tiles() -> None:
    """Every tile with a survivor is marked, and no other; with padding and two documents."""
    case = Case("clustered", T=56, S=64, H=4, K=2, causal=False, D=32, block_q=16, block_kv=16)
    x = clustered(case)
    x["q_ids"], x["kv_ids"] = (1 + (np.arange(n) >= 40)[None].repeat(2, 0) for n in (56, 64))
    e = np.pad(oracle.solve(case, x)["e"], [(0, 0)] * 3 + [(0, 8), (0, 0)])
    wanted = (e > 0).any(0).reshape(2, 4, 4, 16, 4, 16).any((3, 5))
    assert 0.05 < wanted.mean() < 0.6
    q, k = (normalize(jnp.asarray(x[name])) for name in ("q", "k"))
    v = jnp.asarray(x["v"])
    ids = (jnp.asarray(x["q_ids"], jnp.int32), jnp.asarray(x["kv_ids"], jnp.int32))
    n = masks.row_lengths(56, 64, causal=False, q_segment_ids=ids[0], kv_segment_ids=ids[1])
    tau = jnp.broadcast_to(threshold(n, 32, x["beta"], x["kappa"]), (2, 4, 56))
    plan = pallas_tpu.make_plan(q, k, v, True, 0, Spec(False, 2), 16, 16, True)
    inputs = pallas_tpu.operands(plan, q, k, v, tau, ids)
    forward = jax.jit(partial(pallas_tpu.run_forward, plan), compiler_options=QUICK)
    live = forward(inputs, jnp.asarray(x["lam"]))[1]
    np.testing.assert_array_equal(np.asarray(live, bool), wanted)


def test_bitmap_words() -> None:
    """Packing, reading bits, and the block that stays in place on dead tiles."""
    rng = np.random.default_rng(0)
    live = (rng.random((3, 70)) < 0.1).astype(np.int32)
    live[1, :40], live[2, 31], live[2, 63] = 0, 1, 1
    words = pallas_tpu_tiles.pack(jnp.asarray(live))
    assert words.shape == (9,)
    for row, n in np.ndindex(live.shape):
        assert bool(pallas_tpu_tiles.is_set(words, row * 3, np.int32(n))) == live[row, n]
        base = n - n % 32
        inside = np.flatnonzero(live[row, base : base + 32]) + base
        below = inside[inside <= n]
        wanted = below[-1] if below.size else inside[0] if inside.size else 0
        assert int(pallas_tpu_tiles.nearest_set(words, row * 3, np.int32(n))) == wanted


def test_bfloat16() -> None:
    """|error| <= 2^-7 (sum_j |a_ij| |v_j| + 1e-3) against float64 on the same rounded unit rows."""
    case = Case("bf16", H=4, K=2, D=32, offset=0)
    x = oracle.problem(case)
    unit = [normalize(jnp.asarray(x[name])).astype(jnp.bfloat16) for name in ("q", "k")]
    v = jnp.asarray(x["v"], jnp.bfloat16)
    n = masks.row_lengths(case.T, case.S, causal=True)
    tau = jnp.broadcast_to(threshold(n, case.D, x["beta"], x["kappa"]), (2, 4, case.T))
    # The oracle on rounded rows: reference in float64 is checked against NumPy above in float32.
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(y, np.float64)) for y in (*unit, v, tau, x["lam"])]
        q, k, _, wide_tau, lam = wide
        w = reference.maps(q, k, wide_tau, None, None, 0, Spec(True, 2))
        a = np.asarray(w[0] - lam[None, :, None, None] * w[1])
    values = np.asarray(v, np.float64).repeat(2, axis=2)
    wanted = np.einsum("bhij,bjhd->bihd", a, values)
    bound = 2**-7 * (np.einsum("bhij,bjhd->bihd", np.abs(a), np.abs(values)) + 1e-3)
    assert (a != 0).mean() > 0.05
    blocks: Any = dict(block_q=16, block_kv=32)
    for module, tuning in ((xla, blocks), (pallas_tpu, dict(interpret=True, **blocks))):
        call: Any = lambda *y, f=module.tda, t=tuning: f(*y, None, None, 0, Spec(True, 2), **t)
        o = jax.jit(call, compiler_options=QUICK)(*unit, v, tau, jnp.asarray(x["lam"]))
        assert o.dtype == jnp.bfloat16
        assert (np.abs(np.asarray(o, np.float64) - wanted) <= bound).all()


def test_half_precision_keeps_faint_rows() -> None:
    """float16 goes to xla, which squares in float32; the TPU kernel says no, naming q."""
    case = Case("half", D=32)
    x = oracle.problem(case)
    half = [jnp.asarray(x[name], jnp.float16) for name in ("q", "k", "v")]
    call: Any = partial(tda_attention, beta=x["beta"], kappa=x["kappa"])
    o = jax.jit(call)(*half, x["lam"])
    assert o.dtype == jnp.float16
    np.testing.assert_allclose(o, oracle.solve(case, x)["o"], atol=0.01)
    # A weight of 2^-26 is no float16, its product with a value of 2^15 is.
    one, tau = jnp.ones((2, 1, 1, 1, 1), jnp.float16), jnp.full((1, 1, 1), 1 - 2**-13)
    v = jnp.full((1, 1, 1, 1), 2**15, jnp.float16)
    faint = xla.tda(one, one, v, tau, jnp.zeros(1), None, None, 0, Spec(True, 2))
    assert faint.item() == 2**-11
    with pytest.raises(ValueError, match="q has dtype float16"):
        call(*half, x["lam"], implementation="interpret")


def test_simulated_tpu_reads_no_garbage() -> None:
    """Ragged lengths under the TPU simulator, with unwritten memory full of NaN."""
    case = Case("ragged", T=21, S=27, B=1, H=2, K=1, block_q=16, block_kv=16)
    x = oracle.problem(case)
    simulated = pltpu.InterpretParams(uninitialized_memory="nan", out_of_bounds_reads="raise")
    call = function(case, x, pallas_tpu, interpret=simulated, block_q=16, block_kv=16)
    assert_close(solve(case, x, call), oracle.solve(case, x))


def temporary_bytes(implementation: str, T: int) -> int:
    """Temporary memory of compiled forward and backward; nothing runs."""
    shape = lambda *dims: jax.ShapeDtypeStruct(dims, jnp.float32)
    args = (shape(2, 1, T, 1, 16), shape(2, 1, T, 1, 16), shape(1, T, 1, 16), shape(1))
    loss = lambda *x: tda_attention(*x, implementation=implementation).sum()
    compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3))).lower(*args).compile()
    figures: Any = compiled.memory_analysis()
    return figures.temp_size_in_bytes


@pytest.mark.parametrize(("implementation", "linear"), [("xla", True), ("reference", False)])
def test_memory(implementation: str, linear: bool) -> None:
    """Linear in T where the dense control is quadratic."""
    growth = temporary_bytes(implementation, 16384) / temporary_bytes(implementation, 8192)
    assert growth <= 2.2 if linear else growth >= 3.5
