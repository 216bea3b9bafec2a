# SPDX-License-Identifier: Apache-2.0
"""README's tables, made from the files in experiments/results.

    python experiments/tables.py            rewrite README.md
    python experiments/tables.py --check    exit code 1 if that would change it

Three kinds of files are read: results.json of runs (`<any name>.json`, or results.json in a folder
of its own), tables of experiments/bench.py and what the slow tests leave. Each kind fills one
block of README, between the comments `<!-- NAME:begin -->` and `<!-- NAME:end -->`, with NAME one
of `BLOCKS`. Runs of the same system, variant and length are seeds of one row. Of each system the
metrics with a number of the paper are shown, then those its config module names in `HEADLINE`.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if __package__ in (None, ""):  # run as a script: the checkout, not this folder, is the root
    sys.path[0:0] = [str(ROOT)]

from experiments.runner import names  # noqa: E402
from experiments.runner.comparison import summarize  # noqa: E402
from experiments.runner.errors import UserError  # noqa: E402
from experiments.runner.pages import Cell, Table, markdown, markdown_table, number  # noqa: E402
from experiments.runner.writer import short  # noqa: E402

RESULTS = ROOT / "experiments" / "results"
README = ROOT / "README.md"
# kind -> key that tells it
KINDS = {
    "results": "metrics",
    "checks": "check",
    "benches": "bench",
    "shortcuts": "shortcuts",
    "compiles": "compiled",
    "jitter": "jitter",
}
BLOCKS = tuple(KINDS)
COMMAND = {
    "results": "python experiments/run.py --config=SYSTEM:VARIANT",
    "checks": "pytest -m slow",
    "benches": "python experiments/bench.py NAME --json=experiments/results/FILE.json",
    "jitter": "pytest -m slow tests/jitter_test.py",
    "compiles": "python -m attention.tpu_aot --json=experiments/results/FILE.json",
    "shortcuts": "python -m banyan.oracle_check --shortcuts --json=experiments/results/FILE.json",
}
Found = dict[str, dict[str, dict[str, Any]]]
"""kind -> {path under the folder: content}, sorted by path."""


def read(results: Path = RESULTS) -> Found:
    """All result files.

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
    named = getattr(names.config_module(system), "HEADLINE", ())
    wanted = [*paper, *(name for name in named if name in set(measured))]
    return list(dict.fromkeys(wanted))


def _paper_cell(value: Any) -> Cell:
    if isinstance(value, list | tuple):  # (mean, std)
        return Cell(" ± ".join(number(x) for x in value))
    return Cell("" if value is None else number(value))


def _joined(values: Iterable[Any]) -> Cell:
    return Cell(", ".join(sorted({str(v) for v in values})))


def seeds_of(runs: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    """One value per seed, of runs with one seed and runs with several side by side."""
    values: list[float] = []
    for run in runs:
        values += run.get("per_seed", {}).get(name, [run["metrics"][name]])
    return values


def runs_table(runs: Mapping[str, Mapping[str, Any]]) -> Table:
    """System and metric by row; ours is mean ± sample standard deviation over seeds."""
    groups: dict[tuple[str, str, int], list[Mapping[str, Any]]] = {}
    for run in runs.values():
        groups.setdefault((run["system"], run["variant"], run["step"]), []).append(run)
    rows = []
    for (system, variant, step), members in sorted(groups.items()):
        paper = dict(members[0].get("paper", {}))
        paper.pop("source", None)
        for name in headline(system, members[0]["metrics"], paper):
            ours = Cell("not measured")
            if all(name in run["metrics"] for run in members):
                values = seeds_of(members, name)
                plural = "seed" if len(values) == 1 else "seeds"
                ours = Cell(f"{summarize(values).text(number)} ({len(values)} {plural})")
            wall = sum(run["wall_s"] for run in members) / len(members)
            rows.append(
                [
                    Cell(f"{system}:{variant}"),
                    Cell(name),
                    _paper_cell(paper.get(name)),
                    ours,
                    Cell(f"{step:,}"),
                    Cell(short(wall)),
                    _joined(run["device"] for run in members),
                    _joined(run["commit"] for run in members),
                ]
            )
    head = ("config", "metric", "paper", "ours", "steps", "wall time", "device", "commit")
    return Table(head, rows)


def check_text(check: Mapping[str, Any]) -> str:
    """One slow test: its criterion, and a row per condition with mean ± std over seeds."""
    names: list[str] = []
    for result in check["conditions"].values():
        run = result["runs"][0]
        system = re.search(r"--config=(?:\S*/)?(\w+)", run["command"])  # a name, once a path
        shown = headline(system[1], run["metrics"]) if system else []
        names += [name for name in shown if name not in names]
    rows = []
    for condition, result in check["conditions"].items():
        runs = result["runs"]
        cells = [Cell(condition), Cell(str(len(runs)))]
        for name in names:
            cells.append(Cell(_measured(name, [run["metrics"] for run in runs])))
        wall = sum(run["wall_s"] for run in runs) / len(runs)
        rows.append([*cells, Cell(short(wall))])
    head = ("condition", "seeds", *names, "wall time of a run")
    title = f"**{markdown(check['check'])}** on {check['device']}, commit {check['commit']}"
    return f"{title}: {markdown(check['criterion'])}\n\n{markdown_table(Table(head, rows))}"


def _measured(name: str, runs: Sequence[Mapping[str, float]]) -> str:
    """Mean ± deviation over runs, or of one run its own deviation over splits, <name>/std."""
    values = [run[name] for run in runs if name in run]
    if not values:
        return "not measured"
    spread = runs[0].get(f"{name}/std") if len(runs) == 1 else None
    own = summarize(values).text(number)
    return own if spread is None else f"{own} ± {number(spread)}"


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


def blocks(found: Found) -> dict[str, str]:
    """Text of every block of README."""
    runs = runs_table(found["results"])
    shortcuts = shortcuts_table(found["shortcuts"])
    texts = {
        "results": markdown_table(runs) if runs.rows else "",
        "checks": "\n".join(check_text(check) for check in found["checks"].values()),
        "benches": "\n".join(bench_text(bench) for bench in found["benches"].values()),
        "compiles": compiles_text(found["compiles"]),
        "jitter": "\n".join(jitter_text(result) for result in found["jitter"].values()),
        "shortcuts": markdown_table(shortcuts) if shortcuts.rows else "",
    }
    return {kind: text or f"Not measured yet: `{COMMAND[kind]}`\n" for kind, text in texts.items()}


def fill(readme: str, texts: Mapping[str, str]) -> str:
    """README with its blocks replaced.

    Raises:
        UserError: a block is missing or there twice.
    """
    for name, text in texts.items():
        begin = f"<!-- {name}:begin -->\n"
        end = f"<!-- {name}:end -->\n"
        if readme.count(begin) != 1 or readme.count(end) != 1:
            raise UserError(f"README.md needs one block {begin.strip()} ... {end.strip()}")
        before, rest = readme.split(begin)
        after = rest.split(end)
        if len(after) != 2:
            raise UserError(f"README.md: {end.strip()} comes before {begin.strip()}")
        readme = f"{before}{begin}{text}{end}{after[1]}"
    return readme


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing, compare")
    args = parser.parse_args(argv)
    try:
        if not README.is_file():
            raise UserError(f"no {README}: the tables belong to a checkout")
        before = README.read_text(encoding="utf-8")
        after = fill(before, blocks(read()))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.check:
        print("README.md is up to date" if before == after else "README.md is not up to date")
        return int(before != after)
    if before != after:
        README.write_text(after, encoding="utf-8")
    print("README.md rewritten" if before != after else "README.md was up to date")
    return 0


if __name__ == "__main__":
    sys.exit(main())
