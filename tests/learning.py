# SPDX-License-Identifier: Apache-2.0
"""Runs as a user types them, and the dated result files that the slow tests leave.

With $SLOW_RUNS=FOLDER the runs are kept there, and a second try goes on where the first stopped.
"""

import datetime
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np

from experiments.runner import folder
from tests import ROOT, compiling

RESULTS = ROOT / "experiments" / "results"
SEEDS = (0, 1, 2)


def train(workdir: Path, system: str, seed: int, *options: str) -> dict[str, Any]:
    """results.json of one run, compiled as for users, with the command that made it."""
    words = [
        "experiments/run.py",
        f"--config={system}",
        f"--config.seed={seed}",
        *options,
    ]
    if "SLOW_RUNS" in os.environ:
        workdir = Path(os.environ["SLOW_RUNS"]).absolute() / system / workdir.name
    run = subprocess.run(
        [sys.executable, *words, f"--workdir={workdir}"],
        cwd=ROOT,
        env=compiling.as_users(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    results = json.loads((workdir / "results.json").read_text())
    versions = json.loads((workdir / "env.json").read_text())["versions"]
    return {**results, "versions": versions, "command": "python " + " ".join(words)}


def place(folder: Path, system: str, name: str, seed: int) -> Path:
    """Where the run of a condition and seed lies: below `folder`, or $SLOW_RUNS where it is set."""
    home = (
        Path(os.environ["SLOW_RUNS"]).absolute() / system if "SLOW_RUNS" in os.environ else folder
    )
    return home / f"{re.sub('[^a-z0-9.]+', '-', name.lower())}-s{seed}"


def train_all(
    folder: Path, system: str, conditions: Mapping[str, Sequence[str]], seeds: Sequence[int] = SEEDS
) -> dict[str, list[dict[str, Any]]]:
    """Runs of every condition {name: options} and seed, one per core at a time.

    Each keeps to its core: two XLA programs that share cores wait for each other's threads.
    """
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
    free = SimpleQueue[int]()
    for core in cores:
        free.put(core)

    def settle() -> None:  # threads of the pool; what they start inherits it
        if cores:
            os.sched_setaffinity(0, {free.get()})

    jobs = [(name, seed) for name in conditions for seed in seeds]

    def one(job: tuple[str, int]) -> dict[str, Any]:
        name, seed = job
        return train(place(folder, system, name, seed), system, seed, *conditions[name])

    with ThreadPoolExecutor(len(cores) or os.cpu_count(), initializer=settle) as pool:
        results = dict(zip(jobs, pool.map(one, jobs), strict=True))
    return {name: [results[name, seed] for seed in seeds] for name in conditions}


def leave(name: str, criterion: str, runs: dict[str, list[dict[str, Any]]]) -> None:
    """Writes the result file of a check."""
    RESULTS.mkdir(exist_ok=True)
    kept = ("seed", "step", "metrics", "command", "wall_s", "steps_per_s")
    conditions, first = {}, next(iter(runs.values()))[0]
    for condition, results in runs.items():
        names = sorted(results[0]["metrics"])
        values = {n: [r["metrics"][n] for r in results] for n in names}
        conditions[condition] = {
            "mean": {n: float(np.mean(v)) for n, v in values.items()},
            "std": {n: float(np.std(v, ddof=1)) if len(v) > 1 else None for n, v in values.items()},
            "runs": [{k: r[k] for k in kept} for r in results],
        }
    folder.write_json(
        RESULTS / f"{name}.json",
        {
            "check": name,
            "criterion": criterion,
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "commit": first["commit"],
            "device": f"{first['device']} ({os.cpu_count()} cores)",
            "versions": first["versions"],
            "conditions": conditions,
        },
    )


def mean(runs: list[dict[str, Any]], name: str) -> float:
    """Mean of a metric over runs."""
    return float(np.mean([run["metrics"][name] for run in runs]))
