# SPDX-License-Identifier: Apache-2.0
"""--list and --help: every system, flag and key is there, fast and without JAX; a file of one's own
is a system."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from experiments.runner import checkpoint, listing, names, settings, sharding
from tests import ROOT

OWN = ROOT / "experiments" / "examples" / "minimal_system.py"


def command(*words: str, imports: bool = False) -> subprocess.CompletedProcess[str]:
    python = [sys.executable, *(["-X", "importtime"] if imports else [])]
    words = (*python, "experiments/run.py", *words)
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "words", [("--list",), ("--mode=list",), ("--help",), ("--config=tiger:tiny", "--help")]
)
def test_without_jax(words: tuple[str, ...]) -> None:
    said = command(*words, imports=True)
    assert said.returncode == 0 and said.stdout
    loaded = {line.split("|")[-1].strip() for line in said.stderr.splitlines() if "|" in line}
    assert "absl.flags" in loaded and "jax" not in loaded and "tensorflow_datasets" not in loaded


def test_the_list_names_every_system() -> None:
    text = listing.list_text()
    for system in names.systems():
        module = names.config_module(system)
        assert f"  {system}  " in text
        assert ":tiny" in listing.variants_text(module.VARIANTS)
    assert max(len(line) for line in text.splitlines()) <= 120


def test_help_of_a_system_names_every_key_with_what_is_allowed() -> None:
    """The rule printed is that of the error a wrong value gets."""
    for system in names.systems():
        config = names.config_module(system).get_config("tiny")
        text = listing.system_help(config)
        for key in settings.flatten(config.to_dict()):
            if key not in ("system", "variant"):
                assert f"--config.{key}=" in text, key
    config = names.config_module("tiger").get_config("tiny")
    lines = {
        found[1]: found[2].strip()
        for found in re.finditer(
            r"--config\.(\S+?)=(?:'[^']*'|\S+)(.*)", listing.system_help(config)
        )
    }
    assert lines["model.layers"] == "must be at least 1"
    assert lines["optim.b1"] == "must be in [0, 1)"
    assert lines["model.mlp"].startswith("must be one of ('gelu', 'relu'")


def test_help_of_a_wrong_config_is_an_error() -> None:
    said = command("--config=tiger:tiny", "--config.model.layers=0", "--help")
    assert said.returncode == 2 and "layers=0" in said.stderr and not said.stdout


MISUSES = [
    (["--config=banjan"], "did you mean 'banyan'"),
    (["--config=banyan:tiney"], "choose one of"),
    (["--config", "banyan:tiny", "--config.agent.lrr=1"], "did you mean 'lr'"),
    (["--config=banyan:tiny", "--seed=3"], "did you mean --config.seed"),
    (["--config=banyan:tiny", "--agent.lr=3"], "did you mean --config.agent.lr"),
    (["--config=banyan:tiny", "--list=3"], "list"),
    (["--mode=check", "--workdir=nowhere"], "nowhere is no run folder"),
    (["--mode=recommend", "--workdir=nowhere", "--query=all"], "nowhere is no run folder"),
    (["--mode=report", "nowhere"], "nowhere"),
    (["--config=OWN", "--mode=export", "--workdir=RUN"], "--out=FILE.safetensors"),
    (
        ["--config=OWN", "--mode=export", "--workdir=RUN", "--out=x.npz"],
        "--out=FILE.safetensors, not",
    ),
    (["--mode=classify", "--workdir=RUN", "--query=@none.csv"], "none.csv: no such file"),
    (["--mode=check", "--workdir=RUN"], "add --config=PATH/minimal_system.py"),
    (["--mode=check", "--workdir=RUN", "--config=banyan"], "leave --config out"),
    (["--config=banyan:tiny", "--top=3"], "--top belongs to an action"),
]


@pytest.fixture(scope="module")
def own_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("own") / "run"
    said = command(f"--config={OWN}:tiny", f"--workdir={workdir}")
    assert said.returncode == 0, said.stderr
    return workdir


@pytest.mark.parametrize(("words", "part"), MISUSES, ids=range(len(MISUSES)))
def test_every_misuse_is_one_line_without_jax(words: list[str], part: str, own_run: Path) -> None:
    given = [w.replace("RUN", str(own_run)).replace("OWN", str(OWN)) for w in words]
    said = command(*given, imports=True)
    lines = said.stderr.splitlines()
    printed = [line for line in lines if not line.startswith("import time:")]
    loaded = {line.split("|")[-1].strip() for line in lines if "|" in line}
    assert said.returncode == 2 and "jax" not in loaded
    errors = [line for line in printed if not line.startswith("see python")]
    assert len(errors) == 1 and part in errors[0], printed


def test_a_file_of_ones_own_is_a_system(own_run: Path, tmp_path: Path) -> None:
    """Checked, asked and exported with the very file; refused without it or with another one."""
    where = f"--workdir={own_run}"
    results = json.loads((own_run / "results.json").read_text())
    assert results["system"] == "minimal_system" and results["source"]["file"] == OWN.name
    assert command(f"--config={OWN}", where, "--mode=check").returncode == 0
    out = tmp_path / "params.safetensors"
    assert command(f"--config={OWN}", where, "--mode=export", f"--out={out}").returncode == 0
    saved = sharding.leaf_paths(checkpoint.read(own_run)["state"]["params"])
    exported = load_file(out)
    assert exported.keys() == saved.keys()
    for name, leaf in saved.items():
        np.testing.assert_array_equal(exported[name], leaf)
    changed = tmp_path / OWN.name
    changed.write_text(OWN.read_text(encoding="utf-8") + "\n# another\n", encoding="utf-8")
    for words in (["--mode=check"], []):
        said = command(f"--config={changed}:tiny", where, *words)
        assert said.returncode == 2 and "Traceback" not in said.stderr


def test_own_files_that_are_refused(tmp_path: Path) -> None:
    source = OWN.read_text(encoding="utf-8")
    cases = {
        "banyan.py": (source, "there is a system named 'banyan'"),
        "two-words.py": (source, "letters, digits and _"),
        "other.py": (source, "must be the name of the file, 'other'"),
        "broken.py": ("def make(:\n", "no Python file"),
        "half.py": ("def make(config, artifacts): ...\n", "no get_config, GROUPS, VARIANTS"),
    }
    for name, (text, part) in cases.items():
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        said = command(f"--config={path}", f"--workdir={tmp_path / 'run'}")
        assert said.returncode == 2 and part in said.stderr, said.stderr
        assert "Traceback" not in said.stderr
    assert not (tmp_path / "run").exists()
