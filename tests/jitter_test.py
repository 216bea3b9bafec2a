# SPDX-License-Identifier: Apache-2.0
"""Tests that train, on ten imitated machines (marker `slow`); and that the imitation imitates.

The table is left in experiments/results/jitter.json. With $SLOW_RUNS=FOLDER what each draw gave is
kept there, and a second try goes on where the first stopped.
"""

import datetime
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from experiments.runner import folder
from tests import ROOT, jitter
from tests.learning import RESULTS

DRAWS = 10


def test_nothing_changes_without_a_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jitter, "DRAW", 0)
    tree = {"a": np.ones(3, np.float32), "b": jnp.ones(3)}
    assert jitter.jittered(tree) is tree
    param = nn.Module.param
    jitter.install()
    assert nn.Module.param is param


def test_a_draw_moves_last_bits_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of the floats, by a few spacings, alike for a draw, a path and a shape; nothing else."""
    monkeypatch.setattr(jitter, "DRAW", 1)
    values = np.linspace(0.5, 4.0, 1000, dtype=np.float32)
    tree = {"host": values, "device": jnp.asarray(values), "ids": np.arange(3), "none": None}
    moved = jitter.jittered(tree)
    assert moved["ids"] is tree["ids"] and moved["none"] is None
    for name in ("host", "device"):
        gaps = np.abs(np.asarray(moved[name]) / values - 1)
        assert 0.3 < np.mean(gaps > 0) < 0.95 and gaps.max() < 6e-7
        np.testing.assert_array_equal(moved[name], jitter.jittered(tree)[name])
    assert np.any(np.asarray(moved["host"]) != np.asarray(moved["device"]))
    inside = jax.jit(lambda leaf: jitter.jittered({"device": leaf})["device"])(tree["device"])
    np.testing.assert_allclose(inside, moved["device"], rtol=1.3e-7)
    scalar = jitter.jittered(np.array(0.1, np.float32))
    assert isinstance(scalar, np.ndarray) and scalar.shape == ()
    monkeypatch.setattr(jitter, "DRAW", 2)
    assert np.any(jitter.jittered(tree)["host"] != moved["host"])


def test_initial_parameters_are_jittered(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, row = nn.Dense(8), jnp.ones((1, 8))
    plain = layer.init(jax.random.key(0), row)["params"]["kernel"]
    monkeypatch.setattr(jitter, "DRAW", 1)
    monkeypatch.setattr(nn.Module, "param", jitter._jitter_flax(nn.Module.param))
    moved = jax.jit(layer.init)(jax.random.key(0), row)["params"]["kernel"]
    assert 0 < np.abs(moved / plain - 1).max() < 6e-7


def test_margins_are_asserted_and_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BANYAN_MARGINS", str(tmp_path / "margins"))
    jitter.at_least("share", [0.5, 0.75], 0.5)
    for fails in (
        lambda: jitter.at_least("share", [0.5, 0.4], 0.5),
        lambda: jitter.at_most("share", float("nan"), 0.5),
        lambda: jitter.close("gap", {"a": np.ones(2)}, {"a": np.array([1.0, 1.1])}, rtol=0.05),
        lambda: jitter.close("gap", np.ones(2), np.full(2, np.nan), atol=1.0),
    ):
        with pytest.raises(AssertionError):
            fails()
    jitter.close("gap", {"a": np.ones(2)}, {"a": np.array([1.0, 1.1])}, atol=0.2)
    lines = [json.loads(line) for line in (tmp_path / "margins").read_text().splitlines()]
    assert lines[0]["values"] == [0.5, 0.75] and lines[0]["side"] == ">="
    assert lines[0]["test"].endswith("::test_margins_are_asserted_and_recorded")
    assert lines[-1]["values"] == pytest.approx([0.5]) and lines[-1]["bound"] == 1.0


# ----------------------------------------------------------------------------------- ten machines


def run_list(draw: int, home: Path) -> dict[str, Any]:
    """Outcomes and margins of all tests marked `trains` under a draw; 0 is this very machine."""
    path = home / f"draw{draw}.json"
    if path.exists():
        return json.loads(path.read_text())
    home.mkdir(parents=True, exist_ok=True)
    report, margins = home / f"draw{draw}.xml", home / f"draw{draw}.jsonl"
    margins.unlink(missing_ok=True)
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    words = ["-m", "pytest", "-n0", "-m", "trains and not slow", f"--junitxml={report}"]
    process = subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env={**inherited, "BANYAN_JITTER": str(draw), "BANYAN_MARGINS": str(margins)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode in (0, 1), process.stdout[-3000:] + process.stderr[-3000:]
    found = {"outcomes": read_outcomes(report), "margins": read_margins(margins)}
    folder.write_json(path, found)
    return found


def read_outcomes(report: Path) -> dict[str, str]:
    """Node id -> "passed", "failed" or "skipped", from a JUnit file."""
    outcomes = {}
    for case in ElementTree.parse(report).iter("testcase"):
        kinds = {child.tag for child in case}
        outcome = "failed" if kinds & {"failure", "error"} else "passed"
        name = f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}"
        outcomes[name] = "skipped" if "skipped" in kinds else outcome
    return outcomes


def read_margins(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def summarize(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """{test function: {"cases", "flips", "figures"}}; the first run has no jitter.

    cases: parameters it ran with; flips: draws under which any of them failed; figures:
    {"side", "bound", "plain", "worst"}: what was seen without jitter and under all draws, the
    values nearest to the bound.
    """
    tests: dict[str, Any] = {}
    for draw, run in enumerate(runs):
        for name, outcome in run["outcomes"].items():
            if outcome == "skipped":
                continue
            test = tests.setdefault(
                name.split("[")[0], {"cases": [], "failed": set(), "figures": {}}
            )
            test["cases"] += [name] if draw == 0 else []
            test["failed"] |= {draw} if outcome == "failed" else set()
        for line in run["margins"]:
            figures = tests[line["test"].split("[")[0]]["figures"]
            nearest = max if line["side"] == "<=" else min
            seen = nearest(line["values"])
            figure = figures.setdefault(
                f"{line['figure']} {line['side']} {line['bound']:.6g}",
                {"side": line["side"], "bound": line["bound"], "plain": seen, "worst": seen},
            )
            figure["worst"] = nearest(figure["worst"], seen)
            figure["plain"] = nearest(figure["plain"], seen) if draw == 0 else figure["plain"]
    return {
        name: {
            "cases": len(test["cases"]),
            "flips": len(test["failed"] - {0}),
            "figures": test["figures"],
        }
        for name, test in sorted(tests.items())
    }


@pytest.mark.slow
def test_no_test_that_trains_hangs_on_the_last_bits(tmp_path: Path) -> None:
    home = Path(os.environ.get("SLOW_RUNS", tmp_path)).absolute() / "jitter"
    runs = [run_list(draw, home) for draw in range(DRAWS + 1)]
    tests = summarize(runs)
    folder.write_json(
        RESULTS / "jitter.json",
        {
            "jitter": "initial parameters and inputs times (1 + 1e-7 n), n normal",
            "draws": DRAWS,
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "commit": folder.commit(),
            "device": f"{jax.devices()[0].device_kind} ({os.cpu_count()} cores)",
            "versions": {"jax": jax.__version__, "python": sys.version.split()[0]},
            "tests": tests,
        },
    )
    failed = {
        name: [draw for draw, run in enumerate(runs) if run["outcomes"].get(name) == "failed"]
        for name in runs[0]["outcomes"]
    }
    assert len(tests) > 30
    assert not {name: draws for name, draws in failed.items() if draws}
