# SPDX-License-Identifier: Apache-2.0
"""Tables of what result files hold: runs, learning checks, benches, compiled programs, draws."""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from experiments.runner.comparison import spread
from experiments.runner.pages import Cell, Table, markdown, markdown_table, number
from experiments.runner.result_files import grouped, headline, ours, system_of, today
from experiments.runner.verdict import Run
from experiments.runner.writer import short


def _paper_cell(value: Any) -> Cell:
    if isinstance(value, list | tuple):  # (mean, std)
        return Cell(" ± ".join(number(x) for x in value))
    return Cell("" if value is None else number(value))


def _joined(values: Iterable[Any]) -> Cell:
    return Cell(", ".join(sorted({str(v) for v in values})))


def runs_table(runs: Iterable[Run]) -> Table:
    """System and metric by row; ours is mean ± sample standard deviation over seeds."""
    rows = []
    for (system, variant, step), members in grouped(runs).items():
        paper = dict(members[0].get("paper", {}))
        paper.pop("source", None)
        for name in headline(system, members[0]["metrics"], paper):
            measured = all(name in run["metrics"] for run in members)
            wall = sum(run["wall_s"] for run in members) / len(members)
            rows.append(
                [
                    Cell(f"{system}:{variant}"),
                    Cell(name),
                    _paper_cell(paper.get(name)),
                    Cell(ours(members, name) if measured else "not measured"),
                    Cell(f"{step:,}"),
                    Cell(short(wall)),
                    _joined(run["device"] for run in members),
                    _joined(run["commit"] for run in members),
                ]
            )
    head = ("config", "metric", "paper", "ours", "steps", "wall time", "device", "commit")
    return Table(head, rows)


def check_text(check: Mapping[str, Any]) -> str:
    """One slow test: its criterion, mean ± std over seeds, and the command of every condition.

    The table has whichever is less as columns: conditions or metrics.
    """
    conditions = check["conditions"]
    metrics: list[str] = []
    for result in conditions.values():
        run = result["runs"][0]
        shown = headline(system_of(run), run["metrics"])
        metrics += [name for name in shown if name not in metrics]
    columns = {}
    for condition, result in conditions.items():
        runs = result["runs"]
        wall = sum(run["wall_s"] for run in runs) / len(runs)
        cells = [measured(name, [run["metrics"] for run in runs]) for name in metrics]
        columns[condition] = [str(len(runs)), *cells, short(wall)]
    names = ("seeds", *metrics, "wall time of a run")
    if len(conditions) <= 4 < len(metrics):
        head = ("", *conditions)
        rows = [[name, *(columns[c][i] for c in conditions)] for i, name in enumerate(names)]
    else:
        head = ("condition", *names)
        rows = [[condition, *columns[condition]] for condition in conditions]
    table = Table(head, [[Cell(text) for text in row] for row in rows])
    title = f"**{markdown(check['check'])}** on {check['device']}, commit {check['commit']}"
    return (
        f"{title}: {markdown(check['criterion'])}\n\n{markdown_table(table)}\n"
        f"{check_commands(check)}"
    )


def check_commands(check: Mapping[str, Any]) -> str:
    """The command of every condition of a slow test, a line each."""
    return "".join(
        f"    {today(result['runs'][0]['command'])}{_others(result['runs'])}\n"
        for result in check["conditions"].values()
    )


def _others(runs: Sequence[Run]) -> str:
    return f"  # and {len(runs) - 1} more" if len(runs) > 1 else ""


def measured(name: str, runs: Sequence[Mapping[str, float]]) -> str:
    """Mean ± deviation over runs, or of one run its own deviation over splits, <name>/std."""
    with_it = [run for run in runs if name in run]
    if not with_it:
        return "not measured"
    deviation = spread([run[name] for run in with_it])
    if len(runs) == 1:
        deviation = runs[0].get(f"{name}/std", deviation)
    mean = number(fmean(run[name] for run in with_it))
    return mean if math.isnan(deviation) else f"{mean} ± {number(deviation)}"


def bench_text(bench: Mapping[str, Any]) -> str:
    """Ratios first, then rates, then what was not measured and why."""
    versions = bench["versions"]
    lines = [
        f"**{bench['bench']}** on {bench['device']}, jax {versions['jax']}, Python "
        f"{versions['python']}, commit {bench['commit']}\n"
    ]
    ratios = [[Cell(name), Cell(f"{value:.3g}")] for name, value in bench["ratios"].items()]
    if ratios:
        lines.append(markdown_table(Table(("against", "ratio"), ratios)))
    rates = []
    for row in bench["rows"]:
        name = f"{row['row']}@{row['envs']}" if row["envs"] else row["row"]
        rate = f"{row['steps_per_s']:,.0f}" if row["steps_per_s"] >= 1e3 else None
        rates.append(
            [
                Cell(name),
                Cell(rate or f"{row['steps_per_s']:.4g}"),
                Cell(f"{row['spread']:.1%}"),
                Cell(f"{row['first_call_s']:.1f} s"),
            ]
        )
    for name, reason in bench["not_measured"].items():
        rates.append([Cell(name), Cell("not measured"), Cell(""), Cell(reason)])
    lines.append(markdown_table(Table(("row", "steps / s", "spread", "first call"), rates)))
    return "\n".join(lines)


def shortcuts_table(counts: Mapping[str, Mapping[str, Any]]) -> Table:
    """Share of trees with a shortcut, by kind of tree and depth."""
    depths = sorted({depth for count in counts.values() for depth in count["shortcuts"]})
    rows = []
    for count in counts.values():
        shares = [
            Cell(f"{count['shortcuts'][depth] / count['trees']:.1%}")
            if depth in count["shortcuts"]
            else Cell("not measured")
            for depth in depths
        ]
        rows.append([Cell(count["topology"]), Cell(f"{count['trees']:,}"), *shares])
    return Table(("topology", "trees per depth", *(f"depth {depth}" for depth in depths)), rows)


def compiles_text(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Programs compiled ahead of time for TPUs, and how their memory grows with length."""
    rows = []
    lines = []
    for result in results.values():
        for one in result["compiled"]:
            rows.append(
                [
                    Cell(one["chip"]),
                    Cell("forward + backward" if one["backward"] else "forward"),
                    Cell(f"{one['T']:,}"),
                    Cell(str(one["D"])),
                    Cell(f"{one['block_q']} x {one['block_kv']}"),
                    Cell("yes" if one["within_vmem"] else "no"),
                    Cell(f"{one['temporary_bytes'] / 2**20:,.0f} MiB"),
                ]
            )
        memory = result["memory"]
        dense = memory["dense"]
        lines.append(
            f"\nTemporary bytes of forward + backward on {memory['chip']} from T="
            f"{' to '.join(f'{t:,}' for t in memory['T'])} grow by "
            f"{', '.join(f'{g:.2f}' for g in memory['growth'])}; the dense control from "
            f"{' to '.join(f'{t:,}' for t in dense['T'])} by {dense['growth'][0]:.2f}. "
            f"jax {result['versions']['jax']}, libtpu {result['versions']['libtpu']}.\n"
        )
    head = ("chip", "program", "T", "D", "tile", "within VMEM", "temporary")
    return markdown_table(Table(head, rows)) + "".join(lines) if rows else ""


def jitter_text(result: Mapping[str, Any]) -> str:
    """One row per figure of a test: its bound, the value nearest to it under all draws, flips."""
    rows = []
    for name, test in result["tests"].items():
        figures = test["figures"] or {"the same bits": None}
        for text, figure in figures.items():
            worst = "" if figure is None else f"{figure['worst']:.3g}"
            flips = f"{test['flips']} of {result['draws']}"
            cells = (name.removeprefix("tests/"), str(test["cases"]), text, worst, flips)
            rows.append([Cell(cell) for cell in cells])
    head = ("test", "cases", "asserts", "nearest of all draws", "draws that fail")
    title = f"{result['jitter'].capitalize()}; {result['device']}, commit {result['commit']}.\n\n"
    return title + markdown_table(Table(head, rows))
