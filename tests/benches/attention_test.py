# SPDX-License-Identifier: Apache-2.0
"""The attention bench: what it says of its tensors, its peers, its ratios, and the script."""

import json
import runpy
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from attention.kernels import Spec, reference
from experiments import bench
from experiments.benches import attention
from experiments.runner.bench import Case, Missing

SHAPE = attention.Shape(B=1, T=256, H=2, D=64)


def weights(q: Any, k: Any, tau: Any) -> np.ndarray:
    """w of both views in the dense backend, [2, B, H, T, S]."""
    return np.asarray(reference.maps(q, k, tau, None, None, 0, Spec(True, 2)))


@pytest.mark.parametrize("kind", attention.KINDS)
def test_sparsity_of_the_inputs(kind: str) -> None:
    """Density and live tiles are those of the dense map, and each kind is what it is called."""
    q, k, _, tau, _, _ = attention.inputs(SHAPE, kind, jnp.float32)
    live = (weights(q, k, tau) > 0).any(0)
    density, tiles = np.asarray(attention.sparsity(q, k, tau))
    T, num = SHAPE.T, SHAPE.T // attention.TILE
    assert density == pytest.approx(live.sum() / (2 * T * (T + 1) / 2), rel=1e-5)
    cut = live.reshape(1, 2, num, attention.TILE, num, attention.TILE).any((3, 5))
    assert tiles == pytest.approx(cut.sum() / (2 * num * (num + 1) / 2), rel=1e-5)
    low, high = {"dense": (0.9, 1), "planted": (0.05, 0.3), "clustered": (0.005, 0.1)}[kind]
    assert low <= density <= high and (tiles == 1) == (kind != "clustered")


def test_two_launches_are_the_same_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention.xla, "BLOCK", 64)
    q, k, v, tau, lam, _ = attention.inputs(SHAPE, "planted", jnp.float32)
    found = attention.two_launches(attention.one_view)(q, k, v, tau, lam)
    w = weights(q, k, tau)
    a = w[0] - np.asarray(lam)[None, :, None, None] * w[1]
    wanted = np.einsum("bhts,bshd->bthd", a, np.asarray(v))
    assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()


def row(name: str, ms: float, **more: Any) -> dict[str, Any]:
    return {"row": name, "steps_per_s": 1e3 / ms, "density": 0.1, "live_tile_share": 0.5, **more}


def test_ratios() -> None:
    rows = [
        row("T8-d64 dense fwd tda xla", 4),
        row("T8-d64 dense fwd+bwd tda xla", 12),
        row("T8-d64 clustered fwd tda xla", 3),
        row("T8-d64 clustered fwd+bwd tda xla", 6),
        row("T8-d64 clustered fwd two-launch xla", 5),
        row("T8-d64 softmax fwd xla", 2),
        row("T8-d64 softmax fwd+bwd xla", 5),
        row("S9-d64 decode tda dense", 10),
        row("S9-d64 decode tda sketch", 4),
    ]
    full = " at density 0.1, live tiles 0.5"
    assert attention.ratios(rows) == pytest.approx(
        {
            f"T8-d64 dense fwd: tda xla / softmax xla (whole square){full}": 2,
            f"T8-d64 dense bwd: tda xla / softmax xla (whole square){full}": 8 / 3,
            f"T8-d64 clustered fwd: tda xla / softmax xla (whole square){full}": 1.5,
            f"T8-d64 clustered bwd: tda xla / softmax xla (whole square){full}": 1,
            f"T8-d64 clustered fwd: tda xla / two launches{full}": 0.6,
            f"T8-d64 clustered fwd+bwd: tda xla / own dense{full}": 0.5,
            "S9-d64 decode: sketch / dense": 0.4,
        }
    )


def test_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Run as a script: a peer that is missing is a line of the table, columns reach the JSON."""
    stub: Any = ModuleType("experiments.benches.attention")
    case = Case("a", 0, 2, lambda repeat: None, {"flop": 3e12, "shape": {"T": 8}})
    stub.cases = lambda: [Missing("b", "not here"), case]
    stub.ratios = lambda rows: {"a / a": 1.0}
    monkeypatch.setitem(sys.modules, stub.__name__, stub)
    path = tmp_path / "table.json"
    monkeypatch.setattr(sys, "argv", ["bench.py", "attention", f"--json={path}", "--repeats=5"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(Path(bench.__file__)), run_name="__main__")
    assert stop.value.code == 0
    result = json.loads(path.read_text())
    (found,) = result["rows"]
    assert result["not_measured"] == {"b": "not here"} and found["shape"] == {"T": 8}
    assert found["tflops"] == pytest.approx(3 * found["steps_per_s"])
    assert "tflops" in capsys.readouterr().out
