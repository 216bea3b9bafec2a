# SPDX-License-Identifier: Apache-2.0
"""Pages of experiments/results, in Markdown: an index, a page a system, benches, tests, TPUs, and
two of generative recommenders."""

from collections.abc import Mapping
from typing import Any

from experiments.runner import names
from experiments.runner.pages import Cell, Table, markdown, markdown_table
from experiments.runner.result_files import Found, grouped, system_of
from experiments.runner.result_rec import pairs_text, speedup_text
from experiments.runner.result_rows import ROWS, compared_in, entry_of, results_table
from experiments.runner.result_series import PLOTS, Plot
from experiments.runner.result_tables import (
    bench_text,
    check_text,
    compiles_text,
    jitter_text,
    runs_table,
    shortcuts_table,
)
from experiments.runner.writer import short

GENERATED = (
    "<!-- Generated from the result files by `python experiments/tables.py`: do not edit. -->\n"
    "Generated from the result files of this folder by `python experiments/tables.py`. "
    "[All results](README.md)\n"
)
COMMANDS = {
    "checks": "pytest -m slow",
    "benches": "python experiments/bench.py NAME --json=experiments/results/FILE.json",
    "jitter": "pytest -m slow tests/jitter_test.py",
    "compiles": "python -m attention.tpu_aot --json=experiments/results/FILE.json",
    "shortcuts": "python -m banyan.oracle_check --shortcuts --json=experiments/results/FILE.json",
}


def _or_command(text: str, kind: str) -> str:
    return text or f"Not measured yet: `{COMMANDS[kind]}`\n"


def picture_line(plot: Plot, data: Mapping[str, Any], folder: str = "") -> str:
    """The plot as a Markdown picture with its alternative text."""
    return f"![{markdown(plot.alt(data))}]({folder}plots/{plot.name}.svg)\n"


def readme_strip(series: Mapping[str, Mapping[str, Any]], folder: str) -> str:
    """The four pictures of README, two beside two, each a link to its page."""
    lines = []
    for plot in PLOTS:
        if plot.in_readme and plot.name in series:
            alt = plot.alt(series[plot.name]).replace('"', "'")
            picture = f'<img src="{folder}plots/{plot.name}.svg" width="49%" alt="{alt}">'
            lines.append(f'<a href="{folder}{plot.pages[0]}.md">{picture}</a>')
    return "\n".join(lines) + "\n" if lines else "Not drawn yet: `python experiments/tables.py`\n"


def asked(system: str) -> str:
    """What is asked of a system, in one sentence."""
    module = names.config_module(system)
    about = getattr(module, "ABOUT", None)
    return about.asked if about else (module.__doc__ or "").strip().splitlines()[0]


def system_page(system: str, found: Found, series: Mapping[str, Mapping[str, Any]]) -> str:
    """Verdict, pictures, runs, learning checks, and what its config says."""
    parts = [f"# {system}\n", GENERATED, f"{markdown(asked(system))}\n"]
    rows = [row for row in ROWS if row.system == system]
    parts.append(results_table(found, rows=rows))
    for row in rows:
        for shown in (row.shown, *row.also):
            if shown is None or not (entry := entry_of(system, shown)).references:
                continue
            verdict = compared_in(found, shown, entry).verdict(entry.better)
            parts.append(f"- {shown.what.removesuffix(':')}: {markdown(verdict)}")
    parts.append("")
    for plot in PLOTS:
        if system in plot.pages and plot.name in series:
            parts.append(picture_line(plot, series[plot.name]))
    runs = [run for run in found["results"].values() if run["system"] == system]
    if runs:
        commands = [
            f"    python experiments/run.py --config={name}:{variant} --config.seed={run['seed']}"
            for (name, variant, _), members in grouped(runs).items()
            for run in members
        ]
        parts += ["## Runs\n", markdown_table(runs_table(runs)), *commands, ""]
    checks = [
        check_text(check)
        for check in found["checks"].values()
        if any(system_of(c["runs"][0]) == system for c in check["conditions"].values())
    ]
    if checks:
        intro = "Criteria are fixed in the tests: `pytest -m slow`. ± is over seeds or splits.\n"
        parts += ["## Learning checks\n", intro, *checks]
    if not runs and not checks:
        parts.append("Not measured: no result file of this system stands here.\n")
    if system == "banyan" and found["shortcuts"]:
        share = (
            "Share of trees with an operation on their leaves, off the tree, that makes the goal:"
        )
        shares = markdown_table(shortcuts_table(found["shortcuts"]))
        command = f"`{COMMANDS['shortcuts']}`\n"
        parts += ["## Shortcuts\n", f"{share}\n", shares, command]
    doc = (names.config_module(system).__doc__ or "").strip()
    parts += ["## What its config says\n", f"```text\n{doc}\n```\n"]
    return "\n".join(parts)


def bench_page(found: Found, series: Mapping[str, Mapping[str, Any]]) -> str:
    """All benches."""
    intro = (
        "Speed is a ratio within one run, the median of interleaved repeats; rates alone compare "
        "with nothing. Ratios are of rates, above 1 the first named is faster; those that say time "
        f"are of times. `{COMMANDS['benches']}`. No GPU and no TPU was measured.\n"
    )
    pictures = [
        picture_line(p, series[p.name]) for p in PLOTS if "bench" in p.pages and p.name in series
    ]
    texts = "\n".join(bench_text(bench) for bench in found["benches"].values())
    return "\n".join(["# Benches\n", GENERATED, intro, *pictures, _or_command(texts, "benches")])


def tests_page(found: Found) -> str:
    """Draws of last bits, and how long the runs behind the learning checks took."""
    rows = []
    for check in found["checks"].values():
        walls = [run["wall_s"] for c in check["conditions"].values() for run in c["runs"]]
        cells = (check["check"], str(len(walls)), short(sum(walls)), check["device"])
        rows.append([Cell(cell) for cell in cells])
    times = markdown_table(Table(("learning check", "runs", "their wall time", "device"), rows))
    draws = "\n".join(jitter_text(result) for result in found["jitter"].values())
    intro = (
        "Training amplifies the last bits of a float32, in which machines differ. Each test that "
        "trains was repeated with other last bits in its initial parameters and inputs:\n"
    )
    parts = ["# Tests\n", GENERATED, "How to run them: [tests/README.md](../../tests/README.md).\n"]
    parts += ["## Learning checks\n", times if rows else _or_command("", "checks")]
    parts += ["## Last bits\n", intro, _or_command(draws, "jitter")]
    return "\n".join(parts)


def compiles_page(found: Found) -> str:
    """Programs compiled for TPUs."""
    intro = (
        "Kernels compiled ahead of time for TPUs, which nobody here ran: "
        f'`pip install -e ".[tpu_aot]"`, then `{COMMANDS["compiles"]}`.\n'
    )
    text = _or_command(compiles_text(found["compiles"]), "compiles")
    return "\n".join(["# Compiled for TPUs\n", GENERATED, intro, text])


def with_note(text: str) -> str:
    """A page whose text begins with its title, with the note that it is generated."""
    title, rest = text.split("\n", 1)
    return f"{title}\n\n{GENERATED}{rest}"


def index_page(found: Found) -> str:
    """Every page and every file."""
    intro = GENERATED.replace(" [All results](README.md)", "")
    files = [
        [Cell(name), Cell(kind), Cell(content.get("commit", ""))]
        for kind, contents in found.items()
        for name, content in contents.items()
    ]
    text = (
        "A capital BELOW is a loss. Intervals are 95 %: over users where a run stores them (of "
        "several seeds the widest), else bootstrapped over seeds or splits; one seed has none. "
        "Other pages: [benches](bench.md), [tests and last bits](tests.md), [programs compiled for "
        "TPUs](compiles.md), [what the speed-up of decoding is made of](speedup.md), [which pairs "
        "to train on](genpas.md).\n"
    )
    table = markdown_table(Table(("file", "kind", "commit"), files))
    return "\n".join(["# Results\n", intro, results_table(found), text, "## Files\n", table])


def pages(found: Found, series: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """{file name in experiments/results: its text}."""
    texts = {"README.md": index_page(found), "bench.md": bench_page(found, series)}
    texts["tests.md"] = tests_page(found)
    texts["compiles.md"] = compiles_page(found)
    texts["speedup.md"] = with_note(speedup_text(found))
    texts["genpas.md"] = with_note(pairs_text(found))
    for system in names.systems():
        texts[f"{system}.md"] = system_page(system, found, series)
    return {name: f"{text.rstrip()}\n" for name, text in texts.items()}
