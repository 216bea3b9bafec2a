# SPDX-License-Identifier: Apache-2.0
"""When layers are unrolled."""

import jax
import pytest

from attention import stack


@pytest.mark.parametrize(
    ("scan", "backend", "layers", "at_once"),
    [
        ("auto", "cpu", 8, 8),
        ("auto", "cpu", 9, 1),
        ("auto", "gpu", 4, 1),
        ("auto", "tpu", 4, 1),
        ("on", "cpu", 4, 1),
        (True, "cpu", 4, 1),
        ("off", "tpu", 40, 40),
        (False, "gpu", 2, 2),
    ],
)
def test_unroll(
    scan: bool | str, backend: str, layers: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Short stacks on a CPU, and what is asked for."""
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert stack.unroll(scan, layers) == at_once
