# SPDX-License-Identifier: Apache-2.0
"""Grids: the product, folders with readable names, finished runs skipped, a failure that stops
nothing, and the same runs as a job array."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from experiments import sweep
from experiments.runner import grid, names, settings
from experiments.runner.errors import UserError
from tests import ROOT

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
OWN = "experiments/examples/minimal_system.py:tiny"
GRID = [f"--config={OWN}", "--config.model.lr=1e-2,3e-2,1e-1", "--seeds=0-1"]

# What a run leaves, without training: a value of .03 fails, and every call is counted.
FAKE = """
import json, sys
from pathlib import Path
workdir, values, calls = Path(sys.argv[1]), json.loads(sys.argv[2]), Path(sys.argv[3])
with calls.open("a") as file:
    file.write(workdir.name + "\\n")
if values["model"]["lr"] == 0.03 and not (calls.parent / "mended").exists():
    sys.exit("error: this one fails")
workdir.mkdir(parents=True)
(workdir / "config.json").write_text(json.dumps(values))
head = {"system": values["system"], "variant": values["variant"], "seed": values["seed"]}
metrics = {"metrics": {"test/accuracy": values["model"]["lr"]}}
metrics |= {"tolerance": {}, "checkpoint_of": {}}
(workdir / "results.json").write_text(json.dumps({**head, **metrics, "step": 20, "tested": 20}))
"""


@pytest.fixture(autouse=True)
def forget_the_example() -> Iterator[None]:
    """Members are loaded in this process: other tests must not find that system."""
    yield
    names.forget("minimal_system")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Names of the members started, in order; training is replaced by FAKE."""
    monkeypatch.chdir(ROOT)
    log = tmp_path / "calls"

    def command(self: sweep.Sweep, member: grid.Member) -> list[str]:
        values = json.dumps(member.values)
        return [sys.executable, "-c", FAKE, str(self.out / member.name), values, str(log)]

    monkeypatch.setattr(sweep.Sweep, "command", command)
    return lambda: log.read_text().split() if log.exists() else []


def test_every_combination_has_its_folder_and_config() -> None:
    os.chdir(ROOT)
    lines = [
        "--config.model.lr=1e-2,3e-2",
        "--config.model.width=8,16",
        "--config.eval.select=('valid/accuracy','max')",
        "--config.mesh=(1,1),(2,1)",
    ]
    found = grid.members(OWN, lines, [0, 3])
    wanted = list(itertools.product((0.01, 0.03), (8, 16), ([1, 1], [2, 1]), (0, 3)))
    got = [
        (m.values["model"]["lr"], m.values["model"]["width"], m.values["mesh"], m.values["seed"])
        for m in found
    ]
    assert got == wanted
    assert found[0].name == "lr=1e-2_width=8_mesh=-1-1_s0"  # one value only: not in the name
    assert len({m.name for m in found}) == len(found)
    assert all(m.values["eval"]["select"] == ["valid/accuracy", "max"] for m in found)
    (alone,) = grid.members(OWN, [], [7])
    assert alone.name == "s7"
    long = grid.members(OWN, ["--config.data.root=" + "a" * 300 + "," + "a" * 300 + "b"], [0])
    assert len({m.name for m in long}) == 2 and max(len(m.name) for m in long) < 200


def test_lists_of_values_and_seeds() -> None:
    assert grid.split_values("1,(2,3),'a,b',[4,[5,6]]") == ["1", "(2,3)", "'a,b'", "[4,[5,6]]"]
    assert grid.parse_seeds("0-2,7") == [0, 1, 2, 7]
    for text in ("", "a", "3-1", "1,1", "0-2,1", "-1"):
        with pytest.raises(UserError, match="--seeds"):
            grid.parse_seeds(text)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--config.model.lr=1e-2,-1"], "config.model.lr=-1.0 must be at least 0"),
        (["--config.model.lrr=1"], "did you mean 'lr'"),
        (["--config.model.width=8,x"], "x"),
        (["--config.model.lr=1,"], "--config.model.lr"),
        (["--config.model.lr=1,1"], "a value is there twice"),
        (["--config.model.lr=1,1.0"], "the same run"),
        (["--config.model.lr=1", "--config.model.lr=2"], "there twice"),
        (["--config.seed=1,2"], "--seeds"),
        (["--seed=1"], "did you mean --seeds"),
        (["--seeds=x"], "--seeds=x"),
        (["--jobs=0"], "--jobs=0"),
        (["--jobs=x"], "--jobs"),
        (["--index=3"], "members 0 to 0"),
        (["stray"], "unexpected word 'stray'"),
    ],
)
def test_misuse_starts_nothing(
    words: list[str], part: str, calls: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert sweep.main([f"--config={OWN}", f"--out={out}", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and part in line
    assert not out.exists() and not calls()


def test_a_failure_stops_nothing_and_a_second_try_runs_only_that(
    calls: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert sweep.main([*GRID, f"--out={out}", "--jobs=2"]) == 1
    said = capsys.readouterr().out
    assert sorted(calls()) == sorted(
        f"lr={lr}_s{s}" for lr in ("1e-2", "3e-2", "1e-1") for s in (0, 1)
    )
    assert "failed: lr=3e-2_s0" in said and "failed: lr=3e-2_s1" in said
    assert "this one fails" in (out / "logs" / "lr=3e-2_s0.log").read_text()
    assert "test/accuracy" in said and (out / "comparison.html").is_file()
    (tmp_path / "mended").touch()
    before = len(calls())
    assert sweep.main([*GRID, f"--out={out}"]) == 0
    assert sorted(calls()[before:]) == ["lr=3e-2_s0", "lr=3e-2_s1"]
    before = len(calls())
    assert sweep.main([*GRID, f"--out={out}"]) == 0
    assert len(calls()) == before


def test_a_job_array_runs_every_member_once(calls: Any, tmp_path: Path) -> None:
    (tmp_path / "mended").touch()
    out = f"--out={tmp_path / 'out'}"
    codes = [sweep.main([*GRID, out, f"--index={index}"]) for index in range(6)]
    assert codes == [0] * 6 and len(calls()) == 6 == len(set(calls()))
    assert sweep.main([*GRID, out, "--index=6"]) == 2
    assert sweep.main([*GRID, out]) == 0 and len(calls()) == 6


def test_dry_prints_what_would_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert sweep.main([*GRID, f"--out={tmp_path / 'out'}", "--dry"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 and all("run.py" in line and "--workdir=" in line for line in lines)
    assert not (tmp_path / "out").exists()


def test_another_config_in_a_folder_is_not_taken_for_finished(calls: Any, tmp_path: Path) -> None:
    (tmp_path / "mended").touch()
    out = tmp_path / "out"
    assert sweep.main([*GRID, f"--out={out}"]) == 0
    stored = json.loads((out / "lr=1e-2_s0" / "config.json").read_text())
    member = grid.members(OWN, ["--config.model.lr=1e-2"], [0])[0]
    assert settings.difference(stored, member.values) == []
    assert grid.is_finished(out / "lr=1e-2_s0", member)
    other = grid.members(OWN, ["--config.model.lr=2e-2"], [0])[0]
    longer = grid.members(OWN, ["--config.model.lr=1e-2", "--config.train.steps=21"], [0])[0]
    assert not grid.is_finished(out / "lr=1e-2_s0", other)
    assert not grid.is_finished(out / "lr=1e-2_s0", longer)


@pytest.mark.deep
def test_a_killed_sweep_goes_on(tmp_path: Path) -> None:
    """The real command, killed with its run; the second one starts what is missing."""
    out = tmp_path / "out"
    words = [sys.executable, "experiments/sweep.py", *GRID, f"--out={out}"]
    process = subprocess.Popen(words, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL)
    first = out / "lr=1e-2_s0" / "results.json"
    while not first.exists():
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = {path.parent.name: path.stat().st_mtime_ns for path in out.glob("*/results.json")}
    assert 1 <= len(done) < 6
    second = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"6 runs, {len(done)} finished before" in second.stdout
    assert second.stdout.count("finished  lr=") == 6 - len(done)
    after = {path.parent.name: path.stat().st_mtime_ns for path in out.glob("*/results.json")}
    assert len(after) == 6 and all(after[name] == stamp for name, stamp in done.items())
