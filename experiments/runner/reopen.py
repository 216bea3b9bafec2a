# SPDX-License-Identifier: Apache-2.0
"""A finished or stopped run, opened again from its folder alone: evaluate, check, answer."""

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orbax.checkpoint as ocp

from experiments.runner import checkpoint, command_line, folder, results, serving, settings
from experiments.runner.assemble import Assembly, assemble
from experiments.runner.errors import UserError
from experiments.runner.hosts import to_host
from experiments.runner.queries import Answer, Query


def open_run(workdir: Path) -> tuple[Assembly, ocp.CheckpointManager]:
    """Rebuilds a finished or stopped run from its folder alone, wherever it was copied.

    Raises:
        UserError: no run folder, a damaged file, or a checkpoint that another run saved.
    """
    values = folder.read_json(workdir / "config.json")
    settings.check_source(values, workdir)
    config = settings.from_json(values)
    settings.groups(config)  # config.json may be damaged: say so before anything is done with it
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.mesh = (-1, 1)  # the folder may be read on another device count
    saved = checkpoint.steps(workdir)
    checkpoint.warn_of_empty_steps(workdir)
    if not saved:
        raise UserError(f"no checkpoints in {workdir}")
    for step in saved:
        checkpoint.check_owner(workdir, step, values)
    asm = assemble(config, checkpoint.read_artifacts(workdir, saved[-1]), exact=False)
    asm = asm._replace(values=values)
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


class Recheck(NamedTuple):
    """What evaluating a run again gave, beside what its results.json claims."""

    differences: list[str]
    """One line per claim that does not hold."""
    num_metrics: int
    """Metrics evaluated again."""
    checkpoints: list[int]
    """Steps of the checkpoints they were evaluated from."""
    largest: float
    """Largest absolute difference of a metric."""
    tolerance: float
    """What is allowed, from the config saved with the checkpoint."""
    saved_on: str
    """Device and versions of the run."""
    checked_on: str
    """Device and versions now."""


def check(workdir: Path) -> list[str]:
    """Evaluates a run again; one line per claim of its results.json that does not hold."""
    return recheck(workdir).differences


def recheck(workdir: Path) -> Recheck:
    """--mode=check: evaluates the checkpoints named in results.json, and milestones, again.

    Nothing of results.json is believed: the tolerance is that of the config saved with the
    checkpoint, a metric that is missing or too many is a difference, and what the file says of the
    run (config_hash, seed, step, params) is compared with the checkpoint.

    Raises:
        UserError: no finished run, a damaged file, or a checkpoint is missing.
    """
    asm, manager = open_run(workdir)
    claimed = folder.read_results(workdir)
    records, steps = _evaluate_again(asm, manager, workdir, claimed)
    metrics = results.collect(asm.experiment, records)
    again = {name: float(np.mean(value)) for name, value in metrics.items()}
    tolerance = float(asm.config.eval.tolerance)
    differences = _differing_facts(asm, claimed)
    gaps = [0.0]
    for name in sorted({*claimed["metrics"], *again}):
        if name not in again:
            differences.append(f"{name}: claimed {claimed['metrics'][name]}, not found again")
            continue
        if name not in claimed["metrics"]:
            differences.append(f"{name}: found {again[name]}, not claimed")
            continue
        old = claimed["metrics"][name]
        new = again[name]
        if math.isnan(old) and math.isnan(new):
            continue
        gaps.append(abs(new - old))
        if not gaps[-1] <= tolerance:  # also where one is not a number
            differences.append(f"{name}: claimed {old}, found {new}, tolerance {tolerance}")
    saved_on = _machine(folder.read_json(workdir / "env.json"))
    checked_on = _machine(folder.environment())
    return Recheck(differences, len(again), steps, max(gaps), tolerance, saved_on, checked_on)


def _evaluate_again(
    asm: Assembly, manager: ocp.CheckpointManager, workdir: Path, claimed: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], list[int]]:
    """Records on every final split of the checkpoints that count, and their steps."""
    steps = set(claimed["checkpoint_of"].values())
    if asm.experiment.summary is not None:  # it saw all of these
        steps |= {step for step in asm.experiment.milestones if step <= claimed["step"]}
    records = []
    with manager:
        for step in sorted(steps):
            if step not in checkpoint.steps(workdir):
                raise UserError(f"{workdir}: results.json names step {step}, not among checkpoints")
            state = checkpoint.restore(manager, step, asm.abstract)
            for split in asm.experiment.splits:
                metrics = to_host(asm.experiment.evaluate(state, split))
                records.append(results.record_of(step, split, metrics))
    return records, sorted(steps)


def _differing_facts(asm: Assembly, claimed: Mapping[str, Any]) -> list[str]:
    """What results.json says of the run and its checkpoints do not."""
    actual = {
        "config_hash": settings.config_hash(asm.values),
        "seed": asm.config.seed,
        "step": asm.config.train.steps,
        "params": results.count_params(asm),
    }
    return [
        f"{key}: claimed {claimed.get(key)!r}, the checkpoint has {value!r}"
        for key, value in actual.items()
        if claimed.get(key) != value
    ]


def _machine(env: Mapping[str, Any]) -> str:
    """ "4 x cpu, Python 3.11.7, jax 0.10.2" of an env.json."""
    versions = env.get("versions", {})
    return f"{folder.device_name(env)}, Python {env.get('python')}, jax {versions.get('jax')}"


def recheck_text(workdir: Path, outcome: Recheck) -> str:
    """What --mode=check prints: the differences, then how much was looked at and where."""
    verdict = "holds" if not outcome.differences else "does NOT hold"
    return "\n".join(
        [
            *outcome.differences,
            f"{workdir}: {verdict}; {outcome.num_metrics} metrics of "
            f"{len(outcome.checkpoints)} checkpoint(s) evaluated again "
            f"(steps {', '.join(map(str, outcome.checkpoints))}), largest difference "
            f"{outcome.largest:.3g}, tolerance {outcome.tolerance:g}",
            f"  run on     {outcome.saved_on}",
            f"  checked on {outcome.checked_on}",
        ]
    )


def act(workdir: Path, name: str, query: Query) -> Answer:
    """--mode=<action>: answers a query from a run folder alone.

    Raises:
        UserError: no run folder, no such action, or a query it cannot answer.
    """
    asm, manager = open_run(workdir)
    actions = asm.experiment.actions
    if name not in actions:
        known = [*command_line.MODES, *actions]
        raise UserError(f"--mode={name}: {asm.config.system} knows {', '.join(known)}")
    step, why = serving.step_to_serve(workdir)
    print(f"{workdir}: checkpoint of step {step}, {why}", file=sys.stderr)
    with manager:
        state = checkpoint.restore(manager, step, asm.abstract)
    return actions[name](state, query)
