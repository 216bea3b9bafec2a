# SPDX-License-Identifier: Apache-2.0
"""`tda_attention` called directly on a mesh: each device's kernels get that device's part."""

import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from attention.kernels import partition
from attention.tda import tda_attention
from experiments.configs.attention import lm as configs
from experiments.runner import assemble, loop, sharding
from tests.attention import oracle
from tests.attention.oracle import Case
from tests.tiers import deep

QUICK = {"xla_backend_optimization_level": 0}
NAMES = ("q", "k", "v", "lam", "beta", "kappa")
SEQUENCES = Case("b4", B=4, T=16, S=16, H=4, K=2)


def make_mesh(*shape: int) -> Mesh:
    devices = jax.devices()[: np.prod(shape)]
    return jax.make_mesh(shape, ("data", "model"), (AxisType.Auto,) * 2, devices=devices)


def put(mesh: Mesh, x: dict[str, Any], batch: Any, heads: Any) -> list[jax.Array]:
    """Inputs and the gradient of o, batch and heads split over these axes of the mesh."""
    views = PartitionSpec(None, batch, None, heads)
    values = PartitionSpec(batch, None, heads)
    specs = {"q": views, "k": views, "v": values, "g": values}
    if x["k"].shape[3] == 1:  # one key head: the query heads alone are split
        specs["k"] = PartitionSpec(None, batch)
        specs["v"] = PartitionSpec(batch)
    return [
        jax.device_put(x[name], NamedSharding(mesh, specs.get(name, PartitionSpec())))
        for name in (*NAMES, "g")
    ]


def attend(case: Case, x: dict[str, Any], implementation: str | None) -> Any:
    """(q, k, v, lam, beta, kappa) -> o."""

    def call(q: Any, k: Any, v: Any, lam: Any, beta: Any, kappa: Any) -> jax.Array:
        return tda_attention(
            q,
            k,
            v,
            lam,
            beta=beta,
            kappa=kappa,
            causal=case.causal,
            q_segment_ids=x["q_ids"],
            kv_segment_ids=x["kv_ids"],
            q_offset=case.offset,
            implementation=implementation,
        )

    return call


@pytest.fixture
def splits(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, tuple[str, ...]]]:
    """How every call of a kernel was split, in order."""
    seen = []
    split_axes = partition.split_axes

    def record(*arguments: Any) -> Any:
        seen.append(split_axes(*arguments))
        return seen[-1]

    monkeypatch.setattr(partition, "split_axes", record)
    return seen


BOTH = {"B": ("data",), "H": ("model",), "K": ("model",)}
BATCH = {"B": ("data",), "H": (), "K": ()}
HEADS = {"B": (), "H": ("model",), "K": ("model",)}
MESHES = [
    (SEQUENCES._replace(name="packed", ids="packed", offset=0), (4, 2), ("data", "model"), BOTH),
    deep(SEQUENCES._replace(name="late", offset=-2), (2, 2), ("data", "model"), BOTH),
    deep(SEQUENCES._replace(name="full", K=4, causal=False), (2, 2), ("data", "model"), BOTH),
    deep(SEQUENCES._replace(name="b3", B=3), (2, 2), (None, "model"), HEADS),
    deep(SEQUENCES._replace(name="mqa", K=1), (2, 2), ("data", "model"), BATCH),
]


@pytest.mark.parametrize(
    ("case", "shape", "axes", "wanted"), MESHES, ids=lambda value: getattr(value, "name", "")
)
def test_values_and_gradients_on_a_mesh(
    case: Case, shape: tuple[int, int], axes: Any, wanted: Any, splits: list[Any]
) -> None:
    """Those of the oracle; forward and backward kernels are split, XLA's own loops too."""
    x = oracle.problem(case)
    expected = oracle.solve(case, x)
    inputs = put(make_mesh(*shape), x, *axes)
    for implementation in ("interpret", "xla"):

        @partial(jax.jit, compiler_options=QUICK)
        def run(*inputs: Any, implementation: str = implementation) -> Any:
            o, pull = jax.vjp(attend(case, x, implementation), *inputs[:-1])
            return o, *pull(inputs[-1])

        for name, found in zip(("o", *NAMES), run(*inputs), strict=True):
            error = np.abs(found - expected[name]).max() / np.abs(expected[name]).max()
            assert error <= 5e-6, (implementation, name, error)
    assert splits == [wanted, wanted]


def test_what_does_not_divide_is_computed_by_all(splits: list[Any]) -> None:
    """Three sequences that a caller puts on two devices. Four are split outside of jit too, and no
    device asks another one for anything."""
    mesh = make_mesh(2, 2)
    x = oracle.problem(SEQUENCES)
    wanted = oracle.solve(SEQUENCES, x)["o"]
    inputs = put(mesh, x, "data", "model")[:-1]
    call = attend(SEQUENCES, x, "interpret")

    @partial(jax.jit, compiler_options=QUICK)
    def call_three(q: Any, k: Any, v: Any, *rest: Any) -> jax.Array:
        uneven = NamedSharding(mesh, PartitionSpec("data"))
        v = jax.lax.with_sharding_constraint(v[:3], uneven)
        return call(q[:, :3], k[:, :3], v, *rest)

    np.testing.assert_allclose(call_three(*inputs), wanted[:3], atol=1e-5)
    assert splits[-1]["B"] == ()
    eager = call(*inputs)
    np.testing.assert_allclose(eager, wanted, atol=1e-5)
    assert splits[-1] == BOTH and eager.sharding.spec == PartitionSpec("data", None, "model")
    text = jax.jit(call).lower(*inputs).compile().as_text()
    assert text and not any(word in text for word in ("all-reduce", "all-gather", "all-to-all"))


@pytest.mark.deep
def test_offsets_of_rows_on_a_mesh() -> None:
    """Kernels do not cover them: XLA's own loops follow the shardings alone."""
    x = oracle.problem(SEQUENCES)
    inputs = put(make_mesh(2, 2), x, "data", "model")[:-1]
    offsets = np.array([0, 3, -2, 5], np.int32)
    o = jax.jit(lambda q, k, v, lam: tda_attention(q, k, v, lam, q_offset=jnp.asarray(offsets)))(
        *inputs[:4]
    )
    assert o.sharding.spec == PartitionSpec("data", None, "model")
    for row, offset in enumerate(offsets):
        one = slice(row, row + 1)
        alone = tda_attention(
            x["q"][:, one], x["k"][:, one], x["v"][one], x["lam"], q_offset=int(offset)
        )
        np.testing.assert_allclose(o[one], alone, atol=1e-6)


@pytest.mark.deep
def test_vmap_of_kernels() -> None:
    """Over what has a batch axis and what has none, with gradients of both."""
    case = Case("one", B=1, T=12, S=12, H=2, K=1)
    x = oracle.problem(case)
    call = attend(case, x, "interpret")
    loss = lambda q, lam: jnp.sum(call(q, x["k"], x["v"], lam, x["beta"], x["kappa"]) * x["g"])
    differentiate = jax.grad(loss, (0, 1))
    lams = jnp.stack([x["lam"], 2 * x["lam"]])
    run = partial(jax.jit, compiler_options=QUICK)
    for q_axis, q in ((None, x["q"]), (0, np.stack([x["q"], x["q"][:, :, ::-1]]))):
        both = run(jax.vmap(differentiate, (q_axis, 0)))(q, lams)
        for index in range(2):
            alone = run(differentiate)(q if q_axis is None else q[index], lams[index])
            for found, wanted in zip(both, alone, strict=True):
                np.testing.assert_allclose(found[index], wanted, atol=1e-5)


@pytest.mark.deep
@pytest.mark.parametrize("names", [("rows",), ("model",)])
def test_meshes_of_one_axis(names: tuple[str], splits: list[Any]) -> None:
    """Heads along "model", and batch along any other name."""
    mesh = jax.make_mesh((2,), names, (AxisType.Auto,), devices=jax.devices()[:2])
    x = oracle.problem(SEQUENCES)
    whole = NamedSharding(mesh, PartitionSpec())
    inputs = [jax.device_put(x[name], whole) for name in NAMES]
    o = jax.jit(attend(SEQUENCES, x, "interpret"))(*inputs)
    np.testing.assert_allclose(o, oracle.solve(SEQUENCES, x)["o"], atol=1e-5)
    heads = names if names == ("model",) else ()
    batch = () if heads else names
    assert splits == [{"B": batch, "H": heads, "K": heads}]


def lm_step() -> Any:
    """One update of a small language model with tda on a 2 x 2 mesh, traced."""
    config = configs.get_config("tiny")
    config.mesh = (2, 2)
    config.data.update({"rows": 4, "context": 32})
    sizes = {"layers": 1, "heads": 4, "kv_heads": 2, "head_dim": 64, "vocab_size": 32}
    config.model.update({"attention": "tda", "dtype": "bfloat16", **sizes})
    asm = assemble.assemble(config)
    batch = asm.experiment.batch(0)
    structs = {name: jax.ShapeDtypeStruct(rows.shape, rows.dtype) for name, rows in batch.items()}
    return loop.jit_step(asm, batch).trace(asm.abstract, structs)


def operand_shapes(text: str, target: str) -> list[list[str]]:
    """Shapes of the operands of every kernel in a lowered program."""
    calls = re.findall(rf"custom_call @{target}\(.*: \((.*?)\) -> ", text)
    return [re.findall(r"tensor<([\dx]+)x\w+>", operands) for operands in calls]


def test_an_update_lowers_for_a_mesh(monkeypatch: pytest.MonkeyPatch) -> None:
    """`lm` with tda on 2 x 2 devices: 2 of 4 sequences, 2 of 4 heads and 1 of 2 key heads each."""
    monkeypatch.setattr(sharding, "make_mesh", lambda shape: make_mesh(*shape))
    traced = lm_step()
    text = traced.lower(lowering_platforms=("tpu",)).as_text()
    q, k, v, tau, lam = "2x2x2x128x64 2x2x1x128x64 2x1x128x64 2x2x1x128 2".split()
    g = "2x2x128x64"
    backward = ["4", q, k, v, tau, lam, g]  # the bitmap first
    assert operand_shapes(text, "tpu_custom_call") == [[q, k, v, tau, lam], backward, backward]
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    q, k, v, tau = "4x128x2x64 4x128x1x64 2x128x1x64 2x2x128".split()
    g = "2x128x2x64"
    forward, *both = operand_shapes(text, "mosaic_gpu_v2")
    assert forward == [q, k, v, tau, lam]
    assert [shapes[:6] for shapes in both] == [[q, k, v, tau, lam, g]] * 2
