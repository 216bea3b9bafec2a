# SPDX-License-Identifier: Apache-2.0
"""Forward and gradient lower for TPUs on a machine without one, and survive serialization."""

import importlib.util
import json
import subprocess
import sys
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import pytest

from attention.tda import tda_attention
from tests import ROOT

T = 4096


def shapes(D: int, H: int, K: int, segments: bool, dtype: Any) -> tuple[Any, ...]:
    shape = lambda *dims, dtype=dtype: jax.ShapeDtypeStruct(dims, dtype)
    ids = shape(1, T, dtype=jnp.int32)
    arrays = (shape(2, 1, T, H, D), shape(2, 1, T, K, D), shape(1, T, K, D))
    return (*arrays, shape(H, dtype=jnp.float32), *((ids, ids) if segments else ()))


def function(implementation: str | None, backward: bool) -> Any:
    def forward(q: Any, k: Any, v: Any, lam: Any, *ids: Any) -> jax.Array:
        segments = dict(zip(("q_segment_ids", "kv_segment_ids"), ids, strict=False))
        return tda_attention(q, k, v, lam, implementation=implementation, **segments)

    loss = lambda *x: forward(*x).astype(jnp.float32).sum()
    return jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)) if backward else forward)


CASES = {
    "d64": (64, 2, 2, False, jnp.bfloat16),
    "d128": (128, 2, 2, False, jnp.bfloat16),
    "gqa": (128, 4, 2, False, jnp.float32),
    "segments": (64, 2, 1, True, jnp.bfloat16),
}


@pytest.mark.parametrize("case", CASES)
def test_lowers_for_tpu(case: str) -> None:
    """One kernel forward, three with the gradient; exported, serialized, read back."""
    arguments = shapes(*CASES[case])
    for backward, names in (
        (False, ("tda_forward",)),
        (True, ("tda_forward", "tda_dq", "tda_dkv")),
    ):
        exported = jax.export.export(function("pallas_tpu", backward), platforms=("tpu",))(
            *arguments
        )
        text = exported.mlir_module()
        assert text.count("tpu_custom_call") == len(names)
        assert all(f'kernel_name = "{name}"' in text for name in names)
        again = jax.export.deserialize(exported.serialize())
        assert again.platforms == ("tpu",) and again.in_avals == exported.in_avals


@pytest.mark.parametrize("backward", [False, True])
def test_the_default_picks_by_platform(backward: bool) -> None:
    """implementation=None lowers to the kernels for TPUs and to plain XLA for CPUs."""
    arguments = shapes(*CASES["d64"])
    traced = function(None, backward).trace(*arguments)
    assert "tpu_custom_call" in traced.lower(lowering_platforms=("tpu",)).as_text()
    assert "custom_call @tpu" not in traced.lower(lowering_platforms=("cpu",)).as_text()
    assert "tpu_custom_call" not in traced.lower(lowering_platforms=("cpu",)).as_text()


def test_the_default_falls_back() -> None:
    """What the kernels do not cover runs on xla, on TPUs too."""
    arguments = shapes(64, 2, 2, False, jnp.float16)
    text = function(None, True).trace(*arguments).lower(lowering_platforms=("tpu",)).as_text()
    assert "tpu_custom_call" not in text and "stablehlo.while" in text


def run_tool(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "attention.tpu_aot", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed")
def test_the_compiler_tool_says_that_it_cannot_run() -> None:
    result = run_tool()
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith("not run: libtpu is not installed")


@pytest.mark.tpu_aot
def test_compiles_for_tpus() -> None:
    """Within VMEM at T = 32768 on v5e and v6e; temporary memory linear in T."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed: pip install 'banyan-stack[tpu_aot]'")
    result = run_tool()
    assert result.returncode == 0, result.stderr[-3000:]
    report = json.loads(result.stdout)
    assert {(case["chip"], case["D"]) for case in report["compiled"]} == {
        (chip, D) for chip in ("v5e", "v6e") for D in (64, 128)
    }
    assert all(growth <= 2.2 for growth in report["memory"]["growth"])
