# SPDX-License-Identifier: Apache-2.0
"""What a bench consists of, and how its rows are timed and printed.

A bench is a module of experiments/benches with `cases() -> Iterable[Case | Missing]` and
`ratios(rows) -> {name: number}`. Every case is called once to compile, then all cases are called in
turn, `repeats` times, so that a busy machine slows them alike.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

LATENCY_SECONDS = 0.3  # of calls of a latency in a repeat
COLUMNS = ("row", "envs", "steps_per_s", "spread", "first_call_s", "repeats")  # of every row


class Case(NamedTuple):
    """One row: `run` does `work` steps and returns when the device is done with them."""

    row: str
    envs: int
    work: float
    run: Callable[[int], None]  # takes the index of the repeat, blocks until done
    columns: Mapping[str, Any] = MappingProxyType({})  # more of its row, known beforehand
    is_latency: bool = False  # calls are timed one by one: also says how long a step takes


class Missing(NamedTuple):
    """A row that cannot be measured here."""

    row: str
    reason: str


def measure(cases: Iterable[Case | Missing], repeats: int) -> tuple[list[dict], dict[str, str]]:
    """Rows and reasons of what was not measured; interleaved repeats after one warm-up call."""
    ready: list[tuple[Case, float]] = []
    missing: dict[str, str] = {}
    for case in cases:
        if isinstance(case, Missing):
            missing[case.row] = case.reason
            print(f"not measured: {case.row}: {case.reason}", flush=True)
            continue
        began = time.perf_counter()
        case.run(0)
        ready.append((case, time.perf_counter() - began))
        print(f"compiled {case.row} in {ready[-1][1]:.1f} s", flush=True)
    rates: list[list[float]] = [[] for _ in ready]
    for repeat in range(1, repeats + 1):
        for (case, _), found in zip(ready, rates, strict=True):
            if case.is_latency:
                case.run(repeat)  # caches and heap as the row before left them are not its cost
            ends = time.perf_counter() + LATENCY_SECONDS
            while True:
                began = time.perf_counter()
                case.run(repeat)
                now = time.perf_counter()
                found.append(case.work / (now - began))
                if not case.is_latency or now >= ends:
                    break
    rows = []
    for (case, first), found in zip(ready, rates, strict=True):
        low, median, high = np.percentile(found, (25, 50, 75))
        rows.append(
            {
                "row": case.row,
                "envs": case.envs,
                "steps_per_s": float(median),
                "spread": float((high - low) / median),
                "first_call_s": round(first, 3),
                "repeats": repeats,
                **case.columns,
            }
        )
        if case.is_latency:
            slowest = float(np.percentile(found, 5))  # of rates: the 95th percentile of times
            rows[-1] |= {
                "p50_ms": 1e3 / float(median),
                "p95_ms": 1e3 / slowest,
                "users_per_s": float(median) * case.envs,
            }
        if "flop" in case.columns:
            rows[-1]["tflops"] = float(median) * case.columns["flop"] / 1e12
    return rows, missing


def table(result: Mapping[str, Any]) -> str:
    """Text of a result, ratios first."""
    lines = [f"bench {result['bench']} on {result['device']}, commit {result['commit']}", ""]
    lines += [f"{value:10.3f}  {name}" for name, value in result["ratios"].items()]
    lines += ["", f"{'steps/s':>12}  {'spread':>6}  {'first call':>10}  row"]
    for row in result["rows"]:
        name = f"{row['row']}@{row['envs']}" if row["envs"] else row["row"]
        rate = row["steps_per_s"]
        spread = row["spread"]
        first = row["first_call_s"]
        lines.append(f"{rate:12.4g}  {spread:6.1%}  {first:8.1f} s  {name}")
        more = [(k, row[k]) for k in row if k not in COLUMNS]
        if more:
            lines.append(" " * 34 + ", ".join(f"{k} {_short(v)}" for k, v in more))
    if result.get("peak_rss_mb"):
        lines += ["", f"peak memory of this process {result['peak_rss_mb']:.0f} MB"]
    lines += [f"not measured: {k}: {v}" for k, v in result["not_measured"].items()]
    return "\n".join(lines)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else str(value)
