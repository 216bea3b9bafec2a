# SPDX-License-Identifier: Apache-2.0
"""Two pages on generative recommenders: what a fast search is made of and what it costs in recall,
and which pairs of history and target to train on."""

from collections.abc import Mapping
from typing import Any

from experiments.runner.pages import Cell, Table, markdown, markdown_table, number
from experiments.runner.result_files import Found
from experiments.runner.result_tables import check_commands, measured

DECODE = "bench_decode_cpu.json"
STUDENTS = ("rec_sid_mlp.json", "rec_sid_mlp_pp.json")
PAIRS = "rec_genpas.json"
RECALL = ("test/ndcg@10", "test/recall@10", "teacher/test/ndcg@10", "test/recovery")
SAME = 0.1  # relative, factors multiplied and the whole
NOT_HERE = (
    "Not measured (they need an H200): 512 histories at once, 200 beams, peak memory on the "
    "device, whole Beauty and LETTER-Instruments checkpoints."
)


def speedup_text(found: Found) -> str:
    """Factor by factor, both denominators, the grid of sizes, and recall beside them."""
    parts = ["# What the speed-up is made of\n"]
    bench = found["benches"].get(DECODE)
    if bench is None:
        command = f"python experiments/bench.py decode --json=experiments/results/{DECODE}"
        parts.append(f"Speed is not measured yet: `{command}`\n")
    else:
        parts += [_factors(bench), _grid(bench)]
    parts.append("## What it costs in recall\n")
    for name in STUDENTS:
        check = found["checks"].get(name)
        if check is None:
            parts.append(f"Not measured yet: {name}, `pytest -m slow tests/rec`\n")
            continue
        rows = []
        for condition, result in check["conditions"].items():
            runs = [run["metrics"] for run in result["runs"]]
            cells = [condition, str(len(runs)), *(measured(metric, runs) for metric in RECALL)]
            rows.append([Cell(cell) for cell in cells])
        head = ("condition", "seeds", *RECALL)
        parts.append(
            f"**{markdown(check['check'])}**, Beauty's 8-core, commit {check['commit']}: "
            f"{markdown(check['criterion'])}\n\n{markdown_table(Table(head, rows))}"
        )
    return "\n".join([*parts, f"{NOT_HERE}\n"])


def _factors(bench: Mapping[str, Any]) -> str:
    """The chain of factors, their product against the whole, and other ratios."""
    versions = bench["versions"]
    ratios = bench["ratios"]
    factors = {
        name.removeprefix("factor: "): value
        for name, value in ratios.items()
        if name.startswith("factor: ")
    }
    others = {name: value for name, value in ratios.items() if not name.startswith("factor: ")}
    intro = (
        f"{bench['device']}, jax {versions['jax']}, commit {bench['commit']}; medians of "
        f"interleaved repeats, 32 histories at once, 50 beams, 4 digits, 10,000 SIDs, random "
        "weights. A factor is how many times faster a search is with one change; the first line is "
        "the slowest. `python experiments/bench.py decode`\n"
    )
    tables = []
    for head, values in (("one change", factors), ("against", others)):
        rows = [[Cell(name), Cell(f"{value:.3g}")] for name, value in values.items()]
        tables.append(markdown_table(Table((head, "times"), rows)))
    away = abs(ratios["factors multiplied"] / ratios["the whole, timed on its own"] - 1)
    verdict = (
        f"The factors come to the whole within {away:.0%}."
        if away <= SAME
        else f"The factors miss the whole by {away:.0%}: the spread of rows below is larger than "
        f"the {SAME:.0%} that were wanted."
    )
    return "\n".join([intro, *tables, f"{verdict}\n"])


def _grid(bench: Mapping[str, Any]) -> str:
    """Every row: times, users a second, operations and temporaries."""
    rows = []
    for row in bench["rows"]:
        is_whole = row["row"].startswith("WHOLE-")
        if is_whole:
            continue
        cells = (
            row["row"],
            f"{row['p50_ms']:.3g}",
            f"{row['p95_ms']:.3g}",
            f"{row['users_per_s']:.3g}",
            f"{row['spread']:.0%}",
            _or_nothing(row, "gflop_per_user"),
            _or_nothing(row, "temporary_mb"),
        )
        rows.append([Cell(cell) for cell in cells])
    rows += [
        [Cell(name), Cell("not measured"), *(Cell("") for _ in range(4)), Cell(reason)]
        for name, reason in bench["not_measured"].items()
    ]
    head = ("row", "p50, ms", "p95, ms", "users / s", "spread", "GFLOP / user", "temporaries, MiB")
    return "## Rows\n\n" + markdown_table(Table(head, rows))


def _or_nothing(row: Mapping[str, Any], name: str) -> str:
    return f"{row[name]:.3g}" if name in row else ""


def pairs_text(found: Found) -> str:
    """Strategies of pairs, by the distance of their targets from those of validation."""
    title = "# Which pairs to train on\n"
    check = found["checks"].get(PAIRS)
    if check is None:
        return f"{title}\nNot measured yet: `pytest -m slow tests/rec -k pairs`\n"
    rows = []
    conditions = check["conditions"]
    for name in (condition.removeprefix("pairs, ") for condition in conditions):
        if name.startswith("stream, "):
            continue
        cells = [name]
        for kind in ("pairs", "stream"):
            cells.append(_cell(conditions.get(f"{kind}, {name}"), "test/recall@10"))
        kl = conditions[f"pairs, {name}"]["runs"][0]["metrics"]["pairs/kl"]
        rows.append([Cell(cell) for cell in (cells[0], number(kl), *cells[1:])])
    head = ("targets", "KL, nats", "recall@10, drawn pairs", "recall@10, weights of the stream")
    intro = (
        "GenPAS [secondary] chooses training pairs without training: those whose targets are "
        "nearest to the targets of validation, KL(validation, training), with 1e-8 added to every "
        "share. Drawn pairs: tiger:t5, 600 updates of 128 pairs. Stream: tiger:base, whose "
        "positions are weighted instead, so that its targets have the same law; prefixes are the "
        "plain stream. Beauty's 8-core, mean ± sd of three seeds.\n"
    )
    criterion = f"{markdown(check['criterion'])}, commit {check['commit']}, {check['device']}.\n"
    return "\n".join(
        [title, intro, markdown_table(Table(head, rows)), criterion, check_commands(check)]
    )


def _cell(condition: Mapping[str, Any] | None, metric: str) -> str:
    if condition is None:
        return "not measured"
    return measured(metric, [run["metrics"] for run in condition["runs"]])
