# SPDX-License-Identifier: Apache-2.0
"""The finished runs kept in the repository: saved with the oldest jax, one of them on 4 devices,
read on any."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from experiments.runner import checkpoint, reopen
from tests import ROOT

RUN = ROOT / "experiments" / "results" / "banyan-small"
SMALL = sorted((ROOT / "experiments" / "results" / "runs").iterdir())


def test_it_is_small_and_says_what_made_it() -> None:
    files = [path for path in RUN.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 1_000_000
    env = json.loads((RUN / "env.json").read_text())
    assert env["versions"]["jax"] == "0.10.2" and len(env["devices"]) == 4
    assert "configs/banyan.py:small" in (RUN / "command.txt").read_text()


def test_it_reads_without_the_system() -> None:
    saved = checkpoint.read(RUN)
    assert saved["step"] == 400 and saved["config"]["variant"] == "small"
    kernel = saved["state"]["params"]["params"]["encoder0"]["kernel"]
    assert isinstance(kernel, np.ndarray) and kernel.shape[-1] == 40
    results = json.loads((RUN / "results.json").read_text())
    count = sum(np.size(leaf) for leaf in _leaves(saved["state"]["params"]))
    assert count == results["params"]
    assert "layouts/slot" in saved["artifacts"]


def _leaves(tree: object) -> list:
    return [x for v in tree.values() for x in _leaves(v)] if isinstance(tree, dict) else [tree]


@pytest.mark.deep
@pytest.mark.users_compiler  # it runs for longer than it compiles
def test_every_claimed_number_holds() -> None:
    """The check a reviewer runs, here on 8 devices."""
    assert reopen.check(RUN) == []


def test_there_is_a_small_one_of_each_library() -> None:
    assert [path.name for path in SMALL] == ["attention", "banyan", "graph", "rec"]


@pytest.mark.parametrize("run", SMALL, ids=lambda path: path.name)
def test_it_is_small_and_names_no_machine(run: Path) -> None:
    files = [path for path in run.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 400_000
    env = json.loads((run / "env.json").read_text())
    assert env["versions"]["jax"] == "0.10.2" and "dirty" not in env["commit"]
    assert "--workdir=runs/" in (run / "command.txt").read_text()
    for path in files:
        if path.suffix in (".json", ".jsonl", ".txt"):
            absolute = re.search(r"""(^|[\s"'=])/\w+/""", path.read_text(encoding="utf-8"))
            assert absolute is None, f"{path}: {absolute}"


@pytest.mark.deep
@pytest.mark.users_compiler
@pytest.mark.parametrize("run", SMALL, ids=lambda path: path.name)
def test_every_claimed_number_of_it_holds(run: Path) -> None:
    assert reopen.check(run) == []
