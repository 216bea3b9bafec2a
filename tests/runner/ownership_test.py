# SPDX-License-Identifier: Apache-2.0
"""A run folder has one writer, and every checkpoint in it was saved by its run."""

import json
import multiprocessing
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from experiments.runner import checkpoint, loop, reopen, settings
from experiments.runner.content import digests
from experiments.runner.errors import UserError
from experiments.runner.lock import LOCK, FolderLock
from experiments.runner.queries import Query
from tests import toy
from tests.tiers import deep

pytestmark = pytest.mark.usefixtures("installed")
SHORT = {"train__steps": 4, "toy__milestones": ()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, installed: None) -> Path:
    workdir = tmp_path_factory.mktemp("ownership") / "run"
    loop.train(toy.tiny(**SHORT), workdir)
    return workdir


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def hold(workdir: Path, ready: Any, end: Any) -> None:
    with FolderLock(workdir) as lock:
        lock.started = True
        ready.set()
        end.wait()


@pytest.fixture
def other_writer() -> Any:
    """Starts a process that holds the lock of a folder; ends it with the test."""
    context = multiprocessing.get_context("spawn")
    started: list[tuple[Any, Any]] = []

    def start(workdir: Path) -> Any:
        ready, end = context.Event(), context.Event()
        process = context.Process(target=hold, args=(workdir, ready, end))
        process.start()
        assert ready.wait(60)
        started.append((process, end))
        return process

    yield start
    for process, end in started:
        if process.is_alive():
            end.set()
        process.join(60)


@pytest.mark.parametrize("fresh", [True, deep(False)])
def test_a_second_writer_is_refused(
    fresh: bool, trained: Path, other_writer: Any, tmp_path: Path
) -> None:
    """Fresh or to be resumed: folder and holder are named and no byte changes."""
    workdir = tmp_path / "run"
    if not fresh:
        shutil.copytree(trained, workdir)
    process = other_writer(workdir)
    before = content(workdir)
    with pytest.raises(UserError, match=f"{workdir} is being written by process {process.pid} on"):
        loop.train(toy.tiny(**{**SHORT, "train__steps": 6}), workdir)
    assert content(workdir) == before
    reopen.evaluate_last(trained)  # reading needs no lock


@pytest.mark.deep
def test_a_killed_writer_leaves_the_folder_free(
    trained: Path, other_writer: Any, tmp_path: Path
) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    process = other_writer(workdir)
    process.kill()
    process.join(60)
    assert (workdir / LOCK).read_text().startswith(f"process {process.pid}")
    assert loop.train(toy.tiny(**{**SHORT, "train__steps": 6}), workdir)["step"] == 6
    assert (workdir / LOCK).read_text() == ""


def test_a_run_that_does_not_start_leaves_no_lock(tmp_path: Path) -> None:
    workdir = tmp_path / "a" / "b"
    with pytest.raises(UserError, match="batch/x"):
        loop.train(toy.tiny(toy__rows=12), workdir)
    assert not any(tmp_path.iterdir())
    workdir.mkdir(parents=True)
    (workdir / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="no run folder"):
        loop.train(toy.tiny(), workdir)
    assert [path.name for path in workdir.iterdir()] == ["notes.txt"]


def test_a_lock_that_was_removed_meanwhile_is_taken_anew(tmp_path: Path) -> None:
    with FolderLock(tmp_path / "run") as first:
        first.started = True
        os.unlink(tmp_path / "run" / LOCK)
        with FolderLock(tmp_path / "run") as second:
            second.started = True
            with (
                pytest.raises(UserError, match=f"process {os.getpid()}"),
                FolderLock(tmp_path / "run"),
            ):
                pass


def test_a_log_of_two_writers_is_refused(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "run")
    log = tmp_path / "run" / "metrics.jsonl"
    first = log.read_text().splitlines()[0]
    log.write_text(log.read_text() + first + "\n")
    with pytest.raises(UserError, match=r"metrics.jsonl, line \d+: a second record of step 0"):
        loop.train(toy.tiny(**{**SHORT, "train__steps": 6}), tmp_path / "run")


def foreign(trained: Path, workdir: Path, tmp_path: Path) -> Path:
    """A copy of the run whose last checkpoint is that of another seed."""
    shutil.copytree(trained, workdir)
    other = tmp_path / "other"
    loop.train(toy.tiny(**SHORT, seed=1), other)
    shutil.rmtree(workdir / "checkpoints" / "4")
    shutil.copytree(other / "checkpoints" / "4", workdir / "checkpoints" / "4")
    return workdir


def test_a_checkpoint_of_another_run_is_refused(trained: Path, tmp_path: Path) -> None:
    """By resume, eval, check and actions; the differing key is named."""
    workdir = foreign(trained, tmp_path / "run", tmp_path)
    before = content(workdir)
    reads = (
        lambda: loop.train(toy.tiny(**{**SHORT, "train__steps": 6}), workdir),
        lambda: reopen.evaluate_last(workdir),
        lambda: reopen.check(workdir),
        lambda: reopen.act(workdir, "say", Query("x")),
    )
    for read in reads:
        with pytest.raises(UserError, match=r"another run(.|\n)*config.seed: 1 -> 0"):
            read()
    assert content(workdir) == before


@pytest.mark.parametrize("damage", ["missing", "torn"])
def test_a_checkpoint_without_its_config_is_refused(
    damage: str, trained: Path, tmp_path: Path
) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    path = workdir / "checkpoints" / "4" / "config" / "metadata"
    if damage == "missing":
        path.unlink()
    else:
        path.write_text(json.dumps(checkpoint.read_json(workdir, 4))[:-3])
    for read in (reopen.evaluate_last, reopen.check):
        with pytest.raises(UserError, match="config/metadata"):
            read(workdir)


@pytest.fixture(scope="module")
def donors(tmp_path_factory: pytest.TempPathFactory, installed: None) -> tuple[Path, Path]:
    """Two runs that differ in their seed."""
    home = tmp_path_factory.mktemp("donors")
    for seed in (0, 1):
        loop.train(toy.tiny(**SHORT, seed=seed), home / str(seed))
    return home / "0", home / "1"


@pytest.mark.deep
def test_a_donor_may_move_but_not_change(donors: tuple[Path, Path], tmp_path: Path) -> None:
    """A resume compares what the donor holds, not where it lies; gone altogether, it goes on."""
    workdir = tmp_path / "run"
    donor = tmp_path / "donor"
    shutil.copytree(donors[0], donor)
    config = {**SHORT, "toy__lr": 0.01}
    loop.train(toy.tiny(**config, init_from=str(donor)), workdir)
    digest = json.loads((workdir / "config.json").read_text())["content"]["init_from"]
    assert checkpoint.read_json(workdir, 4)["content"] == {"init_from": digest}

    moved = donor.rename(tmp_path / "moved")
    more = {**config, "train__steps": 6}
    assert loop.train(toy.tiny(**more, init_from=str(moved)), workdir)["step"] == 6
    exchanged = {**config, "train__steps": 8, "init_from": str(donors[1])}
    before = content(workdir)
    with pytest.raises(UserError, match=f"content.init_from: '{digest}' -> "):
        loop.train(toy.tiny(**exchanged), workdir)
    assert content(workdir) == before
    shutil.rmtree(moved)
    gone = {**config, "train__steps": 8, "init_from": str(moved)}
    assert loop.train(toy.tiny(**gone), workdir)["step"] == 8
    assert reopen.check(workdir) == []


def test_a_damaged_config_may_be_overwritten(
    donors: tuple[Path, Path], trained: Path, tmp_path: Path
) -> None:
    """And the run that replaces it records what it started from."""
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    (workdir / "config.json").write_text("{")
    loop.train(toy.tiny(**SHORT, init_from=str(donors[0])), workdir, overwrite=True)
    assert json.loads((workdir / "config.json").read_text())["content"].keys() == {"init_from"}


def test_another_donor_is_another_config(donors: tuple[Path, Path]) -> None:
    """The hash tells donors apart by content; without a donor it is what it always was."""
    hashes = set()
    for donor in donors:
        values = settings.to_json(toy.tiny(init_from=str(donor)))
        hashes.add(settings.config_hash({**values, "content": digests(values)}))
    plain = settings.to_json(toy.tiny())
    assert digests(plain) == {}
    assert len({*hashes, settings.config_hash(plain)}) == 3


def test_digests_of_files_and_folders(tmp_path: Path) -> None:
    """Weights are told apart by their bytes and names; several runs count in their order."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "model.bin").write_bytes(b"one")
    first = digests({"model": {"weights": str(tmp_path / "a")}})
    (tmp_path / "a").rename(tmp_path / "b")
    assert digests({"model": {"weights": str(tmp_path / "b")}}) == first
    (tmp_path / "b" / "model.bin").write_bytes(b"two")
    assert digests({"model": {"weights": str(tmp_path / "b")}}) != first
    file = tmp_path / "b" / "model.bin"
    other = tmp_path / "other"
    other.write_bytes(b"three")
    assert digests({"runs": f"{file},{other}"}) != digests({"runs": f"{other},{file}"})
    with pytest.raises(UserError, match="no checkpoints in"):
        digests({"teacher": str(tmp_path / "none")})
