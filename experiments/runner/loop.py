# SPDX-License-Identifier: Apache-2.0
"""Train, evaluate, resume, check. Knows only the contract.

Order at step t: dispatch t, write the metrics of t-1 (so logging never stalls the device),
evaluate, flush the log, save. A checkpoint of step t therefore never knows less than the log.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from experiments.runner import checkpoint, folder, names, report, schedule, settings, sharding
from experiments.runner.clock import Timer, stop_signal
from experiments.runner.contract import Experiment, Rows, State
from experiments.runner.errors import UserError
from experiments.runner.writer import (
    Writer,
    check_trackers,
    open_writer,
    read_metrics,
    truncate_after,
)

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


def assemble(
    config: ConfigDict, artifacts: Mapping[str, Any] | None = None, *, exact: bool = True
) -> Assembly:
    """Validates, prepares (unless artifacts are given), makes; compiles and writes nothing.

    Args:
        exact: False replicates state leaves that do not divide among the devices of this machine.
    """
    settings.groups(config)
    mesh = sharding.make_mesh(config.mesh)
    module = names.system_module(config.system)
    try:
        if artifacts is None:
            prepared = module.prepare(config) if hasattr(module, "prepare") else {}
            # What a fresh start uses is exactly what a resume will read back.
            artifacts = checkpoint.unpack_artifacts(checkpoint.pack_artifacts(prepared))
        experiment = module.make(config, artifacts)
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error
    if config.train.steps and (experiment.step is None or experiment.batch is None):
        raise UserError(f"config.train.steps={config.train.steps}: {config.system} only evaluates")
    _check_select(config, experiment)
    abstract = jax.eval_shape(experiment.init, _key(config))
    empty = [path for path, leaf in sharding.leaf_paths(abstract).items() if 0 in leaf.shape]
    if empty:
        raise UserError(f"{config.system}: empty arrays cannot be saved: {empty}")
    if config.fsdp:
        extra = sharding.fsdp_rules(abstract, mesh)
        experiment = experiment._replace(rules=(*experiment.rules, *extra))
    shards = sharding.shardings(mesh, experiment.rules, abstract, exact=exact)
    abstract = jax.tree.map(
        lambda leaf, shard: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=shard),
        abstract,
        shards,
    )
    values = settings.to_json(config)
    return Assembly(config, values, experiment, dict(artifacts), mesh, abstract, shards)


def _check_select(config: ConfigDict, experiment: Experiment) -> None:
    name, known = config.eval.select[0], experiment.selectable
    if name and name not in known:
        raise UserError(
            f"config.eval.select: {name!r} is nothing {config.system} selects by; "
            + (f"there are: {', '.join(known)}" if known else "leave the name empty")
        )


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
    if jax.default_backend() != "cpu":  # there it would only cost
        for value in metrics.values():
            if isinstance(value, jax.Array):
                value.copy_to_host_async()  # all at once, then wait for each
    fetched = {k: np.asarray(v).astype(np.float64) for k, v in metrics.items()}
    return {k: float(v) if v.ndim == 0 else v for k, v in fetched.items()}


def read_donor(asm: Assembly) -> dict[str, Any]:
    """Parameters of the run config.init_from names, by path; {} if it names none.

    Raises:
        UserError: there is no such checkpoint, or its parameters do not fit.
    """
    if not asm.config.init_from:
        return {}
    donor = sharding.leaf_paths(checkpoint.read(asm.config.init_from)["state"]["params"])
    leaves = sharding.leaf_paths(asm.abstract["params"])
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
    return donor


def initial_state(asm: Assembly, donor: Mapping[str, Any] | None = None) -> State:
    """Fresh sharded state, with parameters of config.init_from where it names a run."""
    donor = read_donor(asm) if donor is None else donor
    state = jax.jit(asm.experiment.init, out_shardings=asm.shardings)(_key(asm.config))
    if not donor:
        return state

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


def tests_of(
    experiment: Experiment, records: list[dict[str, Any]], tested: int
) -> list[dict[str, Any]]:
    """Evaluations that count: on the final splits, at milestones and of the tested checkpoint.

    A run that was finished once and then extended has others, at its former end.
    """
    steps = {*experiment.milestones, tested}
    return [r for r in records if r["split"] in experiment.splits and r["step"] in steps]


def collect(experiment: Experiment, tests: list[dict[str, Any]]) -> dict[str, Any]:
    """Metrics of results.json: a later evaluation replaces an earlier one; then the summary."""
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
    rows = feed.rows(make(start)) if jax.process_count() > 1 else None

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


class Session:
    """One process's pass over a run: the state and everything that is written on the way."""

    def __init__(self, asm: Assembly, workdir: Path, writer: Writer, timer: Timer) -> None:
        self.asm, self.workdir, self.writer, self.timer = asm, workdir, writer, timer
        self.schedule = schedule.of(asm.config, asm.experiment.milestones)
        self.manager = checkpoint.open_manager(
            workdir, milestones=asm.experiment.milestones, best=self.best_of
        )
        self.records = load_records(workdir / "metrics.jsonl")
        _sync("read")  # before process 0 writes more of it: all must evaluate the same

    def evaluate(self, step: int, state: State, split: str) -> None:
        """Evaluates once per (step, split) and logs it."""
        if any(r["step"] == step and r["split"] == split for r in self.records):
            return
        with self.timer.of("eval"):
            metrics = to_host(self.asm.experiment.evaluate(state, split))
        self.writer.write(step, split, metrics, self.timer.line())
        self.records.append(record_of(step, split, metrics))

    def evaluate_due(self, step: int, state: State) -> None:
        if self.schedule.validates(step):
            self.evaluate(step, state, VALID)
        if self.schedule.tests(step):
            for split in self.asm.experiment.splits:
                self.evaluate(step, state, split)

    def save(self, step: int, state: State) -> None:
        with self.timer.of("checkpoint"):
            self.writer.flush()
            checkpoint.save(self.manager, step, state, self.asm.values, self.asm.artifacts)

    def best_of(self, steps: Sequence[int]) -> int | None:
        """The best of `steps` by config.eval.select, the last of ties; None if none is rated."""
        name, mode = self.asm.config.eval.select
        values = {r["step"]: float(np.mean(r[name])) for r in self.records if name in r}
        sign = 1.0 if mode == "max" else -1.0
        rated = [t for t in steps if t in values and not math.isnan(values[t])]
        return max(rated, key=lambda t: (sign * values[t], t), default=None)

    def best_step(self) -> int:
        """Step of the checkpoint to be tested."""
        checkpoint.wait(self.manager)
        best = self.best_of(self.manager.all_steps())
        return self.asm.config.train.steps if best is None else best


def _non_finite(step: int, metrics: Mapping[str, Any]) -> list[str]:
    """ "loss at step 7" for every loss that is not finite."""
    odd = [k for k, v in metrics.items() if k.endswith("loss") and not np.all(np.isfinite(v))]
    return [f"{k} at step {step}" for k in sorted(odd)]


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
    due, total = session.schedule, session.schedule.total
    pending: tuple[int, Any] | None = None
    measured = 0

    def settle(entry: tuple[int, Any] | None) -> list[str]:
        """Writes the metrics of a step already dispatched; names losses that are not finite."""
        if entry is None:
            return []
        metrics = to_host(entry[1])
        bad = _non_finite(entry[0], metrics)
        if due.logs(entry[0]) or bad:
            writer.write(entry[0], "train", metrics, timer.line())
            session.records.append(record_of(entry[0], "train", metrics))
        return bad

    with stop_signal() as signals:
        for step, (batch, waited) in enumerate(_batches(asm, start, total), start + 1):
            timer.spent["data"] += waited
            if profile and step - start == min(PROFILE_STEPS[0], total - start):
                jax.profiler.start_trace(str(session.workdir / "profile"))
            first = step_fn is None
            with timer.of("compile" if first else "step"):
                if first:
                    step_fn = jit_step(asm, batch)
                    writer.text(f"compiling the step of {asm.config.system} ...")
                # A host array among the arguments would be one in every step: ask once.
                with jax.transfer_guard("disallow") if first else nullcontext():
                    state, metrics = step_fn(state, batch)
                if first:
                    jax.block_until_ready(metrics)
                bad = settle(pending)
            pending = (step, metrics)
            measured += not first
            if profile and step - start == min(PROFILE_STEPS[1], total - start):
                jax.block_until_ready(state)
                jax.profiler.stop_trace()
            stop = (
                session.manager.reached_preemption(step)
                if jax.process_count() > 1
                else bool(signals)
            )
            if bad or stop or due.settles(step):
                with timer.of("step"):
                    bad += settle(pending)
                pending = None
            if bad:
                session.save(step, state)
                checkpoint.wait(session.manager)
                raise UserError(stopped_on(bad, step, session.workdir))
            session.evaluate_due(step, state)
            if stop or due.saves(step):
                session.save(step, state)
            if stop and step < total:
                checkpoint.wait(session.manager)
                writer.text(f"stopped at step {step}, saved; the same command resumes")
                raise SystemExit(0)
    spent = timer.spent["step"] + timer.spent["data"]
    return state, measured / spent if measured and spent else 0.0


def stopped_on(bad: list[str], step: int, workdir: Path) -> str:
    return (
        f"non-finite {', '.join(bad)}: stopped, state saved in {workdir}/checkpoints/{step}. To go "
        "on from an earlier checkpoint delete that folder; try a smaller learning rate"
    )


def refuse_to_go_on(lines: list[dict[str, Any]], start: int, workdir: Path) -> None:
    """Raises UserError if the checkpoint to resume is the one a non-finite loss left behind."""
    for line in lines:
        if line["split"] == "train" and start - 1 <= line["step"] <= start:
            bad = _non_finite(line["step"], line)
            if bad:
                raise UserError(stopped_on(bad, start, workdir))


def check_batch(asm: Assembly) -> None:
    """Raises UserError if the batch does not divide among the devices; sends nothing."""
    if asm.experiment.batch is not None and asm.config.train.steps:
        batch = asm.experiment.batch(0)
        sharding.shardings(asm.mesh, asm.experiment.rules, dict(batch), "batch/")


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
    check_trackers(values["log"])
    resume = folder.claim(workdir, values, overwrite)
    saved = checkpoint.steps(workdir) if resume else []
    if saved and saved[-1] > config.train.steps:
        raise UserError(
            f"--workdir={workdir} is at step {saved[-1]} already, past config.train.steps="
            f"{config.train.steps}; ask for more steps or give another --workdir"
        )
    if resume and saved[-1:] == [config.train.steps] and (workdir / "results.json").exists():
        results = folder.read_results(workdir)
        if results["step"] == config.train.steps:
            print(f"{workdir} is complete (step {config.train.steps}); see {workdir}/report.html")
            return results
    asm = assemble(config, checkpoint.read_artifacts(workdir, saved[-1]) if saved else None)
    check_batch(asm)
    donor = {} if saved else read_donor(asm)
    if saved:
        refuse_to_go_on(read_metrics(workdir / "metrics.jsonl"), saved[-1], workdir)
    _sync("claimed")
    if _is_main():
        folder.start(workdir, values, fresh=not saved)
        truncate_after(workdir / "metrics.jsonl", saved[-1] if saved else -1)
    _sync("started")
    start = saved[-1] if saved else 0
    lines = read_metrics(workdir / "metrics.jsonl")
    timer = Timer(lines[-1]["time"]["wall"] if lines else 0.0)
    with open_writer(workdir, values["log"], config.train.steps, start, _is_main()) as writer:
        writer.text(startup_line(asm, workdir, start))
        session = Session(asm, workdir, writer, timer)
        with checkpoint.closing(session.manager):
            if saved:
                state = checkpoint.restore(session.manager, start, asm.abstract)
            else:
                with timer.of("compile"):
                    state = initial_state(asm, donor)
                    jax.block_until_ready(state)
                session.evaluate_due(0, state)
                if session.schedule.saves(0):
                    session.save(0, state)
            rate = 0.0
            if start < config.train.steps:
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
    env = folder.read_json(session.workdir / "env.json")  # as it was when this process began
    results = results_of(asm, tests_of(asm.experiment, session.records, best), env) | {
        "wall_s": round(session.timer.wall(), 2),
        "compile_s": round(session.timer.spent["compile"], 2),
        "steps_per_s": round(rate, 4) if rate else None,
        "time_s": {k: round(v, 2) for k, v in session.timer.spent.items()},
    }
    pictures: Mapping[str, bytes | Rows] = {}
    if asm.experiment.figures is not None:  # on every process: it may compute with the state
        pictures = asm.experiment.figures(session.records, state)
    if _is_main():
        folder.write_json(session.workdir / "results.json", results)
        report.write_report(session.workdir, pictures, base_values(config), headline_of(config))
        session.writer.text(summary_text(results, session.workdir, headline_of(config)))
    _sync("finished")
    return results


def base_values(config: ConfigDict) -> dict[str, Any]:
    """The config of this system's base variant, for the difference in the report."""
    return settings.to_json(names.config_module(config.system).get_config("base"))


def headline_of(config: ConfigDict) -> tuple[str, ...]:
    """Metrics the config module shows first; () for all."""
    return tuple(getattr(names.config_module(config.system), "HEADLINE", ()))


def summary_text(results: Mapping[str, Any], workdir: Path, headline: Sequence[str] = ()) -> str:
    """What is printed at the end: the headline, or everything where there is none."""
    metrics = results["metrics"]
    shown = [k for k in headline if k in metrics] or sorted(metrics)
    rows = [f"  {k} = {metrics[k]:.4f}" for k in shown]
    if len(shown) < len(metrics):
        rows.append(f"  {len(metrics) - len(shown)} more: {workdir}/results.json")
    return "\n".join([f"results of {workdir}", *rows, f"report: {workdir}/report.html"])


def results_of(
    asm: Assembly, tests: list[dict[str, Any]], env: Mapping[str, Any]
) -> dict[str, Any]:
    """results.json without timing."""
    config = asm.config
    metrics = collect(asm.experiment, tests)
    where: dict[str, int] = {}
    for record in tests:
        where.update({k: record["step"] for k in record if k not in ("step", "split")})
    module = names.config_module(config.system)
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
    asm = assemble(config, checkpoint.read_artifacts(workdir, saved[-1]), exact=False)
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
    """--mode=check: evaluates the checkpoints named in results.json, and milestones, again.

    Returns:
        One line per metric that is missing or differs by more than its tolerance.
    """
    asm, manager = open_run(workdir)
    claimed = folder.read_results(workdir)
    records = []
    steps = set(claimed["checkpoint_of"].values())
    if asm.experiment.summary is not None:  # it saw all of these
        steps |= {step for step in asm.experiment.milestones if step <= claimed["step"]}
    with manager:
        for step in sorted(steps):
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
        elif not (abs(found[name] - value) <= allowed or (found[name] != found[name] != value)):
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
