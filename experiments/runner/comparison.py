# SPDX-License-Identifier: Apache-2.0
"""Statistics over seeds and over queries: groups of runs, bootstrap intervals, differences."""

import math
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.runner import settings
from experiments.runner.errors import UserError
from experiments.runner.folder import read_json
from experiments.runner.writer import read_metrics

CHUNK = 1 << 22  # indices drawn at a time

Seed = tuple[int, int]
"""(seed of the run, index among the seeds trained side by side)."""


def _resampled_means(values: np.ndarray, num_resamples: int, generator: Any) -> np.ndarray:
    """Means of resamples with replacement, [num_resamples]."""
    rows = max(1, CHUNK // values.size)
    parts = []
    for start in range(0, num_resamples, rows):
        shape = (min(rows, num_resamples - start), values.size)
        parts.append(values[generator.integers(values.size, size=shape)].mean(axis=1))
    return np.concatenate(parts)


def _quantiles(means: np.ndarray, level: float) -> tuple[float, float]:
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bootstrap_interval(
    values: Sequence[float | int] | np.ndarray,
    num_resamples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of independent values, one per seed.

    The same values give the same interval (Philox). (nan, nan) for fewer than two values, which
    say nothing of their spread, and where a value is not finite.
    """
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or not 0 < level < 1 or num_resamples < 1:
        raise ValueError(
            f"need values [n], level in (0, 1) and resamples >= 1, not {array.shape}, {level}, "
            f"{num_resamples}"
        )
    if array.size < 2 or not np.isfinite(array).all():
        return math.nan, math.nan
    generator = np.random.Generator(np.random.Philox(key=seed))
    return _quantiles(_resampled_means(array, num_resamples, generator), level)


def spread(values: Sequence[float | int] | np.ndarray) -> float:
    """Sample standard deviation; nan for one value, 0 for equal ones."""
    array = np.asarray(values, np.float64)
    if array.size < 2:
        return math.nan
    return float(array.std(ddof=1)) if np.ptp(array) else 0.0  # a mean of equal ones may be off


class Summary(NamedTuple):
    """Mean, spread and interval of one metric in one group."""

    mean: float
    std: float
    n: int
    low: float
    high: float

    def text(self, number: Callable[[Any], str]) -> str:
        tail = "" if math.isnan(self.std) else f" ± {number(self.std)}"
        return number(self.mean) + tail


def summarize(values: Sequence[float | int]) -> Summary:
    """Mean, spread and bootstrap interval over seeds."""
    array = np.asarray(values, np.float64)
    return Summary(float(array.mean()), spread(array), array.size, *bootstrap_interval(array))


class Difference(NamedTuple):
    """second - first, of means over seeds."""

    mean: float
    low: float
    high: float
    paired: bool


def difference(
    first: Mapping[Seed, float],
    second: Mapping[Seed, float],
    num_resamples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> Difference:
    """Difference of means with its interval.

    Where both have the same seeds, the differences by seed are resampled; else both sides are,
    independently. (nan, nan) as in `bootstrap_interval`.
    """
    a = np.array(list(first.values()), np.float64)
    b = np.array(list(second.values()), np.float64)
    mean = float(b.mean() - a.mean())
    if first.keys() == second.keys():
        gaps = [second[key] - first[key] for key in sorted(first)]
        return Difference(mean, *bootstrap_interval(gaps, num_resamples, level, seed), True)
    if min(a.size, b.size) < 2 or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return Difference(mean, math.nan, math.nan, False)
    generator = np.random.Generator(np.random.Philox(key=seed))
    means = _resampled_means(b, num_resamples, generator) - _resampled_means(
        a, num_resamples, generator
    )
    return Difference(mean, *_quantiles(means, level), False)


def read_ranks(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads a ranks.npz: (queries [Q], ranks int [Q] of their targets, 0 the best).

    Raises:
        UserError: the file is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            queries = arrays["queries"]
            ranks = arrays["ranks"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged: {error}") from error
    is_whole = ranks.ndim == 1 and queries.shape == ranks.shape
    if not is_whole or ranks.dtype.kind not in "iu" or (ranks < 0).any():
        raise UserError(f"{path} is damaged: queries [Q] and integer ranks [Q] >= 0 were expected")
    return queries, ranks


def rank_metrics(ranks: np.ndarray) -> dict[str, np.ndarray]:
    """Metrics of each query, float [Q], from the rank of its one target."""
    place = np.asarray(ranks, np.float64)
    is_listed = place < 10
    return {
        "recall@10": is_listed.astype(np.float64),
        "ndcg@10": np.where(is_listed, 1 / np.log2(place + 2), 0.0),
        "mrr": 1 / (place + 1),
    }


def rank_differences(
    first: Path, second: Path, num_resamples: int = 2_000
) -> dict[str, Difference] | None:
    """Differences second - first with intervals over the queries of two ranks.npz.

    Queries are resampled in pairs: each keeps both its ranks. None where the queries differ.
    """
    queries, ranks = read_ranks(first)
    other_queries, other_ranks = read_ranks(second)
    if not np.array_equal(queries, other_queries):
        return None
    ours = rank_metrics(ranks)
    theirs = rank_metrics(other_ranks)
    out = {}
    for metric in ours:
        gaps = theirs[metric] - ours[metric]
        interval = bootstrap_interval(gaps, num_resamples)
        out[metric] = Difference(float(gaps.mean()), *interval, True)
    return out


class Group(NamedTuple):
    """Runs that differ in their seed only."""

    label: str
    config: dict[str, Any]  # without the seed
    seeds: list[int]
    folders: list[Path]
    values: dict[str, dict[Seed, float]]
    records: list[list[dict[str, Any]]]


def _letter(index: int) -> str:
    """A, B, ..., Z, AA: a short name for tables of differences."""
    head = _letter(index // 26 - 1) if index >= 26 else ""
    return head + chr(ord("A") + index % 26)


def load_groups(workdirs: Sequence[str | Path]) -> tuple[list[Group], list[str]]:
    """Groups in the order given, and remarks on runs left out.

    Two finished runs are pooled if system, variant, config (but for the seed) and number of steps
    agree. A second run of a seed adds no evidence and is left out.

    Raises:
        UserError: no folder at all, no finished run, or a damaged file.
    """
    folders = list(dict.fromkeys(Path(w).resolve() for w in workdirs))
    if not folders:
        raise UserError("no run folder given: --mode=report DIR [DIR ...]")
    found: dict[tuple[str, str, str, int], Group] = {}
    remarks = []
    for workdir in folders:
        config = read_json(workdir / "config.json")
        results = read_json(workdir / "results.json")
        for name in ("metrics", "system", "variant", "seed", "step"):
            if name not in results:
                raise UserError(f"{workdir / 'results.json'} is damaged: {name!r} is missing")
        config.pop("seed", None)
        hashed = settings.config_hash(config)
        key = (results["system"], results["variant"], hashed, results["step"])
        if key not in found:
            label = f"{_letter(len(found))} {key[0]}:{key[1]} {hashed[:6]}, {key[3]:,} steps"
            found[key] = Group(label, config, [], [], {}, [])
        group = found[key]
        seed = results["seed"]
        if seed in group.seeds:
            same_seed = group.folders[group.seeds.index(seed)]
            remarks.append(f"left out: {workdir} repeats seed {seed} of {same_seed}")
            continue
        group.seeds.append(seed)
        group.folders.append(workdir)
        log = workdir / "metrics.jsonl"
        group.records.append(read_metrics(log) if log.exists() else [])
        for metric, value in results["metrics"].items():
            each = results.get("per_seed", {}).get(metric) or [value]
            for index, x in enumerate(each):
                group.values.setdefault(metric, {})[seed, index] = float(x)
    return list(found.values()), remarks
