# SPDX-License-Identifier: Apache-2.0
"""Every way to misuse the command line: one line that names what is wrong and what is right, a
non-zero exit, nothing compiled, no folder left behind."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest
from absl import flags

from experiments import run
from experiments.runner import checkpoint, command_line, loop
from tests import ROOT, toy

pytestmark = [
    pytest.mark.usefixtures("installed"),
    # ml_collections loads config files that way.
    pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning"),
]
BANYAN = "--config=banyan:tiny"
TOY = "--config=tests/toy.py"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, installed: None) -> Path:
    workdir = tmp_path_factory.mktemp("cli") / "run"
    loop.train(toy.tiny(train__steps=4, toy__milestones=()), workdir)
    return workdir


class Answer:
    """Exit code and everything printed."""

    def __init__(self, code: int, text: str) -> None:
        self.code, self.text = code, text


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command in this process with fresh flags; compiling anything is an error."""

    def called(*words: str, compiles: bool = False) -> Answer:
        values = flags.FlagValues()
        command_line.define_flags(values)
        monkeypatch.chdir(ROOT)
        capsys.readouterr()
        with monkeypatch.context() as patch:
            patch.setattr(flags, "FLAGS", values)
            patch.setattr(sys, "argv", ["run.py", *words])  # ml_collections looks there too
            if not compiles:
                patch.setattr(loop, "jit_step", refuse)
                patch.setattr(loop, "initial_state", refuse)
                patch.setattr(checkpoint, "restore", refuse)
            try:
                rest = command_line.parse(["run.py", *words])
                code: Any = run.dispatch(values, rest[1:])
            except SystemExit as end:
                code = end.code
        captured = capsys.readouterr()
        return Answer(int(code), captured.out + captured.err)

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("compiled before the command line was checked")

    return called


def says(answer: Answer, *parts: str) -> None:
    assert answer.code != 0
    for part in parts:
        assert part in answer.text, answer.text
    assert "Traceback" not in answer.text
    assert answer.text.count("error: ") == 1, answer.text


LEVEL = """; 0
##########
#@ #     #
#  #  .  #
#  #  $  #
#  #     #
#  #     #
#  #     #
#  #     #
#  #     #
##########
"""


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--config.agent.lrr=1"], ["config.agent.lrr", "did you mean 'lr'", "num_envs"]),
        (["--config.agnet.lr=1"], ["config.agnet", "did you mean 'agent'"]),
        (["--config.seed.x=1"], ["config.seed.x does not exist"]),
        (["--worksdir=x"], ["worksdir", "workdir"]),
        (["--config.agent.lr=abc"], ["abc", "lr", "float"]),
        (["--config.train.steps=1e3"], ["config.train.steps=1e3", "int()"]),
        (["--config.seed=1.5"], ["1.5"]),
        (["--num_processes=0"], ["num_processes"]),
        (["--config.agent.lr=-1.0"], ["config.agent", "lr=-1.0", "positive"]),
        (["--config.train.steps=-1"], ["config.train.steps=-1", "at least 0"]),
        (["--config.log.every=0"], ["config.log.every=0", "at least 1"]),
        (["--config.eval.select=('a','best')"], ["config.eval.select", "'best'", '"max"']),
        (["--config.eval.select=('valid/x','max')"], ["config.eval.select", "leave it at"]),
        (["--config.env.shift=('maps',)"], ["config.env", "'maps'", "'layouts'"]),
        (["--config.env.depths=(1,9)"], ["config.env", "depths=(1, 9)", "within 1..6"]),
        (["--config.model.memory=lstm"], ["memory='lstm'", "none, gru"]),
        (["--config.num_seeds=0"], ["config.num_seeds=0", "at least 1"]),
        (["--config.system=banana"], ["config.system='banana'", "did you mean 'banyan'"]),
        (["--config.system=rec.tiger"], ["config.system='rec.tiger'", "tiger"]),
        (["--config.train.steps=13"], ["config.train.steps=13", "phase_steps=6", "lower steps"]),
        (["--config.mesh=(3,1)"], ["config.mesh=(3, 1)", "8 device(s)", "(-1, 1)"]),
        (["--config.mesh=(-1,0)"], ["config.mesh=(-1, 0)", "8 device(s)"]),
        (["--config.agent.num_envs=12"], ["worker/", "12", "8 devices", "config.mesh"]),
        (["--config.env.levels=nowhere.txt"], ["nowhere.txt", "no such file"]),
        (["--config.log.wandb=x"], ["config.log.wandb='x'", "pip install"]),
        (["--config.init_from=nowhere"], ["no checkpoints in nowhere"]),
        (["stray"], ["unexpected word 'stray'", "--help"]),
        (["--coordinator=localhost:1"], ["--coordinator", "--distributed"]),
        (["--query=x"], ["--query", "--mode=train"]),
        (["--require_gpu"], ["--require_gpu", "cpu", "pip install"]),
        (["--mode=check"], ["--mode=check", "leave --config out"]),
    ],
)
def test_misuse(
    words: list[str],
    parts: list[str],
    call: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if not installed, also where it is
    answer = call(BANYAN, f"--workdir={tmp_path / 'run'}", *words)
    says(answer, *parts)
    assert answer.code == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--config=banyan:huge"], ["'huge'", "choose one of base, tiny,", "paper"]),
        (["--config=bamyan"], ["no system is named 'bamyan'", "did you mean 'banyan'", "tiger"]),
        (["--config", "tigger:tiny"], ["--config=tigger:tiny", "did you mean 'tiger'"]),
        (["--config=qqq"], ["no system is named 'qqq'.", "There are: banyan, gnn"]),
        (["--config=experiments/configs/tiger.py:tiny"], ["no such file", "did you mean 'tiger'"]),
        (["--config=bamyan.py"], ["bamyan.py: no such file", "did you mean 'banyan'"]),
        (["--config=own.py", "--config.seed=1"], ["own.py: no such file"]),
        (["--config.seed=1", BANYAN], ["config"]),
        ([], ["--config="]),
        (["--mode=check"], ["--mode=check", "--workdir=DIR"]),
        (["--mode=eval", "--workdir=nowhere"], ["nowhere", "no run folder", "config.json"]),
        (["--mode=watch", "--workdir=nowhere"], ["nowhere", "no run folder"]),
        (["--mode=report"], ["--mode=report", "DIR"]),
        (["--mode=report", "nowhere"], ["nowhere"]),
        ([TOY, "--config.toy.rows=12"], ["batch/x", "12", "8 devices", "batch size"]),
        ([TOY, "--config.toy.rows=0"], ["config.toy.rows=0", "at least 1"]),
    ],
)
def test_misuse_without_a_config_that_stands(
    words: list[str], parts: list[str], call: Any, tmp_path: Path
) -> None:
    if not any(word.startswith(("--workdir", "--mode")) for word in words):
        words = [*words, f"--workdir={tmp_path / 'run'}"]
    says(call(*words), *parts)
    assert not list(tmp_path.iterdir())
    assert not (ROOT / "nowhere").exists()


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (LEVEL, ["levels.txt:2", "not connected"]),  # the player is walled in
        (LEVEL.replace("#  #     #\n", "#  #    #\n", 1), ["levels.txt"]),
        (LEVEL.replace("#  #     #\n", "", 1), ["levels.txt"]),
        (LEVEL.replace("$", "%"), ["levels.txt", "%"]),
    ],
)
def test_bad_level_files(text: str, parts: list[str], call: Any, tmp_path: Path) -> None:
    path = tmp_path / "levels.txt"
    path.write_text(text)
    says(call(BANYAN, f"--workdir={tmp_path / 'run'}", f"--config.env.levels={path}"), *parts)
    assert not (tmp_path / "run").exists()


def folder_bytes(workdir: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in workdir.rglob("*") if p.is_file()}


def test_a_finished_run_is_not_overwritten(trained: Path, call: Any) -> None:
    """Another config: the difference key by key. Fewer steps: said so. No byte changes."""
    before = folder_bytes(trained)
    where, base = f"--workdir={trained}", ["--config.toy.milestones=()", "--config.train.steps=4"]
    answer = call(TOY, where, *base, "--config.toy.lr=0.5", "--config.seed=3")
    says(answer, "another config", "config.toy.lr: 0.05 -> 0.5", "config.seed: 0 -> 3")
    says(answer, "--overwrite")
    assert "config.toy.rows" not in answer.text
    says(call(TOY, where, base[0], "--config.train.steps=3"), "at step 4 already", "steps=3")
    says(call(BANYAN, where), "config.system: 'toy' -> 'banyan'")
    answer = call(TOY, where, *base)
    assert answer.code == 0 and "is complete (step 4)" in answer.text
    assert folder_bytes(trained) == before


def test_a_folder_that_is_no_run(call: Any, tmp_path: Path) -> None:
    """Is left alone; with --overwrite only files of a run are replaced."""
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "metrics.jsonl").write_text("old\n")
    says(call(TOY, f"--workdir={tmp_path}"), str(tmp_path), "no run folder", "--overwrite")
    assert {p.name for p in tmp_path.iterdir()} == {"notes.txt", "metrics.jsonl"}
    says(call("--mode=check", f"--workdir={tmp_path}"), "no run folder")
    words = [TOY, f"--workdir={tmp_path}", "--config.train.steps=2", "--overwrite"]
    # A fault in the config must not cost the folder that was to be replaced.
    says(call(*words, "--config.toy.rows=12"), "batch/x")
    assert (tmp_path / "metrics.jsonl").read_text() == "old\n"


def test_overwrite(call: Any, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    words = [TOY, f"--workdir={workdir}", "--config.train.steps=2", "--config.toy.milestones=()"]
    assert call(*words, compiles=True).code == 0
    (workdir / "notes.txt").write_text("mine")
    assert call(*words, "--config.seed=1", "--overwrite", compiles=True).code == 0
    assert json.loads((workdir / "config.json").read_text())["seed"] == 1
    assert checkpoint.read(workdir)["config"]["seed"] == 1
    assert (workdir / "notes.txt").read_text() == "mine"
    steps = [json.loads(x)["step"] for x in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert steps == [0, 1, 2, 2, 2]


def test_a_non_finite_loss_is_an_error(call: Any, tmp_path: Path) -> None:
    where = f"--workdir={tmp_path / 'run'}"
    answer = call(TOY, where, "--config.toy.bad_step=2", compiles=True)
    says(answer, "error: non-finite loss at step 2", "checkpoints/", "learning rate")
    assert checkpoint.steps(tmp_path / "run")


def test_actions_and_check(trained: Path, call: Any, tmp_path: Path) -> None:
    where = f"--workdir={trained}"
    says(call("--mode=sing", where), "--mode=sing", "train, eval, check, report, export, list, say")
    says(call("--mode=say", where, f"--query=@{tmp_path / 'none'}"), "none", "no such file")
    (tmp_path / "latin").write_bytes(b"\xff\xfe\xff")
    says(call("--mode=say", where, f"--query=@{tmp_path / 'latin'}"), "latin", "decode")
    says(call("--mode=check", where, "--query=x"), "--query", "--mode=check")
    (tmp_path / "q").write_text("from a file")
    answer = call("--mode=say", where, f"--query=@{tmp_path / 'q'}", compiles=True)
    assert answer.code == 0 and "from a file" in answer.text


def test_an_answer_is_text_tables_or_files(trained: Path, call: Any, tmp_path: Path) -> None:
    """The three forms, printed and written; the file holds what is printed."""
    where = f"--workdir={trained}"
    before = folder_bytes(trained)
    words = ("--mode=weights", where, "--query=all", "--top=2")
    printed = call(*words, compiles=True)
    assert printed.code == 0 and printed.text.count("row 3, all") == 1
    out = tmp_path / "weights.csv"
    written = call(*words, f"--out={out}", compiles=True)
    assert written.code == 0 and f"{out}: 8 rows" in written.text
    first = [float(line.split(",")[-2]) for line in out.read_text().splitlines()[1:]]
    matrix = checkpoint.read(trained)["state"]["params"]["w"]
    assert first == pytest.approx(matrix[:, 0].tolist(), abs=1e-6)
    says(call("--mode=plot", where, compiles=True), "plot.png, shape.json", "--out=DIR")
    assert call("--mode=plot", where, f"--out={tmp_path / 'two'}", compiles=True).code == 0
    assert (tmp_path / "two" / "plot.png").read_bytes() == toy.PNG
    says(call("--mode=plot", where, f"--out={trained / 'x'}"), "lies in the run folder")
    assert folder_bytes(trained) == before


def test_three_in_processes_of_their_own(tmp_path: Path) -> None:
    """The real command: before JAX is even imported."""
    for words, part in (
        (["--config.agent.lrr=1"], "did you mean 'lr'"),
        (["--config.agent.lr=-1.0"], "lr=-1.0 must be positive"),
        (["stray"], "unexpected word 'stray'"),
    ):
        words = [BANYAN, f"--workdir={tmp_path / 'run'}", *words]
        process = subprocess.run(
            [sys.executable, "-X", "importtime", "experiments/run.py", *words],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        lines = [x for x in process.stderr.splitlines() if not x.startswith("import time:")]
        assert process.returncode == 2, lines
        assert part in "\n".join(lines) and "Traceback" not in process.stderr
        loaded = {x.split("|")[-1].strip() for x in process.stderr.splitlines() if "|" in x}
        assert "jax" not in loaded and "tensorflow_datasets" not in loaded
    assert not list(tmp_path.iterdir())


def test_a_comparison_goes_to_the_runs_folder(
    trained: Path, call: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nothing is written into the folder the user stands in."""
    monkeypatch.setattr(run, "ROOT", tmp_path / "checkout")
    (tmp_path / "checkout").mkdir()
    (tmp_path / "checkout" / "pyproject.toml").touch()
    monkeypatch.setattr("experiments.runner.shadowing.refuse_foreign_packages", lambda root: None)
    before = set(ROOT.iterdir())
    answer = call("--mode=report", str(trained))
    page = tmp_path / "checkout" / "runs" / "comparison.html"
    assert answer.code == 0 and f"page with curves: {page}" in answer.text and page.is_file()
    assert set(ROOT.iterdir()) == before


def test_a_package_of_the_same_name_is_refused(tmp_path: Path) -> None:
    """Somebody else's `graph`, imported before the command runs: one line, nothing trained."""
    foreign = tmp_path / "graph"
    foreign.mkdir()
    (foreign / "__init__.py").write_text("")
    code = f"""
import runpy, sys
sys.path.insert(0, {str(tmp_path)!r})
import graph
sys.argv = ["run.py", "--config=banyan:tiny"]
runpy.run_path("experiments/run.py", run_name="__main__")
"""
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert process.returncode == 2
    (line,) = process.stderr.splitlines()
    assert "'graph'" in line and f"shadowed by {foreign}" in line and "uninstall" in line


def test_require_gpu_is_about_the_backend() -> None:
    assert jax.default_backend() == "cpu"  # else the case in test_misuse would train
