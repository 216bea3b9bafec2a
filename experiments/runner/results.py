# SPDX-License-Identifier: Apache-2.0
"""Records of evaluations, and what results.json and the end of a run make of them."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.runner import folder, names, settings
from experiments.runner.about import About, Headline
from experiments.runner.assemble import Assembly
from experiments.runner.contract import Experiment
from experiments.runner.writer import read_metrics


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


def base_values(config: ConfigDict) -> dict[str, Any]:
    """The config of this system's base variant, for the difference in the report."""
    return settings.to_json(names.config_module(config.system).get_config("base"))


def headline_of(config: ConfigDict) -> tuple[Headline, ...]:
    """Metrics the config module shows first; () for a system of the user's own without any."""
    return tuple(getattr(names.config_module(config.system), "HEADLINE", ()))


def about_of(config: ConfigDict) -> About | None:
    """What the config module says of its system; None for one of the user's own without that."""
    return getattr(names.config_module(config.system), "ABOUT", None)


def count_params(asm: Assembly) -> int:
    """Numbers in state["params"]."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(asm.abstract["params"]))


def results_of(
    asm: Assembly, tests: list[dict[str, Any]], tested: int, env: Mapping[str, Any]
) -> dict[str, Any]:
    """results.json without timing; `tested` is the step of the selected checkpoint."""
    config = asm.config
    metrics = collect(asm.experiment, tests)
    where: dict[str, int] = {}
    for record in tests:
        where.update({k: record["step"] for k in record if k not in ("step", "split")})
    module = names.config_module(config.system)
    source = names.source_sha256(config.system)
    own = {"source": {"file": f"{config.system}.py", "sha256": source}} if source else {}
    return {
        **own,
        "schema": 1,
        "system": config.system,
        "variant": config.variant,
        "config_hash": settings.config_hash(asm.values),
        "seed": config.seed,
        "step": config.train.steps,
        "tested": tested,
        "metrics": {k: float(np.mean(v)) for k, v in metrics.items()},
        "per_seed": {k: np.asarray(v).tolist() for k, v in metrics.items() if np.ndim(v)},
        "checkpoint_of": where,
        "tolerance": dict.fromkeys(metrics, config.eval.tolerance),
        "paper": dict(getattr(module, "PAPER", {})),
        "params": count_params(asm),
        "device": folder.device_name(env),
        "commit": env["commit"],
    }
