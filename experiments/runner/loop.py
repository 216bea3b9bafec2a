# SPDX-License-Identifier: Apache-2.0
"""Train and resume. Knows only the contract.

Order at step t: dispatch t, write the metrics of t-1 (so logging never stalls the device),
evaluate, flush the log, save. A checkpoint of step t therefore never knows less than the log.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from experiments.runner import (
    ahead,
    checkpoint,
    content,
    folder,
    memory,
    report,
    results,
    schedule,
    settings,
    sharding,
    verdict,
)
from experiments.runner.assemble import (
    Assembly,
    assemble,
    check_batch,
    initial_state,
    read_donor,
)
from experiments.runner.clock import Timer, Trace, stop_signal
from experiments.runner.contract import Experiment, Picture, Rows, State
from experiments.runner.errors import UserError
from experiments.runner.hosts import agree, is_main, sync, to_host
from experiments.runner.lock import FolderLock
from experiments.runner.writer import (
    Writer,
    check_trackers,
    open_writer,
    read_metrics,
    truncate_after,
)

VALID = "valid"
PREFETCH = 2


def _batches(asm: Assembly, start: int, stop: int) -> Iterator[tuple[dict[str, Any], float]]:
    """Yields batches on the mesh with the seconds waited for each; one thread works ahead."""
    host_batch = asm.experiment.batch
    assert host_batch is not None
    feed = sharding.Feed(asm.mesh, asm.experiment.rules)
    rows = feed.rows(host_batch(start)) if jax.process_count() > 1 else None

    def load(step: int) -> dict[str, Any]:
        return feed.put(host_batch(step) if rows is None else host_batch(step, rows), rows)

    with ahead.working_ahead(load, range(start, stop), PREFETCH) as take:
        for _ in range(start, stop):
            began = time.perf_counter()
            batch = take()
            yield batch, time.perf_counter() - began


class Session:
    """One process's pass over a run: its records and everything that is written on the way."""

    def __init__(
        self,
        asm: Assembly,
        workdir: Path,
        writer: Writer,
        timer: Timer,
        signals: Sequence[int] = (),
    ) -> None:
        self.signals = signals  # asked to stop, once there is one
        self.asm = asm
        self.workdir = workdir
        self.writer = writer
        self.timer = timer
        self.schedule = schedule.of(asm.config, asm.experiment.milestones)
        self.manager = checkpoint.open_manager(
            workdir, milestones=asm.experiment.milestones, best=self.best_of
        )
        self.records = results.load_records(workdir / "metrics.jsonl")
        sync("read")  # before process 0 writes more of it: all must evaluate the same

    def log(self, step: int, split: str, metrics: Mapping[str, Any]) -> None:
        """Writes metrics on the host to the log and remembers them."""
        self.writer.write(step, split, metrics, self.timer.line())
        self.records.append(results.record_of(step, split, metrics))

    def evaluate(self, step: int, state: State, split: str) -> None:
        """Evaluates once per (step, split) and logs it."""
        if any(r["step"] == step and r["split"] == split for r in self.records):
            return
        with self.timer.of("eval"):
            memory.release_scratch()
            metrics = to_host(self.asm.experiment.evaluate(state, split))
            memory.keep_scratch()
        self.log(step, split, metrics)

    def evaluate_due(self, step: int, state: State) -> None:
        """Evaluates the splits the schedule names at this step."""
        if self.schedule.validates(step):
            self.evaluate(step, state, VALID)
        if self.schedule.tests(step):
            for split in self.asm.experiment.splits:
                self.evaluate(step, state, split)

    def save(self, step: int, state: State) -> None:
        """Begins to write a checkpoint, after the log that belongs to it."""
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


class TrainMetrics:
    """Metrics of the step dispatched last, fetched while the next one runs."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.pending: tuple[int, Any] | None = None

    def put(self, step: int, metrics: Any) -> None:
        """Takes the metrics of a step, still on the device."""
        self.pending = (step, metrics)

    def settle(self) -> list[str]:
        """Waits for what is pending and logs it where it is due; names what must be finite and
        is not."""
        if self.pending is None:
            return []
        step, on_device = self.pending
        self.pending = None
        metrics = to_host(on_device)
        non_finite = non_finite_metrics(self.session.asm.experiment, step, metrics)
        if self.session.schedule.logs(step) or non_finite:
            self.session.log(step, "train", metrics)
        return non_finite


def non_finite_metrics(experiment: Experiment, step: int, metrics: Mapping[str, Any]) -> list[str]:
    """Lists "loss at step 7" for every metric that must be finite and is not."""
    endings = experiment.must_be_finite
    names = [k for k, v in metrics.items() if k.endswith(endings) and not np.all(np.isfinite(v))]
    return [f"{name} at step {step}" for name in sorted(names)]


def jit_step(asm: Assembly, batch: Mapping[str, Any]) -> Any:
    """The compiled step: explicit shardings (a restored state must not retrace), donated state."""
    feed = sharding.Feed(asm.mesh, asm.experiment.rules)
    return jax.jit(
        asm.experiment.step,  # type: ignore[arg-type]
        in_shardings=(asm.shardings, {k: feed.sharding(k, v.shape) for k, v in batch.items()}),
        out_shardings=(asm.shardings, NamedSharding(asm.mesh, PartitionSpec())),
        donate_argnums=0,
    )


def _stop_requested(session: Session, step: int) -> bool:
    if jax.process_count() > 1:  # all must stop at the same step, whoever got the signal
        return session.manager.reached_preemption(step)
    return bool(session.signals)


def _stop_alone(session: Session) -> bool:
    """Whether to stop outside the steps: of several processes one may not end without the others,
    which agree at the next step."""
    return bool(session.signals) and jax.process_count() == 1


def _stop(session: Session, when: str) -> NoReturn:
    """Ends a run that was asked to stop, once what it began to save is on the disk."""
    checkpoint.wait(session.manager)
    session.writer.flush()
    session.writer.text(f"stopped {when}, saved; the same command resumes")
    raise SystemExit(0)


def run_steps(
    session: Session, state: State, start: int, profile: bool, step_fn: Any = None
) -> State:
    """Trains from `start` to the end.

    Args:
        step_fn: a step compiled before, for the shapes of the first batch.

    Raises:
        UserError: a metric that must be is not finite (the state is saved), or a save failed.
        SystemExit: code 0 after SIGTERM or SIGINT, with a saved checkpoint.
    """
    asm = session.asm
    timer = session.timer
    due = session.schedule
    train_metrics = TrainMetrics(session)
    trace = Trace(session.workdir / "profile", due.total - start) if profile else None
    warm = step_fn is not None
    compiled_shapes: set[Any] = set()

    for step, (batch, waited) in enumerate(_batches(asm, start, due.total), start + 1):
        timer.spent["data"] += waited
        if trace:
            trace.before(step - start)
        shapes = frozenset((name, leaf.shape) for name, leaf in batch.items())
        compiles = shapes not in compiled_shapes and not warm
        compiled_shapes.add(shapes)
        warm = False
        before = timer.spent["compile"]
        with timer.of("compile" if compiles else "step"):
            if compiles:
                session.writer.text(f"compiling the step of {asm.config.system} ...")
                step_fn = step_fn or jit_step(asm, batch)
            # A host array among the arguments would be one in every step: ask once.
            with jax.transfer_guard("disallow") if compiles else nullcontext():
                state, metrics = step_fn(state, batch)
            if compiles:
                jax.block_until_ready(metrics)
                memory.keep_scratch()
            non_finite = train_metrics.settle()  # of the step before, while this one runs
        if compiles:
            seconds = timer.spent["compile"] - before
            session.writer.text(f"compiled in {seconds:.1f} s, the first step included")
        train_metrics.put(step, metrics)
        timer.timed_steps += not compiles
        if trace:
            trace.after(step - start, state)
        checkpoint.check_saves(session.manager)

        stop = _stop_requested(session, step)
        if non_finite or stop or due.settles(step):
            with timer.of("step"):
                non_finite += train_metrics.settle()
        if non_finite:
            session.save(step, state)
            checkpoint.wait(session.manager)
            raise UserError(stopped_on(non_finite, step, session.workdir))
        session.evaluate_due(step, state)
        if stop or due.saves(step):
            session.save(step, state)
        if stop and step < due.total:
            _stop(session, f"at step {step}")
    return state


def stopped_on(non_finite: list[str], step: int, workdir: Path) -> str:
    """Says why a run stopped, where its state is and how to go on."""
    return (
        f"non-finite {', '.join(non_finite)}: stopped, state saved in {workdir}/checkpoints/{step}."
        " To go on from an earlier checkpoint delete that folder; try a smaller learning rate"
    )


def refuse_to_go_on(
    experiment: Experiment, lines: list[dict[str, Any]], start: int, workdir: Path
) -> None:
    """Raises UserError if the checkpoint to resume is the one a non-finite metric left behind."""
    for line in lines:
        if line["split"] == "train" and start - 1 <= line["step"] <= start:
            non_finite = non_finite_metrics(experiment, line["step"], line)
            if non_finite:
                raise UserError(stopped_on(non_finite, start, workdir))


def train(
    config: ConfigDict, workdir: Path, *, overwrite: bool = False, profile: bool = False
) -> dict[str, Any]:
    """Trains or resumes a run, writes results.json and the report; returns the results.

    Raises:
        UserError: any misuse, before anything is compiled or written; a non-finite loss; another
            process is writing the folder.
        SystemExit: code 0 after SIGTERM or SIGINT, with a saved checkpoint.
    """
    values = settings.to_json(config)
    folder.check_writable(workdir)
    check_trackers(values["log"])
    with _one_writer(workdir) as lock:
        return _train(config, values, workdir, lock, overwrite, profile)


@contextmanager
def _one_writer(workdir: Path) -> Iterator[FolderLock]:
    """The lock of process 0; the others go on, or fail, with it."""
    lock = FolderLock(workdir)
    with ExitStack() as stack:
        refusal = None
        if is_main():
            try:
                stack.enter_context(lock)
            except UserError as error:
                refusal = error
        if agree(refusal is not None):
            raise refusal or UserError(f"--workdir={workdir} is refused to process 0")
        yield lock


def _train(
    config: ConfigDict,
    values: dict[str, Any],
    workdir: Path,
    lock: FolderLock,
    overwrite: bool,
    profile: bool,
) -> dict[str, Any]:
    on_record = {} if overwrite else folder.content_on_record(workdir)
    if on_record is not None:  # a run that kept none, before there were any, goes on without
        digests = content.digests(values, on_record)
        values |= {settings.CONTENT: digests} if digests else {}
    resume = folder.claim(workdir, values, overwrite)
    saved = checkpoint.steps(workdir) if resume else []
    if resume:
        checkpoint.warn_of_empty_steps(workdir)
    if saved and saved[-1] > config.train.steps:
        raise UserError(
            f"--workdir={workdir} is at step {saved[-1]} already, past config.train.steps="
            f"{config.train.steps}; ask for more steps or give another --workdir"
        )
    if saved:
        checkpoint.check_owner(workdir, saved[-1], values)
    if resume and saved[-1:] == [config.train.steps] and (workdir / "results.json").exists():
        finished = folder.read_results(workdir)
        if finished["step"] == config.train.steps:
            print(f"{workdir} is complete (step {config.train.steps}); see {workdir}/report.html")
            return finished
    asm = assemble(config, checkpoint.read_artifacts(workdir, saved[-1]) if saved else None)
    asm = asm._replace(values=values)
    check_batch(asm)
    donor = {} if saved else read_donor(asm)
    if saved:
        lines = read_metrics(workdir / "metrics.jsonl")
        refuse_to_go_on(asm.experiment, lines, saved[-1], workdir)
    sync("claimed")
    lock.started = True
    if is_main():
        folder.start(workdir, values, fresh=not saved)
        truncate_after(workdir / "metrics.jsonl", saved[-1] if saved else -1)
    sync("started")
    return _train_from(asm, workdir, saved[-1] if saved else None, donor, profile)


def _train_from(
    asm: Assembly, workdir: Path, saved: int | None, donor: Mapping[str, Any], profile: bool
) -> dict[str, Any]:
    """Runs from the checkpoint of step `saved`, or from a fresh state, to the end."""
    total = asm.config.train.steps
    start = saved or 0
    lines = read_metrics(workdir / "metrics.jsonl")
    timer = Timer(lines[-1].get("time", {}) if lines else {})
    with (
        stop_signal() as signals,
        open_writer(
            workdir, asm.values["log"], total, start, is_main(), asm.experiment.bar
        ) as writer,
    ):
        writer.text(startup_line(asm, workdir, start))
        session = Session(asm, workdir, writer, timer, signals)
        with checkpoint.closing(session.manager):
            if saved is not None:
                state = checkpoint.restore(session.manager, saved, asm.abstract)
            else:
                state = _fresh_state(session, donor)
            if start < total:
                state = run_steps(session, state, start, profile)
            return _finish(session, state)


def _fresh_state(session: Session, donor: Mapping[str, Any]) -> State:
    """Initial state, evaluated and saved where the schedule wants step 0."""
    with session.timer.of("compile"):
        state = initial_state(session.asm, donor)
        jax.block_until_ready(state)
    if _stop_alone(session):
        session.save(0, state)
        _stop(session, "before the first step")
    session.evaluate_due(0, state)
    if session.schedule.saves(0):
        session.save(0, state)
    return state


def startup_line(asm: Assembly, workdir: Path, start: int) -> str:
    """One line that says what runs where."""
    config = asm.config
    begin = f"resume at step {start}" if start else "fresh start"
    return (
        f"{config.system}:{config.variant} seed {config.seed} -> {workdir} ({begin}); "
        f"{jax.device_count()} {jax.default_backend()} device(s), mesh {dict(asm.mesh.shape)}, "
        f"process {jax.process_index() + 1} of {jax.process_count()}"
    )


def _finish(session: Session, state: State) -> dict[str, Any]:
    """Tests the selected checkpoint, writes results.json and the report."""
    asm = session.asm
    config = session.asm.config
    best = session.best_step()
    if best != config.train.steps:
        state = checkpoint.restore(session.manager, best, asm.abstract)
    for split in asm.experiment.splits:
        if _stop_alone(session):
            _stop(session, "in the final test")
        session.evaluate(best, state, split)
    session.writer.flush()
    env = folder.read_json(session.workdir / "env.json")  # as it was when this process began
    tests = results.tests_of(asm.experiment, session.records, best)
    summary = results.results_of(asm, tests, best, env) | {
        "wall_s": round(session.timer.wall(), 2),
        "compile_s": round(session.timer.spent["compile"], 2),
        "steps_per_s": round(rate, 4) if (rate := session.timer.rate()) else None,
        "time_s": {kind: round(seconds, 2) for kind, seconds in session.timer.spent.items()},
        "peak_rss_mb": round(peak) if (peak := memory.peak_rss_mb()) else None,
    }
    figures: Mapping[str, Picture | Rows] = {}
    if asm.experiment.figures is not None:  # on every process: it may compute with the state
        figures = asm.experiment.figures(session.records, state)
    if is_main():
        headline = results.headline_of(config)
        folder.write_json(session.workdir / "results.json", summary)
        report.write_report(
            session.workdir,
            figures,
            results.base_values(config),
            headline,
            results.about_of(config),
        )
        session.writer.text(verdict.end_block(summary, headline, session.workdir))
    sync("finished")
    return summary
