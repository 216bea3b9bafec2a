# SPDX-License-Identifier: Apache-2.0
"""On meshes of virtual devices: the values and gradients of one device."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from attention import masks, parallel
from attention.kernels import Spec, xla
from attention.tda import normalize, tda_attention, threshold
from tests.attention import oracle
from tests.attention.oracle import Case

QUICK = {"xla_backend_optimization_level": 0}
NAMES = ("q", "k", "v", "lam", "beta", "kappa")


def mesh(data: int, model: int) -> Mesh:
    devices = jax.devices()[: data * model]
    return jax.make_mesh((data, model), ("data", "model"), (AxisType.Auto,) * 2, devices=devices)


def solve(x: dict[str, Any], call: Any) -> list[np.ndarray]:
    """o and gradients of sum(o * g) in q, k, v, lam, beta, kappa."""

    def run(*inputs: Any) -> Any:
        o, pull = jax.vjp(call, *inputs)
        return o, *pull(jnp.asarray(x["g"]))

    outputs = jax.jit(run, compiler_options=QUICK)(*(jnp.asarray(x[name]) for name in NAMES))
    return [np.asarray(y) for y in outputs]


def assert_equal(found: list[np.ndarray], case: Case, x: dict[str, Any]) -> None:
    wanted = oracle.solve(case, x)
    for name, value in zip(("o", *NAMES), found, strict=True):
        error = np.abs(value - wanted[name]).max() / np.abs(wanted[name]).max()
        # A little wider than on one device: per-head sums cancel, and are added in another order.
        assert error <= 5e-6, (name, error)


@pytest.mark.deep
@pytest.mark.parametrize("ids", ["", "packed"])
def test_batch_and_heads(ids: str) -> None:
    """Batch over 4 devices and heads over 2; without communication in the forward pass."""
    case = Case("mesh", B=4, T=16, S=16, H=4, K=2, ids=ids)
    x = oracle.problem(case)
    segments = dict(q_segment_ids=x["q_ids"], kv_segment_ids=x["kv_ids"]) if ids else {}

    def call(q: Any, k: Any, v: Any, lam: Any, beta: Any, kappa: Any) -> jax.Array:
        knobs = dict(beta=beta, kappa=kappa)
        return parallel.sharded_tda(mesh(4, 2), q, k, v, lam, **knobs, **segments)

    assert_equal(solve(x, call), case, x)
    if not ids:
        text = jax.jit(call).lower(*(x[name] for name in NAMES)).compile().as_text()
        assert text and not any(word in text for word in ("all-reduce", "all-gather", "all-to-all"))


def test_heads_of_sharded_arrays_stay_put() -> None:
    case = Case("placed", B=4, T=16, S=16, H=4, K=2)
    x = oracle.problem(case)
    grid = mesh(2, 2)
    put = lambda y, *spec: jax.device_put(y, NamedSharding(grid, PartitionSpec(*spec)))
    q, k = (put(x[name], None, "data", None, "model") for name in ("q", "k"))
    v = put(x["v"], "data", None, "model")
    o = jax.jit(lambda *y: parallel.sharded_tda(grid, *y, beta=0.5), compiler_options=QUICK)(
        q, k, v, x["lam"]
    )
    assert o.sharding.spec == PartitionSpec("data", None, "model")
    assert {s.data.shape for s in o.addressable_shards} == {(2, 16, 2, 16)}


@pytest.mark.deep
@pytest.mark.parametrize(
    ("case", "devices"),
    [
        (Case("causal", T=24, S=24, H=4, K=2), 4),
        (Case("packed", T=24, S=24, ids="packed"), 8),
        (Case("full", T=10, S=24, causal=False), 4),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_keys_over_devices(case: Case, devices: int) -> None:
    """Sequence parallelism: one psum, global thresholds; values and all gradients."""
    x = oracle.problem(case)

    def call(q: Any, k: Any, v: Any, lam: Any, beta: Any, kappa: Any) -> jax.Array:
        return parallel.sequence_parallel_tda(
            mesh(devices, 1),
            q,
            k,
            v,
            lam,
            beta=beta,
            kappa=kappa,
            causal=case.causal,
            q_segment_ids=x["q_ids"],
            kv_segment_ids=x["kv_ids"],
        )

    assert_equal(solve(x, call), case, x)


@pytest.mark.deep
def test_results_of_key_sets_add() -> None:
    """o(K u K') = o(K) + o(K') while tau stays: the fact behind the psum."""
    case = Case("sum", T=16, S=24, causal=False)
    x = oracle.problem(case)
    q, k = (normalize(jnp.asarray(x[name])) for name in ("q", "k"))
    n = masks.row_lengths(16, 24, causal=False)
    tau = jnp.broadcast_to(threshold(n, case.D, 0.5, 1.0), (2, 2, 16))
    spec = Spec(causal=False, p=2)
    v, lam = jnp.asarray(x["v"]), jnp.asarray(x["lam"])

    @partial(jax.jit, compiler_options=QUICK)
    def parts(q: Any, k: Any, v: Any) -> Any:
        part = lambda at: xla.tda(q, k[:, :, at], v[:, at], tau, lam, None, None, 0, spec)
        # With thresholds of their own lengths the parts would not add up.
        alone = tda_attention(q, k[:, :, :9], v[:, :9], lam, beta=0.5, causal=False)
        return part(slice(0, 9)), part(slice(9, 24)), part(slice(0, 24)), alone

    left, right, whole, alone = parts(q, k, v)
    np.testing.assert_allclose(left + right, whole, atol=1e-5)
    assert np.abs(left).max() > 0.1 and np.abs(right).max() > 0.1
    assert np.abs(alone - left).max() > 0.1


def test_bad_meshes_are_named() -> None:
    x = oracle.problem(Case("odd", B=2, T=9, S=9, H=2, K=1))
    call = [jnp.asarray(x[name]) for name in ("q", "k", "v", "lam")]
    with pytest.raises(ValueError, match="q: batch B is 2, not a multiple of mesh axis data=4"):
        parallel.sharded_tda(mesh(4, 1), *call)
    with pytest.raises(ValueError, match="k: number of heads Hkv is 1"):
        parallel.sharded_tda(mesh(2, 2), *call)
    with pytest.raises(ValueError, match="k: number of keys S is 9"):
        parallel.sequence_parallel_tda(mesh(4, 1), *call)
    with pytest.raises(ValueError, match="axis='rows'"):
        parallel.sequence_parallel_tda(mesh(4, 1), *call, axis="rows")
    with pytest.raises(ValueError, match="q_offset is an array"):
        even = [call[0], call[1][:, :, :8], call[2][:, :8], call[3]]
        parallel.sequence_parallel_tda(mesh(4, 1), *even, implementation="pallas_tpu")
