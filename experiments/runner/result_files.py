# SPDX-License-Identifier: Apache-2.0
"""Reads the files of experiments/results: runs, learning checks, benches, counts, draws.

Three writers leave them: the runner (results.json, alone or in a run folder), experiments/bench.py
and the slow tests. What the pages and plots show comes from here and from nowhere else.
"""

import functools
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from experiments.runner import names
from experiments.runner.comparison import Difference, difference, spread
from experiments.runner.errors import UserError
from experiments.runner.pages import number

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
Run = Mapping[str, Any]
"""One run: `metrics` and perhaps `per_seed`."""


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
    named: list[str] = []
    for entry in getattr(names.config_module(system), "HEADLINE", ()):
        named += [entry] if isinstance(entry, str) else [entry.metric, *entry.references]
    wanted = [*paper, *(name for name in named if name in set(measured))]
    return list(dict.fromkeys(wanted))


def seeds_of(runs: Sequence[Run], name: str) -> list[float]:
    """One value per seed, of runs with one seed and runs with several side by side."""
    values: list[float] = []
    for run in runs:
        values += run.get("per_seed", {}).get(name, [run["metrics"][name]])
    return values


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


def brief(value: float, sign: bool = False) -> str:
    """Three decimals without a leading zero: .413, or +.413 with a sign."""
    text = f"{value:+.3f}" if sign else f"{value:.3f}"
    return re.sub(r"^([+-]?)0\.", r"\1.", text)


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


def over(runs: Sequence[Run]) -> str:
    """What several runs of a condition differ in: the split of the data, or the seed alone."""
    splits = {re.search(r"--config\.data\.index=\S+", run.get("command", "")) for run in runs}
    return "split" if len(runs) > 1 and None not in splits else "seed"


def count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


class Compared(NamedTuple):
    """A metric beside the best row that trains nothing."""

    reference: str
    """Key of that row's metric."""
    value: float
    """Its mean."""
    gap: float
    """Ours minus the reference."""
    low: float
    high: float
    """95 % interval of the gap; nan where nothing tells it."""
    over: str
    """What the interval is over."""

    def word(self, better: str) -> str:
        """Says above, below or no difference; where that is a loss, in capitals."""
        if self.low <= 0 <= self.high:
            return "no difference"
        above = self.gap > 0
        word = "above" if above else "below"
        if better == "lower":
            return f"{word} (better)" if not above else f"{word.upper()} (worse)"
        return word if above else word.upper()

    def verdict(self, better: str) -> str:
        """The word, by how much, and within which interval."""
        if math.isnan(self.low):
            return f"{self.word(better)} by {brief(abs(self.gap))}; one seed, no interval"
        span = f"[{brief(self.low)}, {brief(self.high)}]"
        return f"{self.word(better)}: {brief(self.gap, sign=True)} {span} {self.over}"


@functools.cache  # several pages show the same verdict
def _by_seed(reference: tuple[float, ...], values: tuple[float, ...]) -> Difference:
    """Difference of values with the same position, resampled."""
    return difference(
        {(index, 0): value for index, value in enumerate(reference)},
        {(index, 0): value for index, value in enumerate(values)},
    )


def compare(runs: Sequence[Run], metric: str, references: Sequence[str], better: str) -> Compared:
    """Compares a metric with the best of `references`, in the same runs.

    The stored paired interval over queries (`<metric>/minus_<name>/low`) is shown where the runs
    hold one, the widest of all seeds; else the differences by seed are resampled.

    Raises:
        UserError: no run holds any of the references.
    """
    means = {
        name: fmean(seeds_of(runs, name))
        for name in references
        if all(name in run["metrics"] for run in runs)
    }
    if not means:
        raise UserError(f"none of {', '.join(references)} was measured beside {metric}")
    best = (max if better == "higher" else min)(means, key=lambda name: means[name])
    n = len(seeds_of(runs, metric))
    by_seed = _by_seed(tuple(seeds_of(runs, best)), tuple(seeds_of(runs, metric)))
    stored = f"{metric}/minus_{best.partition('/')[0]}"
    if all(f"{stored}/low" in run["metrics"] for run in runs):
        low = min(run["metrics"][f"{stored}/low"] for run in runs)
        high = max(run["metrics"][f"{stored}/high"] for run in runs)
        return Compared(best, means[best], by_seed.mean, low, high, "over users")
    return Compared(
        best,
        means[best],
        by_seed.mean,
        by_seed.low,
        by_seed.high,
        f"over {count(n, over(runs))}",
    )
