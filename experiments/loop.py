# SPDX-License-Identifier: Apache-2.0
"""Train, evaluate, resume, check. Knows only the contract.

Order at step t: dispatch t, write the metrics of t-1 (so logging never stalls the device),
evaluate, flush the log, save. A checkpoint of step t therefore never knows less than the log.
"""

import importlib
import math
import signal
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from experiments import checkpoint, folder, report, settings, sharding
from experiments.contract import Experiment, State
from experiments.errors import UserError
from experiments.writer import Writer, open_writer, read_metrics, truncate_after

VALID = "valid"
PREFETCH = 2
PROFILE_STEPS = (10, 15)


class Assembly(NamedTuple):
    """A system made from its config and artifacts, and where its state lives."""

    config: ConfigDict
    values: dict[str, Any]
    experiment: Experiment
    artifacts: dict[str, Any]
    mesh: Mesh
    abstract: Any
    shardings: Any


def assemble(config: ConfigDict, artifacts: Mapping[str, Any] | None = None) -> Assembly:
    """Validates, prepares (unless artifacts are given), makes; compiles and writes nothing."""
    settings.groups(config)
    mesh = sharding.make_mesh(config.mesh)
    module = importlib.import_module(f"experiments.systems.{config.system}")
    try:
        if artifacts is None:
            prepared = module.prepare(config) if hasattr(module, "prepare") else {}
            # What a fresh start uses is exactly what a resume will read back.
            artifacts = checkpoint.unpack_artifacts(checkpoint.pack_artifacts(prepared))
        experiment = module.make(config, artifacts)
    except (ValueError, FileNotFoundError) as error:
        raise UserError(str(error)) from error
    if config.train.steps and (experiment.step is None or experiment.batch is None):
        raise UserError(f"config.train.steps={config.train.steps}: {config.system} only evaluates")
    abstract = jax.eval_shape(experiment.init, _key(config))
    empty = [path for path, leaf in sharding.leaf_paths(abstract).items() if 0 in leaf.shape]
    if empty:
        raise UserError(f"{config.system}: empty arrays cannot be saved: {empty}")
    if config.fsdp:
        extra = sharding.fsdp_rules(abstract, mesh)
        experiment = experiment._replace(rules=(*experiment.rules, *extra))
    shards = sharding.shardings(mesh, experiment.rules, abstract)
    abstract = jax.tree.map(
        lambda leaf, shard: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=shard),
        abstract,
        shards,
    )
    values = settings.to_json(config)
    return Assembly(config, values, experiment, dict(artifacts), mesh, abstract, shards)


def _key(config: ConfigDict) -> jax.Array:
    return jax.random.key(config.seed)


def _is_main() -> bool:
    return jax.process_index() == 0


def _sync(name: str) -> None:
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def to_host(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Device metrics as floats, or float arrays [num_seeds]; replicated on every process."""
    fetched = {k: np.asarray(v, np.float64) for k, v in jax.device_get(dict(metrics)).items()}
    return {k: float(v) if v.ndim == 0 else v for k, v in fetched.items()}


def initial_state(asm: Assembly) -> State:
    """Fresh sharded state, with parameters of config.init_from where it names a run."""
    state = jax.jit(asm.experiment.init, out_shardings=asm.shardings)(_key(asm.config))
    if not asm.config.init_from:
        return state
    donor = sharding.leaf_paths(checkpoint.read(asm.config.init_from)["state"]["params"])
    leaves = sharding.leaf_paths(state["params"])
    wrong = [p for p in leaves.keys() & donor.keys() if leaves[p].shape != donor[p].shape]
    loaded = leaves.keys() & donor.keys()
    if wrong or not loaded:
        raise UserError(
            f"config.init_from={asm.config.init_from}: "
            + (f"shapes differ at {sorted(wrong)}" if wrong else "no parameter has the same path")
        )
    if _is_main():
        print(f"init_from {asm.config.init_from}: loaded {len(loaded)} leaves")
        print(f"  missing there: {sorted(leaves.keys() - donor.keys())}")
        print(f"  unused of it: {sorted(donor.keys() - leaves.keys())}")

    def place(path: Any, leaf: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name not in donor:
            return leaf
        value = np.asarray(donor[name], leaf.dtype)
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: value[index])

    return {**state, "params": jax.tree_util.tree_map_with_path(place, state["params"])}


def record_of(step: int, split: str, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """One evaluation as `summary` and `figures` see it."""
    return {"step": step, "split": split, **metrics}


def load_records(path: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl without timing; per-seed values as arrays."""
    records = []
    for line in read_metrics(path):
        seeds = {k: np.asarray(v, np.float64) for k, v in line.pop("per_seed", {}).items()}
        line.pop("time", None)
        records.append({**line, **seeds})
    return records


def collect(experiment: Experiment, records: list[dict[str, Any]]) -> dict[str, Any]:
    """Metrics of results.json: all evaluations on the final splits, later ones first, + summary."""
    tests = [r for r in records if r["split"] in experiment.splits]
    metrics: dict[str, Any] = {}
    for record in tests:
        metrics.update({k: v for k, v in record.items() if k not in ("step", "split")})
    if experiment.summary is not None:
        metrics.update(experiment.summary(tests))
    return metrics


def _batches(asm: Assembly, start: int, stop: int) -> Iterator[tuple[dict[str, Any], float]]:
    """Batches on the mesh with the seconds waited for each; one thread works ahead."""
    make = asm.experiment.batch
    assert make is not None
    feed = sharding.Feed(asm.mesh, asm.experiment.rules)
    first = make(start)
    lead = next(
        (
            leaf.shape[0]
            for name, leaf in first.items()
            if sharding.match(asm.experiment.rules, f"batch/{name}", PartitionSpec("data"))
            == PartitionSpec("data")
        ),
        0,
    )
    rows = sharding.process_rows(lead) if lead and jax.process_count() > 1 else None

    def load(step: int) -> dict[str, Any]:
        return feed.put(make(step) if rows is None else make(step, rows), rows)

    with ThreadPoolExecutor(1) as pool:
        ahead: list[Future] = [
            pool.submit(load, t) for t in range(start, min(start + PREFETCH, stop))
        ]
        for step in range(start, stop):
            began = time.perf_counter()
            batch = ahead.pop(0).result()
            waited = time.perf_counter() - began
            if step + PREFETCH < stop:
                ahead.append(pool.submit(load, step + PREFETCH))
            yield batch, waited


@contextmanager
def _stop_signal() -> Iterator[list[int]]:
    """A list that holds the number of the first SIGTERM or SIGINT received."""
    received: list[int] = []
    numbers = (signal.SIGTERM, signal.SIGINT)
    try:
        old = {n: signal.signal(n, lambda number, _: received.append(number)) for n in numbers}
    except ValueError:  # not the main thread (a notebook server): signals stay with their owner
        old = {}
    try:
        yield received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


class Timer:
    """Seconds by kind; `wall` goes on from where an interrupted run left off."""

    def __init__(self, before: float) -> None:
        self.began, self.before = time.perf_counter(), before
        kinds = ("data", "step", "eval", "checkpoint", "compile")
        self.spent: dict[str, float] = dict.fromkeys(kinds, 0.0)

    @contextmanager
    def of(self, kind: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.spent[kind] += time.perf_counter() - began

    def wall(self) -> float:
        return self.before + time.perf_counter() - self.began

    def line(self) -> dict[str, float]:
        return {"wall": round(self.wall(), 4), **{k: round(v, 4) for k, v in self.spent.items()}}


class Session:
    """One process's pass over a run: the state and everything that is written on the way."""

    def __init__(self, asm: Assembly, workdir: Path, writer: Writer, timer: Timer) -> None:
        self.asm, self.workdir, self.writer, self.timer = asm, workdir, writer, timer
        select, mode = asm.config.eval.select
        self.manager = checkpoint.open_manager(
            workdir, milestones=asm.experiment.milestones, select_mode=mode if select else ""
        )
        self.records = load_records(workdir / "metrics.jsonl")

    def evaluate(self, step: int, state: State, split: str) -> None:
        """Evaluates once per (step, split) and logs it."""
        if any(r["step"] == step and r["split"] == split for r in self.records):
            return
        with self.timer.of("eval"):
            metrics = to_host(self.asm.experiment.evaluate(state, split))
        self.writer.write(step, split, metrics, self.timer.line())
        self.records.append(record_of(step, split, metrics))

    def evaluate_due(self, step: int, state: State) -> bool:
        """Evaluates what is due at a step; says whether anything was."""
        config, experiment = self.asm.config, self.asm.experiment
        last = step == config.train.steps
        due = config.train.steps > 0 and (step % config.eval.every == 0 or last)
        if due:
            self.evaluate(step, state, VALID)
        final = last and not config.eval.select[0]
        if step in experiment.milestones or final:
            for split in experiment.splits:
                self.evaluate(step, state, split)
        return due

    def save(self, step: int, state: State) -> None:
        name = self.asm.config.eval.select[0]
        found = [r[name] for r in self.records if r["step"] == step and name in r]
        with self.timer.of("checkpoint"):
            self.writer.flush()
            select = float(np.mean(found[-1])) if found else None
            checkpoint.save(self.manager, step, state, self.asm.values, self.asm.artifacts, select)

    def best_step(self) -> int:
        """Step of the checkpoint to be tested: best by eval.select (last of ties), or the last."""
        self.manager.wait_until_finished()
        saved = self.manager.all_steps()
        name, mode = self.asm.config.eval.select
        scores = {
            r["step"]: float(np.mean(r[name]))
            for r in self.records
            if name in r and r["step"] in saved
        }
        if not name:
            return self.asm.config.train.steps
        if not scores:
            raise UserError(f"config.eval.select: no evaluation returned {name!r}")
        sign = 1.0 if mode == "max" else -1.0
        return max(scores, key=lambda step: (sign * scores[step], step))


def _non_finite(metrics: Mapping[str, Any]) -> list[str]:
    return [k for k, v in metrics.items() if k.endswith("loss") and not np.all(np.isfinite(v))]


def _steps_due(session: Session, step: int, evaluated: bool) -> bool:
    config, experiment = session.asm.config, session.asm.experiment
    return (
        step % config.train.save_every == 0
        or step in experiment.milestones
        or step == config.train.steps
        or (evaluated and bool(config.eval.select[0]))
    )


def jit_step(asm: Assembly, batch: Mapping[str, Any]) -> Any:
    """The compiled step: explicit shardings (a restored state must not retrace), donated state."""
    feed = sharding.Feed(asm.mesh, asm.experiment.rules)
    return jax.jit(
        asm.experiment.step,  # type: ignore[arg-type]
        in_shardings=(asm.shardings, {k: feed.sharding(k, v.shape) for k, v in batch.items()}),
        out_shardings=(asm.shardings, NamedSharding(asm.mesh, PartitionSpec())),
        donate_argnums=0,
    )


def run_steps(
    session: Session, state: State, start: int, profile: bool, step_fn: Any = None
) -> tuple[State, float]:
    """Trains from `start` to the end; returns the state and steps/s (0 if not measurable)."""
    asm, timer, writer = session.asm, session.timer, session.writer
    config, experiment = asm.config, asm.experiment
    total, every = config.train.steps, config.log.every
    pending: tuple[int, Any] | None = None
    measured = 0

    def settle(entry: tuple[int, Any] | None) -> list[str]:
        """Writes the metrics of a step already dispatched; returns names of non-finite losses."""
        if entry is None:
            return []
        metrics = to_host(entry[1])
        if entry[0] % every == 0:  # never "at the end too": a longer run must log the same
            writer.write(entry[0], "train", metrics, timer.line())
            session.records.append(record_of(entry[0], "train", metrics))
        return _non_finite(metrics)

    with _stop_signal() as signals:
        for step, (batch, waited) in enumerate(_batches(asm, start, total), start + 1):
            timer.spent["data"] += waited
            if profile and step - start == PROFILE_STEPS[0]:
                jax.profiler.start_trace(str(session.workdir / "profile"))
            first = step_fn is None
            with timer.of("compile" if first else "step"):
                if first:
                    step_fn = jit_step(asm, batch)
                    writer.text(f"compiling the step of {config.system} ...")
                with jax.transfer_guard("disallow"):
                    state, metrics = step_fn(state, batch)
                if first:
                    jax.block_until_ready(metrics)
                bad = settle(pending)
            pending = (step, metrics)
            measured += not first
            if profile and step - start == PROFILE_STEPS[1]:
                jax.block_until_ready(state)
                jax.profiler.stop_trace()
            stop = (
                session.manager.reached_preemption(step)
                if jax.process_count() > 1
                else bool(signals)
            )
            busy = step % config.eval.every == 0 or step in experiment.milestones or step == total
            if bad or stop or busy or step % config.train.save_every == 0:
                with timer.of("step"):
                    bad += settle(pending)
                pending = None
            if bad:
                session.save(step, state)
                session.manager.wait_until_finished()
                raise UserError(
                    f"non-finite {', '.join(sorted(set(bad)))} at step {step}: stopped, state "
                    f"saved in {session.workdir}/checkpoints/{step}. To go on from an earlier "
                    "checkpoint delete that folder; try a smaller learning rate"
                )
            evaluated = session.evaluate_due(step, state) if busy else False
            if stop or _steps_due(session, step, evaluated):
                session.save(step, state)
            if stop and step < total:
                session.manager.wait_until_finished()
                writer.text(f"stopped at step {step}, saved; the same command resumes")
                raise SystemExit(0)
    spent = timer.spent["step"] + timer.spent["data"]
    return state, measured / spent if measured and spent else 0.0


def train(
    config: ConfigDict, workdir: Path, *, overwrite: bool = False, profile: bool = False
) -> dict[str, Any]:
    """Trains or resumes a run, writes results.json and the report; returns the results.

    Raises:
        UserError: any misuse, before anything is compiled or written; a non-finite loss.
        SystemExit: code 0 after SIGTERM or SIGINT, with a saved checkpoint.
    """
    values = settings.to_json(config)
    folder.check_writable(workdir)
    resume = folder.claim(workdir, values, overwrite)
    saved = checkpoint.steps(workdir) if resume else []
    if saved and saved[-1] > config.train.steps:
        raise UserError(
            f"--workdir={workdir} is at step {saved[-1]} already, past config.train.steps="
            f"{config.train.steps}; ask for more steps or give another --workdir"
        )
    if resume and saved[-1:] == [config.train.steps] and (workdir / "results.json").exists():
        results = folder.read_json(workdir / "results.json")
        if results["step"] == config.train.steps:
            print(f"{workdir} is complete (step {config.train.steps}); see {workdir}/report.html")
            return results
    asm = assemble(config, checkpoint.read_artifacts(workdir, saved[-1]) if saved else None)
    _sync("claimed")
    if _is_main():
        folder.start(workdir, values, fresh=not saved)
        truncate_after(workdir / "metrics.jsonl", saved[-1] if saved else -1)
    _sync("started")
    start = saved[-1] if saved else 0
    lines = read_metrics(workdir / "metrics.jsonl")
    timer = Timer(lines[-1]["time"]["wall"] if lines else 0.0)
    with open_writer(workdir, config.log, config.train.steps, start, _is_main()) as writer:
        writer.text(startup_line(asm, workdir, start))
        session = Session(asm, workdir, writer, timer)
        with session.manager:
            if saved:
                state = checkpoint.restore(session.manager, start, asm.abstract)
            else:
                with timer.of("compile"):
                    state = initial_state(asm)
                    jax.block_until_ready(state)
                session.evaluate_due(0, state)
                if 0 in asm.experiment.milestones or config.train.steps == 0:
                    session.save(0, state)
            state, rate = run_steps(session, state, start, profile)
            results = _finish(session, state, rate)
    return results


def startup_line(asm: Assembly, workdir: Path, start: int) -> str:
    """One line that says what runs where."""
    config = asm.config
    begin = f"resume at step {start}" if start else "fresh start"
    return (
        f"{config.system}:{config.variant} seed {config.seed} -> {workdir} ({begin}); "
        f"{jax.device_count()} {jax.default_backend()} device(s), mesh {dict(asm.mesh.shape)}, "
        f"process {jax.process_index() + 1} of {jax.process_count()}"
    )


def _finish(session: Session, state: State, rate: float) -> dict[str, Any]:
    """Tests the selected checkpoint, writes results.json and the report."""
    asm, config = session.asm, session.asm.config
    best = session.best_step()
    if best != config.train.steps:
        state = checkpoint.restore(session.manager, best, asm.abstract)
    for split in asm.experiment.splits:
        session.evaluate(best, state, split)
    session.writer.flush()
    env = folder.environment()
    results = results_of(asm, session.records, env) | {
        "wall_s": round(session.timer.wall(), 2),
        "compile_s": round(session.timer.spent["compile"], 2),
        "steps_per_s": round(rate, 4) if rate else None,
        "time_s": {k: round(v, 2) for k, v in session.timer.spent.items()},
    }
    if _is_main():
        folder.write_json(session.workdir / "results.json", results)
        pictures = {}
        if asm.experiment.figures is not None:
            pictures = asm.experiment.figures(session.records, state)
        report.write_report(session.workdir, pictures, base_values(config))
        session.writer.text(summary_text(results, session.workdir))
    _sync("finished")
    return results


def base_values(config: ConfigDict) -> dict[str, Any]:
    """The config of this system's base variant, for the difference in the report."""
    return settings.to_json(settings.config_module(config.system).get_config("base"))


def summary_text(results: Mapping[str, Any], workdir: Path) -> str:
    rows = [f"  {k} = {v:.4f}" for k, v in sorted(results["metrics"].items())]
    return "\n".join([f"results of {workdir}", *rows, f"report: {workdir}/report.html"])


def results_of(
    asm: Assembly, records: list[dict[str, Any]], env: Mapping[str, Any]
) -> dict[str, Any]:
    """results.json without timing."""
    config = asm.config
    metrics = collect(asm.experiment, records)
    where: dict[str, int] = {}
    for record in records:
        if record["split"] in asm.experiment.splits:
            where.update({k: record["step"] for k in record if k not in ("step", "split")})
    module = settings.config_module(config.system)
    return {
        "schema": 1,
        "system": config.system,
        "variant": config.variant,
        "config_hash": settings.config_hash(asm.values),
        "seed": config.seed,
        "step": config.train.steps,
        "metrics": {k: float(np.mean(v)) for k, v in metrics.items()},
        "per_seed": {k: np.asarray(v).tolist() for k, v in metrics.items() if np.ndim(v)},
        "checkpoint_of": where,
        "tolerance": dict.fromkeys(metrics, config.eval.tolerance),
        "paper": dict(getattr(module, "PAPER", {})),
        "params": sum(
            math.prod(leaf.shape) for leaf in jax.tree.leaves(asm.abstract.get("params", {}))
        ),
        "device": folder.device_name(env),
        "commit": env["commit"],
    }


def open_run(workdir: Path) -> tuple[Assembly, ocp.CheckpointManager]:
    """Rebuilds a finished or stopped run from its folder alone, wherever it was copied."""
    config = settings.from_json(folder.read_json(workdir / "config.json"))
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.mesh = (-1, 1)  # the folder may be read on another device count
    saved = checkpoint.steps(workdir)
    if not saved:
        raise UserError(f"no checkpoints in {workdir}")
    asm = assemble(config, checkpoint.read_artifacts(workdir, saved[-1]))
    return asm, checkpoint.open_manager(workdir, read_only=True)


def evaluate_last(workdir: Path) -> dict[str, Any]:
    """--mode=eval: evaluates the last checkpoint on every final split, writes nothing."""
    asm, manager = open_run(workdir)
    with manager:
        step = checkpoint.steps(workdir)[-1]
        state = checkpoint.restore(manager, step, asm.abstract)
        out: dict[str, Any] = {}
        for split in asm.experiment.splits:
            out.update(to_host(asm.experiment.evaluate(state, split)))
    return {"step": step, **{k: float(np.mean(v)) for k, v in out.items()}}


def check(workdir: Path) -> list[str]:
    """--mode=check: evaluates every checkpoint named in results.json again.

    Returns:
        One line per metric that is missing or differs by more than its tolerance.
    """
    claimed = folder.read_json(workdir / "results.json")
    asm, manager = open_run(workdir)
    records = []
    with manager:
        for step in sorted(set(claimed["checkpoint_of"].values())):
            if step not in checkpoint.steps(workdir):
                raise UserError(f"{workdir}: results.json names step {step}, not among checkpoints")
            state = checkpoint.restore(manager, step, asm.abstract)
            for split in asm.experiment.splits:
                metrics = to_host(asm.experiment.evaluate(state, split))
                records.append(record_of(step, split, metrics))
    found = {k: float(np.mean(v)) for k, v in collect(asm.experiment, records).items()}
    lines = []
    for name, value in sorted(claimed["metrics"].items()):
        allowed = claimed["tolerance"].get(name, 1e-6)
        if name not in found:
            lines.append(f"{name}: claimed {value}, not found again")
        elif not abs(found[name] - value) <= allowed:
            lines.append(f"{name}: claimed {value}, found {found[name]}, tolerance {allowed}")
    return lines


def act(workdir: Path, name: str, query: str) -> str:
    """--mode=<action>: answers a query from a run folder alone."""
    asm, manager = open_run(workdir)
    actions = asm.experiment.actions
    if name not in actions:
        known = ["train", "eval", "check", "report", *actions]
        raise UserError(f"--mode={name}: {asm.config.system} knows {', '.join(known)}")
    with manager:
        state = checkpoint.restore(manager, checkpoint.steps(workdir)[-1], asm.abstract)
        return actions[name](state, query)
