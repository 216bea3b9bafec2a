# SPDX-License-Identifier: Apache-2.0
"""The loop: killed and resumed without a trace, stopped in order, and every promise of contract.py.

All train the linear regression of tests/toy.py; contract_test resumes the systems themselves.
"""

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh

from experiments.runner import checkpoint, loop, reopen, schedule, sharding
from experiments.runner.assemble import assemble, initial_state
from experiments.runner.errors import UserError
from experiments.runner.hosts import to_host
from experiments.runner.queries import Query
from experiments.runner.writer import Writer, read_metrics
from tests import ROOT, jitter, toy
from tests.tiers import deep

COSTS = ("wall_s", "compile_s", "steps_per_s", "time_s", "peak_rss_mb")


pytestmark = pytest.mark.usefixtures("installed")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, installed: None) -> Path:
    """Folder of an uninterrupted run."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    loop.train(toy.tiny(), workdir)
    return workdir


def untimed(workdir: Path) -> list[str]:
    """Lines of metrics.jsonl as written, without what the clock says."""
    lines = []
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        head, _, rest = line.partition(', "time": ')
        assert rest.endswith("}}")
        lines.append(head)
    return lines


def results(workdir: Path) -> dict[str, Any]:
    found = json.loads((workdir / "results.json").read_text())
    assert found.keys() >= {*COSTS, "config_hash"}
    return {k: v for k, v in found.items() if k not in (*COSTS, "config_hash")}


def assert_same_run(a: Path, b: Path) -> None:
    assert untimed(a) == untimed(b)
    assert results(a) == results(b)
    one, two = checkpoint.read(a), checkpoint.read(b)
    assert one["step"] == two["step"]
    left, right = sharding.leaf_paths(one["state"]), sharding.leaf_paths(two["state"])
    assert left.keys() == right.keys()
    for path in left:
        np.testing.assert_array_equal(left[path], right[path], err_msg=path)


def command(workdir: Path, *words: str, devices: int = 8, **environ: str) -> subprocess.Popen:
    """The toy run as a process of its own."""
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tests.toy",
            "--config=tests/toy.py",
            f"--workdir={workdir}",
            *words,
        ],
        cwd=ROOT,
        env={**os.environ, "JAX_NUM_CPU_DEVICES": str(devices), **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_lines(process: subprocess.Popen, path: Path, count: int) -> None:
    """Returns when a file has `count` lines; fails if the process ends or hangs before."""
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        if path.exists() and path.read_bytes().count(b"\n") >= count:
            return
        time.sleep(0.01)
    process.kill()
    raise AssertionError(f"{path} never had {count} lines: {process.communicate()}")


@pytest.mark.trains
def test_killed_at_random_steps_equals_uninterrupted(whole: Path, tmp_path: Path) -> None:
    """SIGKILL twice, anywhere; the same command again and again ends in the same bytes."""
    workdir, log = tmp_path / "run", tmp_path / "prepared"
    seed = random.randrange(1000)
    rng = random.Random(seed)
    for lines in (rng.randint(8, 12), rng.randint(17, 24)):
        process = command(workdir, TOY_DELAY="0.05", TOY_PREPARED=str(log))
        wait_for_lines(process, workdir / "metrics.jsonl", lines)
        time.sleep(rng.random() * 0.1)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL, f"seed {seed}"
        assert not (workdir / "results.json").exists(), f"seed {seed}"
        assert checkpoint.steps(workdir), f"seed {seed}"
        with (workdir / "metrics.jsonl").open("a") as file:
            file.write('{"step": 1')  # a torn line, as a dying disk leaves it
    loop.train(toy.tiny(), workdir)
    assert_same_run(whole, workdir)
    assert log.read_text() == "prepared\n"  # once, by the first process


@pytest.mark.trains
def test_sigterm_saves_and_says_how_to_go_on(whole: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    words = ["--config.train.save_every=100"]  # only the signal saves between 0 and 10
    process = command(workdir, *words, TOY_DELAY="0.05")
    wait_for_lines(process, workdir / "metrics.jsonl", 6)
    process.terminate()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    last = checkpoint.steps(workdir)[-1]
    assert f"stopped at step {last}, saved; the same command resumes" in err
    assert 3 < last < 10 and not (workdir / "results.json").exists()
    assert max(r["step"] for r in read_metrics(workdir / "metrics.jsonl")) == last
    loop.train(toy.tiny(train__save_every=100), workdir)
    assert_same_run(whole, workdir)


# ------------------------------------------------------------------------------ the plan of a run


@pytest.mark.trains
def test_log_evaluations_and_retention(whole: Path) -> None:
    """Valid at 0, every 5 and the end; test at milestones and the end; last 2 + milestones kept."""
    lines = [(r["split"], r["step"]) for r in read_metrics(whole / "metrics.jsonl")]
    assert [s for split, s in lines if split == "valid"] == [0, 5, 10, 15, 20]
    assert [s for split, s in lines if split == "test"] == [0, 10, 20]
    assert [s for split, s in lines if split == "train"] == list(range(1, 21))
    assert [s for _, s in lines] == sorted(s for _, s in lines)
    assert checkpoint.steps(whole) == [0, 10, 16, 20]
    found = results(whole)
    assert found["metrics"]["count"] == 3.0  # the summary saw every test evaluation
    assert found["checkpoint_of"] == {"test/error": 20}
    assert "dots at 20" in (whole / "report.html").read_text()
    assert sorted(p.name for p in whole.iterdir()) == [
        ".lock",
        "checkpoints",
        "command.txt",
        "config.json",
        "env.json",
        "metrics.jsonl",
        "report.html",
        "report.md",
        "report_files",
        "results.json",
    ]


def test_log_every(tmp_path: Path) -> None:
    """Every third train line, whether or not the run stops in between."""
    for steps in (7, 11):
        loop.train(toy.tiny(train__steps=steps, log__every=3), tmp_path / "run")
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [r["step"] for r in lines if r["split"] == "train"] == [3, 6, 9]


@pytest.mark.trains
def test_equals_a_bare_optax_loop(whole: Path) -> None:
    """20 steps written out: same losses, same parameters."""
    made = checkpoint.read(whole)
    truth, key = made["artifacts"]["truth"], jax.random.key(0)
    params = {"w": 0.1 * jax.random.normal(key, (toy.DIM, toy.OUT)), "b": jnp.zeros(toy.OUT)}
    params = jitter.jittered(params)
    tx = optax.adam(0.05)
    opt = tx.init(params)

    @jax.jit
    def update(params: Any, opt: Any, batch: Any, noise: Any) -> Any:
        def loss(p: Any) -> Any:
            error = jnp.einsum("nd,do->no", batch["x"], p["w"]) + p["b"][None] - batch["y"] + noise
            return (error**2).sum() / error.size

        value, grads = jax.value_and_grad(loss)(params)
        change, opt = tx.update(grads, opt)
        return jax.tree.map(jnp.add, params, change), opt, value

    losses = []
    for t in range(20):
        noise = 0.01 * jax.random.normal(jax.random.fold_in(key, t + 1), (1, toy.OUT))
        params, opt, value = update(params, opt, toy.host_batch(0, t, 16, truth), noise)
        losses.append(float(value))
    lines = read_metrics(whole / "metrics.jsonl")
    logged = [r["loss"] for r in lines if r["split"] == "train"]
    jitter.close("loss", logged, losses, rtol=1e-5)  # lr moves parameters by .05 an update
    jitter.at_most("last loss / first", losses[-1] / losses[0], 0.9)
    trained = {name: made["state"]["params"][name] for name in params}
    jitter.close("parameters", trained, params, rtol=1e-5, atol=1e-5)


@pytest.mark.trains
@pytest.mark.parametrize(
    ("mode", "scores", "best"),
    [
        ("max", (9.0, 1.0, 3.0, 3.0, 2.0), 15),  # step 0 is not a trained checkpoint; ties: later
        deep("min", (0.0, 4.0, 1.0, 1.0, 2.0), 15),
        deep("max", (0.0, 5.0, 1.0, 2.0, 3.0), 5),  # long past the last two
        ("max", (0.0, math.nan, 1.0, math.nan, math.nan), 10),
    ],
)
def test_select(mode: str, scores: tuple[float, ...], best: int, tmp_path: Path) -> None:
    """The best checkpoint is kept and tested, also when a resume lies in between."""
    workdir = tmp_path / "run"
    for steps in (17, 20):
        config = toy.tiny(
            train__steps=steps,
            toy__scores=scores,
            toy__milestones=(),
            eval__select=("valid/score", mode),
        )
        found = loop.train(config, workdir)
    assert found["checkpoint_of"]["test/error"] == best
    assert best in checkpoint.steps(workdir) and checkpoint.steps(workdir)[-1] == 20
    state = checkpoint.read(workdir, best)["state"]
    truth = checkpoint.read(workdir)["artifacts"]["truth"]
    want = np.mean((state["params"]["w"] - truth) ** 2)
    np.testing.assert_allclose(found["metrics"]["test/error"], want, rtol=1e-6)
    assert reopen.check(workdir) == []


def test_select_of_an_unknown_metric_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'valid/acc' is nothing toy.*valid/error, valid/score"):
        loop.train(toy.tiny(eval__select=("valid/acc", "max")), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("selects", [False, True])
@pytest.mark.parametrize("steps", [0, 12])
def test_schedule_by_enumeration(steps: int, selects: bool) -> None:
    """Against the steps written out."""
    select = ("valid/score", "max") if selects else ("", "max")
    config = toy.tiny(
        train__steps=steps, train__save_every=5, eval__every=4, log__every=3, eval__select=select
    )
    due = schedule.of(config, (0, 7))
    found = {
        name: [t for t in range(steps + 1) if getattr(due, name)(t)]
        for name in ("logs", "validates", "tests", "saves", "settles")
    }
    if steps == 0:
        one = [0]
        assert found == {"logs": one, "validates": [], "tests": one, "saves": one, "settles": one}
        return
    assert found == {
        "logs": [0, 3, 6, 9, 12],
        "validates": [0, 4, 8, 12],
        "tests": [0, 7] if selects else [0, 7, 12],
        "saves": [0, 4, 5, 7, 8, 10, 12] if selects else [0, 5, 7, 10, 12],
        "settles": [0, 4, 5, 7, 8, 10, 12],
    }


@pytest.mark.parametrize("bad_step", [7, 8])
def test_non_finite_loss_stops(bad_step: int, tmp_path: Path) -> None:
    """With a checkpoint, the step's name, and no way to go on by accident."""
    config = toy.tiny(toy__bad_step=bad_step, log__every=5)
    with pytest.raises(UserError, match=rf"non-finite loss at step {bad_step}: stopped"):
        loop.train(config, tmp_path / "run")
    assert checkpoint.steps(tmp_path / "run")[-1] == 8
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert math.isnan(next(r["loss"] for r in lines if r["step"] == bad_step))
    assert not (tmp_path / "run" / "results.json").exists()
    for _ in range(3):
        with pytest.raises(UserError, match=rf"loss at step {bad_step}.*checkpoints/8.*learning"):
            loop.train(config, tmp_path / "run")
    assert checkpoint.steps(tmp_path / "run") == [0, 4, 8]


def test_evaluation_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """train.steps=0, no step, no batch, params {}: evaluated, saved, checked, asked."""
    system, real = toy.as_module(), toy.make

    def bare(config: Any, artifacts: Any) -> Any:
        made = real(config, artifacts)
        truth = artifacts["truth"]
        return made._replace(
            init=lambda key: {"step": jnp.int32(0), "params": {}, "key": key},
            evaluate=lambda state, split: {f"{split}/norm": float(np.sum(truth**2))},
            milestones=(),
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(system, "make", bare)
        found = loop.train(toy.tiny(train__steps=0), tmp_path / "run")
        assert found["params"] == 0 and found["step"] == 0 and found["steps_per_s"] is None
        assert checkpoint.steps(tmp_path / "run") == [0]
        calls = len(toy.PREPARED)
        assert reopen.check(tmp_path / "run") == []
        assert reopen.act(tmp_path / "run", "say", Query("hello")).startswith("hello ")
        assert loop.train(toy.tiny(train__steps=0), tmp_path / "run") == found
        assert "is complete (step 0)" in capsys.readouterr().out
        assert len(toy.PREPARED) == calls


def test_prepare_runs_once(tmp_path: Path) -> None:
    """Resume, eval, check and actions read artifacts back; what they see is what was made."""
    before = len(toy.PREPARED)
    loop.train(toy.tiny(train__steps=6), tmp_path / "run")
    assert len(toy.PREPARED) == before + 1
    loop.train(toy.tiny(train__steps=8), tmp_path / "run")
    assert reopen.evaluate_last(tmp_path / "run")["step"] == 8
    assert reopen.check(tmp_path / "run") == []
    assert reopen.act(tmp_path / "run", "say", Query("made")) == f"made {before + 1}"
    assert len(toy.PREPARED) == before + 1
    with pytest.raises(
        UserError, match="--mode=sing: toy knows train, eval, check, report, export, list, say"
    ):
        reopen.act(tmp_path / "run", "sing", Query(""))


@pytest.mark.trains
def test_init_from(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Parameters only; what was loaded, is missing or unused is printed; misfits are refused."""
    donor = checkpoint.read(whole)["state"]
    config = toy.tiny(train__steps=1, init_from=str(whole), toy__extra=True)
    state = initial_state(assemble(config))
    out = capsys.readouterr().out
    assert (
        "loaded 2 leaves" in out and "missing there: ['extra']" in out and "unused of it: []" in out
    )
    for name in ("w", "b"):
        np.testing.assert_array_equal(state["params"][name], donor["params"][name])
    np.testing.assert_array_equal(state["params"]["extra"], np.ones(3))
    assert int(state["step"]) == 0
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(state["opt_state"]))
    assert state["params"]["w"].sharding.spec == jax.sharding.PartitionSpec("data", "model")

    with pytest.raises(UserError, match=r"shapes differ at \['b', 'w'\]"):
        loop.train(toy.tiny(init_from=str(whole), toy__width=8), tmp_path / "run")
    with pytest.raises(UserError, match="no checkpoints in"):
        loop.train(toy.tiny(init_from=str(tmp_path / "none")), tmp_path / "run")
    assert not (tmp_path / "run").exists()  # refused before anything is written


# ----------------------------------------------------------------------------- what a step costs


def test_metrics_are_read_one_step_late_and_nothing_retraces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step t+1 is dispatched before the numbers of t are fetched; one trace before and one after
    a resume; equal batch leaves travel once; the state is donated."""
    events: list[str] = []
    traces: list[int] = []
    built: list[str] = []
    compilations: list[int] = []  # of each dispatch
    note = lambda event, seconds, **_: built.append(event) if "backend_compile" in event else None
    jax.monitoring.register_event_duration_secs_listener(note)
    jit_step = loop.jit_step
    place = sharding.Feed._place

    def counted(asm: Any, batch: Any) -> Any:
        inner = asm.experiment.step

        def traced(state: Any, batch: Any) -> Any:
            traces.append(1)
            return inner(state, batch)

        compiled = jit_step(asm._replace(experiment=asm.experiment._replace(step=traced)), batch)

        def dispatch(state: Any, batch: Any) -> Any:
            events.append("step")
            before = len(built)
            out = compiled(state, batch)
            compilations.append(len(built) - before)
            assert state["params"]["w"].is_deleted() and not batch["x"].is_deleted()
            return out

        return dispatch

    def fetched(metrics: Any) -> Any:
        if "loss" in metrics:
            events.append("read")
        return to_host(metrics)

    def placed(self: Any, name: str, leaf: Any, rows: Any) -> Any:
        events.append(name)
        return place(self, name, leaf, rows)

    monkeypatch.setattr(loop, "jit_step", counted)
    monkeypatch.setattr(loop, "to_host", fetched)
    monkeypatch.setattr(sharding.Feed, "_place", placed)
    loop.train(toy.tiny(train__steps=4, train__save_every=100, toy__milestones=()), tmp_path / "r")
    order = [e for e in events if e in ("step", "read")]
    assert order == ["step", "step", "read", "step", "read", "step", "read", "read"]
    assert events.count("x") == 4 and events.count("scale") == 1
    assert len(traces) == 1
    loop.train(toy.tiny(train__steps=9, train__save_every=100, toy__milestones=()), tmp_path / "r")
    assert len(traces) == 2
    assert compilations == [1, 0, 0, 0, 1, 0, 0, 0, 0]


def test_the_log_is_on_disk_before_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every line through step t is written and flushed before step t is saved."""
    saved: list[int] = []
    flushed: list[int] = []  # lines at each flush
    path = tmp_path / "run" / "metrics.jsonl"
    flush, save = Writer.flush, checkpoint.save

    def flushing(self: Any) -> None:
        flush(self)
        flushed.append(path.read_bytes().count(b"\n"))

    def saving(manager: Any, step: int, *rest: Any) -> None:
        lines = read_metrics(path)
        assert {r["step"] for r in lines if r["split"] == "train"} == set(range(1, step + 1))
        assert flushed[-1] == len(lines)
        saved.append(step)
        save(manager, step, *rest)

    monkeypatch.setattr(Writer, "flush", flushing)
    monkeypatch.setattr(checkpoint, "save", saving)
    loop.train(toy.tiny(train__steps=10), tmp_path / "run")
    assert saved == [0, 4, 8, 10]


@pytest.mark.parametrize("steps", [deep(3), 17])
def test_profile(steps: int, tmp_path: Path) -> None:
    """A trace is written, also of a run that ends before step 15."""
    config = toy.tiny(train__steps=steps, toy__milestones=())
    loop.train(config, tmp_path / "run", profile=True)
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))


# ------------------------------------------------------------------------- devices and processes


def on(count: int, shape: tuple[int, int]) -> Any:
    """A stand-in for `sharding.make_mesh` over the first devices."""
    axes = (jax.sharding.AxisType.Auto,) * 2
    grid = np.array(jax.devices()[:count]).reshape(shape)
    return lambda _: Mesh(grid, sharding.AXES, axis_types=axes)


@pytest.mark.deep
@pytest.mark.trains
def test_saved_on_4_devices_restored_on_1_and_on_2x2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parameters bitwise, metrics hold, and the run goes on there with the same losses."""
    monkeypatch.setattr(sharding, "make_mesh", on(4, (4, 1)))
    loop.train(toy.tiny(train__steps=10), tmp_path / "four")
    want = checkpoint.read(tmp_path / "four")["state"]
    shutil.copytree(tmp_path / "four", tmp_path / "same")
    loop.train(toy.tiny(train__steps=14), tmp_path / "same")
    losses = [r["loss"] for r in read_metrics(tmp_path / "same" / "metrics.jsonl") if "loss" in r]
    for count, shape in ((1, (1, 1)), (4, (2, 2))):
        monkeypatch.setattr(sharding, "make_mesh", on(count, shape))
        asm, manager = reopen.open_run(tmp_path / "four")
        with manager:
            state = checkpoint.restore(manager, 10, asm.abstract)
        assert state["params"]["w"].sharding.mesh.shape["model"] == shape[1]
        part = state["params"]["w"].addressable_shards[0].data.shape
        assert part == (toy.DIM // shape[0], toy.OUT // shape[1])
        for name, value in want["params"].items():
            np.testing.assert_array_equal(state["params"][name], value)
        np.testing.assert_array_equal(jax.random.key_data(state["key"]), want["key"])
        workdir = tmp_path / f"on{count}{shape[1]}"
        shutil.copytree(tmp_path / "four", workdir)
        assert reopen.check(workdir) == []
        loop.train(toy.tiny(train__steps=14), workdir)
        again = [r["loss"] for r in read_metrics(workdir / "metrics.jsonl") if "loss" in r]
        jitter.close("loss", again, losses, rtol=2e-5)


@pytest.mark.trains
def test_check_needs_no_matching_device_count(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not divide among the devices at hand is replicated to be read."""
    monkeypatch.setattr(sharding, "make_mesh", on(3, (3, 1)))
    assert reopen.check(whole) == []


def free_port() -> int:
    import socket

    with socket.socket() as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]


@pytest.mark.deep
@pytest.mark.trains
def test_two_processes_equal_one(whole: Path, tmp_path: Path) -> None:
    """Losses agree, only process 0 writes, both save, one process checks and resumes."""
    workdir, port = tmp_path / "run", free_port()
    words = ["--distributed", f"--coordinator=localhost:{port}", "--num_processes=2"]
    words += ["--config.train.steps=12"]
    pair = [command(workdir, *words, f"--process_id={i}", devices=1) for i in range(2)]
    try:
        outputs = [process.communicate(timeout=240) for process in pair]
    finally:
        for process in pair:
            process.kill()
    assert [process.returncode for process in pair] == [0, 0], outputs
    assert "results of" in outputs[0][1] and "results of" not in outputs[1][1]
    env = json.loads((workdir / "env.json").read_text())
    assert env["processes"] == 2 and len(env["devices"]) == 2
    lines = read_metrics(workdir / "metrics.jsonl")
    found = [r["loss"] for r in lines if r["split"] == "train"]
    want = [r["loss"] for r in read_metrics(whole / "metrics.jsonl") if r["split"] == "train"][:12]
    assert [r["step"] for r in lines if r["split"] == "train"] == list(range(1, 13))
    jitter.close("loss", found, want, rtol=2e-5)
    saved = workdir / "checkpoints" / "12" / "state"
    assert {p.name for p in saved.glob("ocdbt.process_*")} == {
        "ocdbt.process_0",
        "ocdbt.process_1",
    }
    assert reopen.check(workdir) == []
    loop.train(toy.tiny(), workdir)
    lines = read_metrics(workdir / "metrics.jsonl")
    again = [r["loss"] for r in lines if r["split"] == "train"]
    want = [r["loss"] for r in read_metrics(whole / "metrics.jsonl") if r["split"] == "train"]
    jitter.close("loss after the resume", again, want, rtol=2e-5)


# -------------------------------------------------------------------------------------- the check


@pytest.mark.trains
def test_check_of_a_copy_and_of_a_changed_number(whole: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "elsewhere" / "copy"
    shutil.copytree(whole, workdir)
    assert reopen.check(workdir) == []
    found = json.loads((workdir / "results.json").read_text())
    found["metrics"]["test/error"] += 1e-3
    (workdir / "results.json").write_text(json.dumps(found))
    (line,) = reopen.check(workdir)
    assert line.startswith("test/error: claimed ")


@pytest.mark.trains
def test_check_finds_one_flipped_bit(whole: Path, tmp_path: Path) -> None:
    """Changes one parameter and saves it again as if it were the real thing."""
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    asm, manager = reopen.open_run(workdir)
    with manager:
        state = checkpoint.restore(manager, 20, asm.abstract)
    value = np.array(state["params"]["w"])
    value.view(np.uint32)[2, 1] ^= 1 << 20
    state["params"]["w"] = jax.device_put(value, state["params"]["w"].sharding)
    shutil.rmtree(workdir / "checkpoints" / "20")
    with checkpoint.open_manager(workdir, milestones=(0, 10)) as manager:
        checkpoint.save(manager, 20, state, asm.values, asm.artifacts)
    lines = reopen.check(workdir)
    assert [line.split(":")[0] for line in lines] == ["test/error"]


def test_check_names_a_missing_checkpoint(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "20")
    with pytest.raises(UserError, match=r"results\.json names step 20, not among checkpoints"):
        reopen.check(tmp_path / "run")
    (tmp_path / "run" / "results.json").unlink()
    with pytest.raises(UserError, match=r"has no results\.json: the run is not finished"):
        reopen.check(tmp_path / "run")
