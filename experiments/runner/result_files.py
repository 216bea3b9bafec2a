# SPDX-License-Identifier: Apache-2.0
"""Reads the files of experiments/results: runs, learning checks, benches, counts, draws.

Three writers leave them: the runner (results.json, alone or in a run folder), experiments/bench.py
and the slow tests. What the pages and plots show comes from here and from nowhere else.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from experiments.runner import about, names
from experiments.runner.comparison import spread
from experiments.runner.errors import UserError
from experiments.runner.pages import number
from experiments.runner.verdict import Run, count, over, seeds_of

# kind -> key that tells it
KINDS = {
    "results": "metrics",
    "checks": "check",
    "benches": "bench",
    "shortcuts": "shortcuts",
    "compiles": "compiled",
    "jitter": "jitter",
}
Found = dict[str, dict[str, dict[str, Any]]]
"""kind -> {path under the folder: content}, sorted by path."""


def read(results: Path) -> Found:
    """Reads all result files.

    Raises:
        UserError: a file is no JSON, of no known kind, or the same run as another.
    """
    found: Found = {kind: {} for kind in KINDS}
    hashes: dict[str, str] = {}
    for path in sorted([*results.glob("*.json"), *results.glob("*/results.json")]):
        name = path.relative_to(results).as_posix()
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise UserError(f"{path} is damaged: {error}") from error
        kinds = [kind for kind, key in KINDS.items() if key in content]
        if len(kinds) != 1:
            raise UserError(
                f"{path}: no result of a run, a bench, a slow test, a count, a compiler or draws"
            )
        if kinds == ["results"]:
            other = hashes.setdefault(content["config_hash"], name)
            if other != name:
                raise UserError(f"{path} has the same config and seed as {other}: keep one")
        found[kinds[0]][name] = content
    return found


def headline(system: str, measured: Iterable[str], paper: Iterable[str] = ()) -> list[str]:
    """Metrics to show: those of the paper, then those of HEADLINE that were measured."""
    named = about.metrics_of(names.config_module(system).HEADLINE)
    wanted = [*paper, *(name for name in named if name in set(measured))]
    return list(dict.fromkeys(wanted))


def system_of(run: Run) -> str:
    """Bare name of the system of one run of a check; files of old name a path."""
    words = re.search(r"--config=(?:\S*/)?(\w+)", run["command"])
    return words[1] if words else ""


def today(command: str) -> str:
    """The command as one types it today: systems were once named by the path of a config file."""
    return re.sub(r"--config=\S*?/(\w+)\.py(:\w+)?", r"--config=\1\2", command)


def grouped(runs: Iterable[Run]) -> dict[tuple[str, str, int], list[Run]]:
    """Runs by (system, variant, steps): members of a group are seeds of one row."""
    groups: dict[tuple[str, str, int], list[Run]] = {}
    for run in runs:
        groups.setdefault((run["system"], run["variant"], run["step"]), []).append(run)
    return dict(sorted(groups.items()))


def members_of(found: Found, source: str, condition: str = "") -> list[Run]:
    """Runs behind a number: `source` is SYSTEM:VARIANT, or the file of a check with a condition.

    Raises:
        UserError: no such file, condition or run.
    """
    if source in found["checks"]:
        conditions = found["checks"][source]["conditions"]
        if condition not in conditions:
            raise UserError(f"{source} has no condition {condition!r}: {', '.join(conditions)}")
        return conditions[condition]["runs"]
    groups = grouped(found["results"].values())
    runs = [
        run for key, members in groups.items() if f"{key[0]}:{key[1]}" == source for run in members
    ]
    if not runs:
        raise UserError(f"no result file holds {source!r}")
    return runs


def ours(runs: Sequence[Run], metric: str, form: Callable[[Any], str] = number) -> str:
    """Mean ± sample deviation over seeds, or over the splits that one run holds."""
    values = seeds_of(runs, metric)
    deviation = spread(values)
    mean = fmean(values)
    text = form(mean) if math.isnan(deviation) else f"{form(mean)} ± {form(deviation)}"
    of_splits = runs[0]["metrics"].get(f"{metric}/std") if len(runs) == 1 else None
    if of_splits is not None:
        return f"{text} ± {form(of_splits)} (its splits)"
    return f"{text} ({count(len(values), over(runs))})"
