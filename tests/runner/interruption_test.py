# SPDX-License-Identifier: Apache-2.0
"""Signals at awkward moments, values that are not finite, and time that goes on after a resume."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.runner import checkpoint, loop
from experiments.runner.errors import UserError
from experiments.runner.writer import read_metrics
from tests import toy

pytestmark = pytest.mark.usefixtures("installed")
SHORT: dict[str, Any] = {"train__steps": 4, "toy__milestones": ()}


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def change_toy(monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], Any]) -> None:
    """Lets `toy.make` give the experiment that `change` makes of its own."""
    make = toy.make
    monkeypatch.setattr(toy, "make", lambda config, artifacts: change(make(config, artifacts)))


def stopped(workdir: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What a run prints that ends with code 0 before its end."""
    with pytest.raises(SystemExit) as end:
        loop.train(toy.tiny(**SHORT), workdir)
    assert end.value.code == 0
    assert not (workdir / "results.json").exists()
    return capsys.readouterr().err


def test_sigterm_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """While the initial state is made: it is saved, and a resume ends as if nothing was."""
    initial_state = loop.initial_state

    def interrupted(*args: Any) -> Any:
        terminate()
        return initial_state(*args)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "initial_state", interrupted)
        said = stopped(tmp_path / "run", capsys)
    assert "stopped before the first step, saved; the same command resumes" in said
    assert checkpoint.steps(tmp_path / "run") == [0]
    again = loop.train(toy.tiny(**SHORT), tmp_path / "run")
    whole = loop.train(toy.tiny(**SHORT), tmp_path / "whole")
    assert again["metrics"] == whole["metrics"]


def test_sigterm_in_the_final_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the evaluation of the last step: what is saved stays, the next call only tests."""

    def change(experiment: Any) -> Any:
        def evaluate(state: Any, split: str) -> Any:
            if int(state["step"]) == 4:
                terminate()
            return experiment.evaluate(state, split)

        return experiment._replace(evaluate=evaluate, splits=("test", "more"))

    with monkeypatch.context() as patch:
        change_toy(patch, change)
        said = stopped(tmp_path / "run", capsys)
    assert "stopped in the final test, saved; the same command resumes" in said
    assert checkpoint.steps(tmp_path / "run")[-1] == 4
    assert loop.train(toy.tiny(**SHORT), tmp_path / "run")["step"] == 4


def test_sigterm_while_the_report_is_made_lets_it_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(experiment: Any) -> Any:
        def figures(records: Any, state: Any) -> Any:
            terminate()
            return {}

        return experiment._replace(figures=figures)

    change_toy(monkeypatch, change)
    loop.train(toy.tiny(**SHORT), tmp_path / "run")
    assert (tmp_path / "run" / "report.html").is_file()
    assert (tmp_path / "run" / "results.json").is_file()


@pytest.mark.parametrize(
    ("name", "stops"), [("kl", True), ("agent/grad_norm", True), ("share", False)]
)
def test_what_must_be_finite(
    name: str, stops: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A NaN in a metric of such a name stops the run with a saved state; others may be NaN."""

    def change(experiment: Any) -> Any:
        def step(state: Any, batch: Any) -> Any:
            after, metrics = experiment.step(state, batch)
            value = jnp.where(after["step"] == 2, jnp.nan, 1.0)
            return after, {**metrics, name: value.astype(jnp.float32)}

        return experiment._replace(step=step)

    change_toy(monkeypatch, change)
    if not stops:
        assert loop.train(toy.tiny(**SHORT), tmp_path / "run")["step"] == 4
        return
    for _ in range(2):  # and the next call does not go on from it
        with pytest.raises(UserError, match=f"non-finite {name} at step 2"):
            loop.train(toy.tiny(**SHORT), tmp_path / "run")
    assert checkpoint.steps(tmp_path / "run")[-1] in (2, 3)


def test_time_goes_on_after_a_resume(tmp_path: Path) -> None:
    """Seconds by kind and the rate are those of the whole run, not of its last process."""
    workdir = tmp_path / "run"
    first = loop.train(toy.tiny(**SHORT), workdir)
    second = loop.train(toy.tiny(**{**SHORT, "train__steps": 12}), workdir)
    for kind, seconds in first["time_s"].items():
        assert second["time_s"][kind] >= seconds - 0.02, kind  # since the log's last record
    assert second["compile_s"] >= first["compile_s"] - 0.02
    assert second["steps_per_s"] is not None and second["wall_s"] > first["wall_s"]
    (workdir / "results.json").unlink()  # died before its end was written: nothing is trained
    third = loop.train(toy.tiny(**{**SHORT, "train__steps": 12}), workdir)
    assert third["steps_per_s"] is not None and third["time_s"]["step"] > 0


def test_another_shape_is_booked_as_compiling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def change(experiment: Any) -> Any:
        def batch(step: int, rows: Any = None) -> Any:
            whole = experiment.batch(step, rows)
            return {**whole, "x": whole["x"][:8], "y": whole["y"][:8]} if step == 2 else whole

        return experiment._replace(batch=batch)

    change_toy(monkeypatch, change)
    loop.train(toy.tiny(**SHORT), tmp_path / "run")
    assert capsys.readouterr().err.count("compiling the step of toy") == 2
    times = [r["time"] for r in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    compiling = np.array([t["compile"] for t in times])
    assert len(np.unique(compiling)) >= 2 and times[-1]["steps"] == 2  # of four, two compiled
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["compile_s"] > 0
