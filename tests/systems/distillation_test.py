# SPDX-License-Identifier: Apache-2.0
"""Students as systems: teachers that do not fit, whole run folders, stages, controls, devices."""

import json
import re
import shutil
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from experiments.runner import checkpoint, loop, names, reopen, settings
from experiments.runner.assemble import assemble
from experiments.runner.errors import UserError
from experiments.runner.queries import Query
from experiments.systems.rec.recommenders import distillation, wiring
from rec import metrics
from rec.data import cards
from rec.sid import table
from tests.systems.contract_test import on_devices
from tests.tiny_systems import assert_same_training, run_steps, tiny

SMALL = {"data__users": 60, "eval__rows": 16, "eval__draws": 10}
STUDENTS = ("sid_mlp", "sid_mlp_pp")


class Kept(NamedTuple):
    """What a student reads of a teacher's run before it takes the parameters."""

    state: dict[str, Any]
    values: dict[str, Any]
    artifacts: dict[str, Any]


@cache
def kept() -> Kept:
    """Of a tiger whose SIDs are drawn; its parameters are no model's, for every test refuses it."""
    config = tiny("tiger", **SMALL)
    loaded = wiring.load(config)
    sizes = (8, 8, 8)
    sids = np.random.default_rng(0).integers(0, 8, (len(loaded.corpus.items), 3)).astype(np.int32)
    sha256 = table.sha256(sids, sizes)
    card = cards.card(loaded.corpus, loaded.split)
    names = ("items", "texts", "rows", "ranks", "plus", "popularity")
    sid = {"table": sids, "sizes": list(sizes), "sha256": sha256}
    words = np.frombuffer(bytes.fromhex(sha256), np.uint32)
    return Kept(
        {"params": {"codes": np.zeros(3, np.float32)}, "sid_sha256": words},
        settings.to_json(config),
        {**dict.fromkeys(names, 0), "card": card, "sid": sid},
    )


def leave(folder: Path, run: Kept) -> Path:
    """Writes what a finished run leaves of a folder, as far as a student reads it."""
    folder.mkdir()
    with checkpoint.open_manager(folder) as manager:
        checkpoint.save(manager, 0, run.state, run.values, run.artifacts)
        manager.wait_until_finished()
    (folder / "config.json").write_text(json.dumps(run.values))
    claimed = {"metrics": {}, "tolerance": {}, "checkpoint_of": {}, "step": 0, "tested": 0}
    (folder / "results.json").write_text(json.dumps(claimed))
    return folder


@pytest.fixture(scope="module")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return leave(tmp_path_factory.mktemp("teachers") / "whole", kept())


def student(folder: Path, system: str = "sid_mlp", **changes: Any) -> Any:
    return tiny(system, **{**SMALL, "teacher": str(folder), **changes})


def refused(config: Any, workdir: Path) -> str:
    """The one line that a run with this config ends with; nothing is left behind."""
    with pytest.raises(UserError) as caught:
        loop.train(config, workdir)
    assert not workdir.exists()
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_teachers_that_do_not_fit(teacher_folder: Path, tmp_path: Path) -> None:
    """Each is one line that names the field and what differs."""
    run = tmp_path / "run"
    named = re.escape(f"config.teacher={teacher_folder}: ")
    cases = (
        (student(tmp_path / "moved"), r"config\.teacher=.*moved: no checkpoints in"),
        (student(teacher_folder, data__users=50), named + "its sha256_sequences is"),
        (student(teacher_folder, seed=1), named + "its sha256_sequences is"),
        (tiny("sid_mlp", **SMALL, distill__brief_teacher=""), "config.teacher is empty.*tiger:t5"),
        (student(teacher_folder, "sid_mlp_pp"), named + "its layout is 'packed'.*tiger:t5"),
    )
    for config, message in cases:
        line = refused(config, run)
        assert re.match(message, line), line


def test_damaged_and_foreign_teachers(teacher_folder: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    unfinished = tmp_path / "unfinished"
    shutil.copytree(teacher_folder, unfinished)
    (unfinished / "results.json").unlink()
    message = refused(student(unfinished), workdir)
    assert message.startswith(f"config.teacher={unfinished}: no finished run is there")
    state, values, artifacts = kept()
    other = artifacts["sid"]["table"][::-1].copy()
    data = {**values["data"], "split": "temporal"}
    words = np.arange(8, dtype=np.uint32)
    cases = (
        (Kept(state, {**values, "system": "sasrec"}, artifacts), "its system is 'sasrec'"),
        (
            Kept(state, {**values, "data": data}, artifacts),
            "its split differs: config.data.split 'temporal', here 'leave_one_out'",
        ),
        (
            Kept(state, values, {**artifacts, "sid": {**artifacts["sid"], "table": other}}),
            "its SID hash differs: its table has",
        ),
        (
            Kept({**state, "sid_sha256": words}, values, artifacts),
            "its SID hash differs: .* trained with 0000",
        ),
    )
    for number, (run, message) in enumerate(cases):
        folder = leave(tmp_path / str(number), run)
        line = refused(student(folder), workdir)
        assert re.match(re.escape(f"config.teacher={folder}: ") + message, line), line


def test_keys_of_the_top_level_are_those_of_the_system(teacher_folder: Path) -> None:
    """`teacher` is a key of students; other systems refuse it; its content counts, not its path."""
    config = names.config_module("tiger").get_config("tiny")
    with config.unlocked():
        config.teacher = "somewhere"
    with pytest.raises(UserError, match=r"config keys \['teacher'\] are unknown"):
        settings.groups(config)
    config = names.config_module("sid_mlp").get_config("tiny")
    with config.unlocked():
        del config.teacher
    with pytest.raises(UserError, match=r"config keys \['teacher'\] are unknown or missing"):
        settings.groups(config)
    hashes = set()
    for path, digest in (("a", "1"), ("b", "1"), ("b", "2")):
        values = settings.to_json(student(Path(path)))
        hashes.add(settings.config_hash({**values, settings.CONTENT: {"teacher": digest}}))
    assert len(hashes) == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"eval__beams": 9}, "config.eval.beams=9 must be at least 10"),
        ({"eval__normaliser": "full"}, "normaliser='full': a student scores level by level"),
        ({"eval__normaliser": "digit"}, "children_only=True needs normaliser='children'"),
        ({"eval__constrained": False}, "normaliser='children' needs constrained=True"),
    ],
)
def test_bad_values_are_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        tiny("sid_mlp", **changes)


def test_a_reader_of_one_mlp_a_digit_cannot_start_anew() -> None:
    with pytest.raises(UserError, match="is of sid_mlp"):
        tiny("sid_mlp_pp", distill__control="scratch", distill__alpha=0.0)


def test_a_ratio_and_its_interval() -> None:
    """A constant ratio has an interval of no width; of two halves of the users the interval holds
    the ratio of the means; nothing to divide by is refused."""
    theirs = np.repeat([0.5, 1.0], 200)
    low, high = metrics.ratio_bootstrap(0.8 * theirs, theirs, draws=50)
    assert low == pytest.approx(0.8) == high
    ours = np.concatenate([np.ones(200), np.zeros(200)])
    low, high = metrics.ratio_bootstrap(ours, theirs, draws=400)
    assert low < 0.5 / 0.75 < high and high - low < 0.3
    sparse = np.zeros(30)
    sparse[0] = 1.0  # a third of all draws have no hit to divide by
    assert metrics.ratio_bootstrap(sparse, sparse, draws=100) == (1.0, 1.0)
    with pytest.raises(ValueError, match="theirs are all 0"):
        metrics.ratio_bootstrap(ours, np.zeros(400))
    with pytest.raises(ValueError, match="the same queries"):
        metrics.ratio_bootstrap(ours, theirs[:3])


# ------------------------------------------------------------------------------ whole runs, deep


@pytest.mark.deep
@pytest.mark.trains
@pytest.mark.parametrize(
    ("system", "variant"), [("sid_mlp", "tiny"), ("sid_mlp", "tiny_t5"), ("sid_mlp_pp", "tiny_t5")]
)
def test_a_run_folder_stays_whole_without_its_teacher(
    system: str, variant: str, tmp_path: Path
) -> None:
    """A teacher is trained, taught from and deleted: the student's folder checks and recommends."""
    teacher = tmp_path / "teacher"
    short = {"train__steps": 4, "train__save_every": 4, "eval__every": 4}
    config = names.config_module("tiger").get_config(variant)
    config.data.update(tiny(system, **SMALL).data)
    config.train.update({"steps": 4, "save_every": 4})
    config.eval.update({"every": 4, "draws": 10})
    loop.train(config, teacher)
    stages = {"mixer__updates": 2} if system == "sid_mlp_pp" else {}
    made = tmp_path / "student"
    loop.train(student(teacher, system, **short, **stages), made)
    shutil.rmtree(teacher)
    assert reopen.check(made) == []
    saved = checkpoint.read(made)
    assert not {"teacher"} & set(saved["state"]["params"])
    items = saved["artifacts"]["items"]
    tables = list(reopen.act(made, "recommend", Query(f"{items[3]} {items[5]}")))
    assert len(tables[0]["item"]) >= 5
    claimed = json.loads((made / "results.json").read_text())["metrics"]
    assert 0 <= claimed["teacher/test/ndcg@10"] <= 1
    lines = [json.loads(line) for line in (made / "metrics.jsonl").read_text().splitlines()]
    if system == "sid_mlp_pp":
        told = [line["stage"] for line in lines if line["split"] == "train"]
        assert told == [1.0, 1.0, 2.0, 2.0]
        assert all(line["states_error"] > 0 for line in lines if line["split"] == "train")


@cache
def artifacts(system: str) -> dict[str, Any]:
    return assemble(tiny(system, **SMALL)).artifacts


@pytest.mark.deep
@pytest.mark.trains
@pytest.mark.parametrize("system", STUDENTS)
def test_devices_agree(system: str) -> None:
    runs = {}
    for mesh, devices in (((1, 1), 1), ((8, 1), 8)):
        config = tiny(system, **SMALL)
        asm = on_devices(config, mesh, devices, artifacts(system))
        runs[mesh] = run_steps(asm, 2)
    assert_same_training(runs[8, 1], runs[1, 1])


@pytest.mark.deep
@pytest.mark.trains
@pytest.mark.parametrize(
    "changes",
    [
        {"distill__control": "blind"},
        {"distill__control": "shuffled_labels"},
        {"distill__control": "scratch", "distill__alpha": 0.0},
        {"distill__alpha": 0.0},
        {"eval__fold": False, "eval__children_only": False, "eval__normaliser": "digit"},
        {"eval__exact": True},
    ],
)
def test_controls_train_and_decode(changes: dict[str, Any]) -> None:
    """Each steps, evaluates and keeps a state of its own; a blind one has no read-out, one from
    scratch a reader."""
    asm = assemble(tiny("sid_mlp", **SMALL, **changes), artifacts("sid_mlp"))
    state, told = run_steps(asm, 2)
    assert np.isfinite([m["loss"] for m in told]).all()
    found = asm.experiment.evaluate(state, "test")
    assert 0 <= found["test/recall@10"] <= 1 and found["test/invalid@10"] <= 1
    control = changes.get("distill__control", "none")
    assert ("read_out" in state["params"]) == (control != "blind")
    assert ("reader" in state["params"]) == (control == "scratch")
    if "eval__exact" in changes:
        assert "test/recall@10/exact" in found


def test_brief_teachers_are_named_variants() -> None:
    for system in STUDENTS:
        config = names.config_module(system).get_config("tiny")
        assert config.distill.brief_teacher in names.config_module("tiger").VARIANTS
        assert not names.config_module(system).get_config("base").distill.brief_teacher
    assert "tiger:t5" in distillation.MAKE_TEACHER
