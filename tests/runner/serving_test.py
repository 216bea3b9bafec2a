# SPDX-License-Identifier: Apache-2.0
"""Actions and later runs take the checkpoint that results.json was made from."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from experiments.runner import checkpoint, loop, reopen, serving
from experiments.runner.errors import UserError
from experiments.runner.queries import Query
from tests import toy

pytestmark = pytest.mark.usefixtures("installed")


@pytest.fixture(scope="module")
def selected(tmp_path_factory: pytest.TempPathFactory, installed: None) -> Path:
    """A run whose best checkpoint, of step 10, is not its last, of step 20."""
    workdir = tmp_path_factory.mktemp("serving") / "run"
    scores = (0.0, 1.0, 5.0, 2.0, 3.0)  # of the evaluations at 0, 5, ..., 20
    config = toy.tiny(toy__scores=scores, toy__milestones=(), eval__select=("valid/score", "max"))
    assert loop.train(config, workdir)["tested"] == 10
    return workdir


def test_actions_take_the_tested_checkpoint(
    selected: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reopen.act(selected, "step", Query("")) == "10"
    assert "step 10, the one results.json was made from" in capsys.readouterr().err
    assert checkpoint.steps(selected)[-1] == 20


def test_a_later_run_starts_from_it(
    selected: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    donor = checkpoint.read(selected, 10)["state"]["params"]
    config = toy.tiny(train__steps=1, toy__milestones=(0,), init_from=str(selected))
    loop.train(config, tmp_path / "run")
    started = checkpoint.read(tmp_path / "run", 0)["state"]["params"]
    for name, leaf in donor.items():
        np.testing.assert_array_equal(started[name], leaf)
    assert np.any(donor["w"] != checkpoint.read(selected, 20)["state"]["params"]["w"])
    assert "of step 10, the one results.json was made from" in capsys.readouterr().out


def test_parameters_are_read_alone(selected: Path) -> None:
    params = checkpoint.read_params(selected, 10)
    whole = checkpoint.read(selected, 10)["state"]["params"]
    assert params.keys() == whole.keys()
    for name, leaf in whole.items():
        np.testing.assert_array_equal(params[name], leaf)


def test_a_bare_exception_of_a_reader_is_named(
    selected: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorStore raises no better one."""

    def fail(*_: object, **__: object) -> None:
        raise Exception("from below")

    monkeypatch.setattr("orbax.checkpoint.PyTreeCheckpointer.restore", fail)
    with pytest.raises(UserError, match=r"checkpoints/10/state is damaged: from below"):
        checkpoint.read_params(selected, 10)


def test_results_of_an_older_version_and_none_at_all(selected: Path, tmp_path: Path) -> None:
    """Without the key "tested" the claim says it; without results.json the last one is taken."""
    workdir = tmp_path / "run"
    shutil.copytree(selected, workdir)
    claimed = json.loads((workdir / "results.json").read_text())
    del claimed["tested"]
    (workdir / "results.json").write_text(json.dumps(claimed))
    assert serving.tested_step(workdir) == 10
    (workdir / "results.json").unlink()
    assert serving.step_to_serve(workdir) == (20, "the last one; there is no results.json")


def test_a_tested_checkpoint_that_is_gone_is_named(selected: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(selected, workdir)
    shutil.rmtree(workdir / "checkpoints" / "10")
    with pytest.raises(UserError, match="made from step 10, which is not among"):
        reopen.act(workdir, "step", Query(""))
