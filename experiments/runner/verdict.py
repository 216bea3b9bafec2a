# SPDX-License-Identifier: Apache-2.0
"""Words made from numbers: a metric beside the best row that needs no training. Imports no JAX."""

import functools
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from experiments.runner.about import Headline
from experiments.runner.comparison import Difference, difference, spread
from experiments.runner.errors import UserError
from experiments.runner.pages import number

Run = Mapping[str, Any]
"""One run: `metrics` and perhaps `per_seed`."""
MAX_LINES = 12  # of an end block
ENDS = ("low", "high")  # of a stored interval


def seeds_of(runs: Sequence[Run], name: str) -> list[float]:
    """One value per seed, of runs with one seed and runs with several side by side."""
    values: list[float] = []
    for run in runs:
        values += run.get("per_seed", {}).get(name, [run["metrics"][name]])
    return values


def brief(value: float, sign: bool = False) -> str:
    """Three decimals without a leading zero: .413, or +.413 with a sign. What three decimals would
    show as zero has one digit: .0002, 4e-07."""
    is_hidden = value != 0 and abs(value) < 5e-4
    kind = ".1g" if is_hidden else ".3f"
    text = f"{value:+{kind}}" if sign else f"{value:{kind}}"
    return re.sub(r"^([+-]?)0\.", r"\1.", text)


def over(runs: Sequence[Run]) -> str:
    """What several runs of a condition differ in: the split of the data, or the seed alone."""
    splits = {re.search(r"--config\.data\.index=\S+", run.get("command", "")) for run in runs}
    return "split" if len(runs) > 1 and None not in splits else "seed"


def count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def beside_seeds(runs: Sequence[Run], metric: str, reference: str) -> list[float]:
    """One value of `reference` for each seed of `metric`; counts that no seed changes are stored
    once for the seeds trained side by side."""
    values: list[float] = []
    for run in runs:
        ours = seeds_of([run], metric)
        theirs = seeds_of([run], reference)
        values += theirs * len(ours) if len(theirs) == 1 else theirs
    return values


def name_of(reference: str) -> str:
    """What a reader calls a reference: "katz" of katz/test/auc, "bigram" of valid/loss/bigram."""
    first = reference.partition("/")[0]
    return reference.rpartition("/")[2] if first in ("valid", "test", "lengths") else first


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
        if self.gap == 0 or self.low <= 0 <= self.high:
            return "no difference"
        above = self.gap > 0
        word = "above" if above else "below"
        if better == "lower":
            return f"{word} (better)" if not above else f"{word.upper()} (worse)"
        return word if above else word.upper()

    def sentence(self, better: str) -> str:
        """Says by how much it is above or below the row of that name: "below katz by .01"."""
        name = name_of(self.reference)
        word = self.word(better)
        if word == "no difference" and math.isnan(self.low):
            return f"no difference seen from {name}{self._no_interval()}"
        if word == "no difference":
            return f"no difference seen from {name}: {self._span(self.gap)} {self.over}"
        place, _, judged = word.lower().partition(" ")
        text = f"{place} {name} by {brief(abs(self.gap))}" + (f" {judged}" if judged else "")
        if math.isnan(self.low):
            return text + self._no_interval()
        low, high = sorted((abs(self.low), abs(self.high)))
        return f"{text} [{brief(low)}, {brief(high)}] {self.over}"

    def _span(self, value: float) -> str:
        return f"{brief(value, sign=True)} [{brief(self.low)}, {brief(self.high)}]"

    def _no_interval(self) -> str:
        alone = self.over.startswith("over 1 ")
        return "; one seed, no interval" if alone else f"; {self.over}, no interval"

    def verdict(self, better: str) -> str:
        """The word, by how much, and within which interval."""
        if math.isnan(self.low):
            by = f" by {brief(abs(self.gap))}" if self.gap else ""
            return f"{self.word(better)}{by}{self._no_interval()}"
        return f"{self.word(better)}: {self._span(self.gap)} {self.over}"


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
    by_seed = _by_seed(tuple(beside_seeds(runs, metric, best)), tuple(seeds_of(runs, metric)))
    stored = f"{metric}/minus_{best.partition('/')[0]}"
    ends = [run["metrics"].get(f"{stored}/{end}", math.nan) for run in runs for end in ENDS]
    if all(map(math.isfinite, ends)):
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


class Judged(NamedTuple):
    """A headline metric of one run in words; empty texts where nothing stands beside it."""

    entry: Headline
    value: str
    """Mean, ± deviation over seeds side by side; "not measured" where the run lacks it."""
    reference: str
    """Best row that needs no training: its key and its value."""
    sentence: str
    """Above, below or no difference, by how much."""


def judge(results: Run, entry: Headline) -> Judged:
    """Puts one headline metric of results.json in words."""
    metrics = results.get("metrics", {})
    if entry.metric not in metrics:
        return Judged(entry, "not measured", "", "")
    values = seeds_of([results], entry.metric)
    value = number(metrics[entry.metric])
    if len(values) > 1:
        value += f" ± {number(spread(values))}"
    if not math.isfinite(metrics[entry.metric]):
        return Judged(entry, value, "", "not a finite number: no verdict")
    measured = [n for n in entry.references if math.isfinite(metrics.get(n, math.nan))]
    if not measured:
        return Judged(entry, value, "", "")
    beside = compare([results], entry.metric, measured, entry.better)
    reference = f"{beside.reference} {number(beside.value)}"
    return Judged(entry, value, reference, beside.sentence(entry.better))


def end_block(results: Run, headline: Sequence[Headline], workdir: Path) -> str:
    """What is printed at the end of a run: headline metrics with their verdicts, or the first
    metrics where there is no headline."""
    metrics = results["metrics"]
    lines = [f"results of {workdir}"]
    shown = [judge(results, entry) for entry in headline if entry.metric in metrics]
    for judged in shown[:MAX_LINES]:
        beside = f"   best without training: {judged.reference}" if judged.reference else ""
        verdict = f"   {judged.sentence}" if judged.sentence else ""
        lines.append(f"  {judged.entry.metric} = {judged.value}{beside}{verdict}")
    if not shown:
        lines += [f"  {name} = {number(metrics[name])}" for name in sorted(metrics)[:MAX_LINES]]
    rest = len(metrics) - min(MAX_LINES, len(shown) or len(metrics))
    if rest:
        lines.append(f"  {rest} more: {workdir}/results.json")
    lines.append(f"report: {workdir}/report.html")
    if results.get("variant") == "tiny":
        lines.append("tiny: shows that it runs; its numbers mean nothing")
    return "\n".join(lines)
