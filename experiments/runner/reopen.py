# SPDX-License-Identifier: Apache-2.0
"""A finished or stopped run, opened again from its folder alone: evaluate, check, answer."""

from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp

from experiments.runner import checkpoint, folder, results, settings
from experiments.runner.assemble import Assembly, assemble
from experiments.runner.errors import UserError
from experiments.runner.hosts import to_host


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
                records.append(results.record_of(step, split, metrics))
    again = {k: float(np.mean(v)) for k, v in results.collect(asm.experiment, records).items()}
    lines = []
    for name, value in sorted(claimed["metrics"].items()):
        allowed = claimed["tolerance"].get(name, 1e-6)
        if name not in again:
            lines.append(f"{name}: claimed {value}, not found again")
        elif not (abs(again[name] - value) <= allowed or (again[name] != again[name] != value)):
            lines.append(f"{name}: claimed {value}, found {again[name]}, tolerance {allowed}")
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
