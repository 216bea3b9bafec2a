# SPDX-License-Identifier: Apache-2.0
"""Which backend `tda_attention` picks on which machine."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from attention import tda


class Device:
    def __init__(self, capability: str) -> None:
        self.compute_capability = capability


def lowered(monkeypatch: pytest.MonkeyPatch, backend: str, capability: str) -> str:
    """Text of `tda_attention` lowered for CUDA on a machine with such a GPU."""
    monkeypatch.setattr(tda.jax, "default_backend", lambda: backend)
    monkeypatch.setattr(tda.jax, "devices", lambda: [Device(capability)])
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.bfloat16)
    one = jax.jit(lambda q, k, v: tda.tda_attention(q, k, v, jnp.full((2,), 0.5)))
    traced: Any = one.trace(shape(2, 1, 128, 2, 64), shape(2, 1, 128, 2, 64), shape(1, 128, 2, 64))
    return traced.lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize(
    ("backend", "capability", "kernel"),
    [("gpu", "9.0", True), ("cpu", "", True), ("gpu", "7.5", False), ("gpu", "10.0", False)],
)
def test_only_hopper_gets_the_hopper_kernel(
    monkeypatch: pytest.MonkeyPatch, backend: str, capability: str, kernel: bool
) -> None:
    assert ("mosaic_gpu" in lowered(monkeypatch, backend, capability)) == kernel
