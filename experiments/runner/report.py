# SPDX-License-Identifier: Apache-2.0
"""A run folder as one page: report.md and report.html (self-contained); several runs compared.

Both pages are made from the same tables.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.runner import plots, settings
from experiments.runner.comparison import Group, difference, load_groups, spread, summarize
from experiments.runner.comparison import bootstrap_interval as bootstrap_interval
from experiments.runner.contract import Rows
from experiments.runner.errors import UserError
from experiments.runner.folder import read_json, write_text
from experiments.runner.pages import (
    Cell,
    Table,
    escape,
    html_table,
    markdown,
    markdown_table,
    number,
    numeric,
    page,
    picture,
    text_table,
)
from experiments.runner.writer import read_metrics, short

MAX_PLOTS = 12
REPRODUCIBLE = (
    "The same seed gives the same bits on the same machine, jax and XLA flags; elsewhere numbers "
    "agree within the spread over seeds."
)
KINDS = ("compile", "step", "data", "eval", "checkpoint")


# ----------------------------------------------------------------------------------------- one run


class Run(NamedTuple):
    """Files of a run folder; those not written yet are empty."""

    workdir: Path
    config: dict[str, Any]
    env: dict[str, Any]
    command: str
    records: list[dict[str, Any]]
    results: dict[str, Any]


def read_run(workdir: str | Path) -> Run:
    """Reads what is there; only config.json must be.

    Raises:
        UserError: no run folder, or a damaged file, named.
    """
    workdir = Path(workdir)

    def optional(name: str) -> dict[str, Any]:
        return read_json(workdir / name) if (workdir / name).exists() else {}

    log = workdir / "metrics.jsonl"
    command = workdir / "command.txt"
    return Run(
        workdir,
        read_json(workdir / "config.json"),
        optional("env.json"),
        command.read_text(encoding="utf-8") if command.exists() else "",
        read_metrics(log) if log.exists() else [],
        optional("results.json"),
    )


def results_table(results: Mapping[str, Any], only: Sequence[str] = ()) -> Table:
    """Metrics with a number of the paper first, in bold; then the rest, in natural order, or only
    those that are named, as they are."""
    paper = {k: v for k, v in results.get("paper", {}).items() if k != "source"}
    source = str(results.get("paper", {}).get("source", ""))
    metrics = results.get("metrics", {})
    rest = only or sorted(metrics, key=plots.natural)
    names = list(dict.fromkeys([*sorted(paper, key=plots.natural), *rest]))
    rows = []
    for name in names:
        known = name in paper
        ours = Cell("not measured")
        if name in metrics:
            ours = numeric(metrics[name], strong=known)
            seeds = results.get("per_seed", {}).get(name, [])
            if len(seeds) > 1:
                ours = ours._replace(
                    text=f"{ours.text} ± {number(spread(seeds))}", exact=json.dumps(seeds)
                )
        theirs = paper.get(name, "")
        if isinstance(theirs, list):  # (mean, std)
            theirs = " ± ".join(number(x) for x in theirs)
        step = results.get("checkpoint_of", {}).get(name, "")
        rows.append(
            [
                Cell(name, strong=known),
                ours,
                Cell(number(theirs), number=True),
                Cell(source if known else ""),
                Cell(number(step), number=True),
            ]
        )
    head = ("metric", "ours", "paper", "source", "checkpoint step")
    if not paper:
        return Table((*head[:2], head[4]), [[*row[:2], row[4]] for row in rows])
    return Table(head, rows)


def timing_table(run: Run) -> Table:
    """Seconds by kind; "other" is the rest of the wall time (start, restore, report)."""
    last = run.records[-1].get("time", {}) if run.records else {}
    spent = run.results.get("time_s") or {k: last[k] for k in KINDS if k in last}
    wall = run.results.get("wall_s") or last.get("wall") or sum(spent.values())
    parts = {k: spent[k] for k in sorted(spent, key=lambda k: -spent[k])}
    parts["other"] = max(0.0, wall - sum(spent.values()))
    rows = []
    for index, (kind, seconds) in enumerate(parts.items() if spent and wall else ()):
        color = plots.COLORS[index % len(plots.COLORS)] if kind != "other" else plots.INK
        share = seconds / max(wall, sum(spent.values()))
        rows.append(
            [
                Cell(kind, color=color),
                Cell(f"{seconds:.1f}", exact=repr(seconds), number=True),
                Cell(f"{100 * share:.1f} %", number=True),
            ]
        )
    return Table(("kind", "seconds", "share"), rows)


def config_table(config: Mapping[str, Any], base: Mapping[str, Any]) -> Table:
    """Keys whose values differ from the base variant's."""
    ours = settings.flatten(config)
    theirs = settings.flatten(base)
    show = lambda values, key: json.dumps(values[key]) if key in values else "absent"
    rows = [
        [Cell(key), Cell(show(theirs, key)), Cell(show(ours, key), strong=True)]
        for key in sorted({*ours, *theirs})
        if key != "variant" and show(ours, key) != show(theirs, key)
    ]
    return Table(("key", "base", "this run"), rows)


def facts(run: Run) -> list[tuple[str, str]]:
    """The header: what ran where."""
    results = run.results
    config = run.config
    env = run.env
    seed = config.get("seed", "?")
    several = config.get("num_seeds", 1)
    devices = env.get("devices", [])
    kinds = ", ".join(f"{devices.count(k)} x {k}" for k in sorted(set(devices)))
    rate = results.get("steps_per_s")
    rows = {
        "seed": str(seed) if several == 1 else f"{seed} ({several} seeds side by side)",
        "steps": number(results["step"]) if "step" in results else "",
        "parameters": number(results["params"]) if "params" in results else "",
        "device": str(results.get("device") or kinds),
        "wall time": short(results["wall_s"]) if "wall_s" in results else "",
        "compile time": short(results["compile_s"]) if "compile_s" in results else "",
        "steps / s": f"{rate:.4g}" if rate else "not measured",
        "commit": str(results.get("commit") or env.get("commit", "")),
        "config": str(results.get("config_hash", "")),
    }
    return [(k, v) for k, v in rows.items() if v]


def environment_table(env: Mapping[str, Any]) -> Table:
    rows = []
    for key, value in settings.flatten(env).items():
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        rows.append([Cell(key.removeprefix("versions.")), Cell(text)])
    return Table(("", ""), [row for row in rows if row[1].text])


def last_table(found: Sequence[plots.Curve]) -> Table:
    """Curves not drawn, by their first and last value."""
    rows = [[Cell(c.label), numeric(float(c.values[0])), numeric(float(c.values[-1]))]
            for c in found]  # fmt: skip
    return Table(("metric", "first", "last"), rows)


class Section(NamedTuple):
    """A heading with the same content for both pages, and what only HTML can show."""

    title: str
    note: str = ""
    table: Table | None = None
    pictures: str = ""  # HTML
    folded: bool = False


def figure_section(title: str, figure: bytes | Rows) -> Section:
    """What a system adds to the page: a picture or a table."""
    if isinstance(figure, bytes):
        return Section(title, "", None, picture(title, figure))
    rows = [
        [Cell(cell) if isinstance(cell, str) else numeric(cell) for cell in row]
        for row in figure.rows
    ]
    return Section(title, figure.note, Table(figure.head, rows))


def sections(
    run: Run,
    figures: Mapping[str, bytes | Rows],
    base: Mapping[str, Any] | None,
    headline: Sequence[str] = (),
) -> list[Section]:
    """The page below its header."""
    out = []
    results = run.results
    if results.get("metrics"):
        most = max([1, *(len(v) for v in results.get("per_seed", {}).values())])
        note = f"Mean ± sample standard deviation over {most} seeds. " if most > 1 else ""
        note += REPRODUCIBLE
        shown = [name for name in headline if name in results["metrics"]]
        out.append(Section("Results", note, results_table(results, shown)))
        if shown:
            title = f"All {len(results['metrics'])} metrics"
            out.append(Section(title, "", results_table(results), folded=True))
    else:
        out.append(Section("Results", "No results yet: the run has not reached its end."))
    out += [figure_section(title, figure) for title, figure in figures.items()]
    found = plots.curves([run.records])
    drawn = plots.arrange(found, list(results.get("metrics", {})))
    pictures = "".join(
        picture(title, plots.draw(title, lines)) for title, lines in drawn[:MAX_PLOTS]
    )
    if pictures:
        out.append(
            Section(
                "Learning curves",
                plots.legend(found.values()),
                None,
                f"<div class=grid>{pictures}</div>",
            )
        )
    rest = [line for _, lines in drawn[MAX_PLOTS:] for line in lines]
    if rest:
        out.append(Section(f"{len(rest)} more metrics", "", last_table(rest), folded=True))
    timing = timing_table(run)
    if timing.rows:
        out.append(Section("Time", "", timing, _bar(timing)))
    if base is not None:
        table = config_table(run.config, base)
        note = "" if table.rows else "Every value is that of the base variant."
        out.append(Section("Config: difference from base", note, table if table.rows else None))
    flat = settings.flatten(run.config)
    whole = Table(("key", "value"), [[Cell(k), Cell(json.dumps(flat[k]))] for k in sorted(flat)])
    out.append(Section("Whole config", "", whole, folded=True))
    if run.env:
        out.append(Section("Environment", "", environment_table(run.env), folded=True))
    return out


def _bar(timing: Table) -> str:
    parts = "".join(
        f'<span style="flex:{float(row[1].exact):.6f};background:{row[0].color}" '
        f'title="{escape(row[0].text)} {escape(row[2].text)}"></span>'
        for row in timing.rows
    )
    return f"<div class=bar>{parts}</div>"


def render(section: Section) -> str:
    """HTML of a section."""
    body = f"<p class=note>{escape(section.note)}</p>\n" if section.note else ""
    body += section.pictures + (html_table(section.table) if section.table else "")
    if section.folded:
        return f"<details><summary>{escape(section.title)}</summary>\n{body}</details>\n"
    return f"<h2>{escape(section.title)}</h2>\n{body}"


def write_report(
    workdir: str | Path,
    figures: Mapping[str, bytes | Rows] = {},
    base_config: Mapping[str, Any] | None = None,
    headline: Sequence[str] = (),
) -> None:
    """Writes report.md and report.html into a run folder, from the files that are there.

    Args:
        figures: {title: PNG or GIF bytes, or a table} the system adds.
        base_config: config of the system's base variant, for the difference.
        headline: metrics shown at the top, the others folded; empty shows all.

    Raises:
        UserError: no run folder, or a damaged file.
        ValueError: a figure of another format.
    """
    run = read_run(workdir)
    name = f"{run.config.get('system', '?')}:{run.config.get('variant', '?')}"
    header = facts(run)
    parts = sections(run, figures, base_config, headline)
    cards = "".join(
        f"<div class=card><b>{escape(k)}</b>"
        + (f"<span class=warn>{escape(v)}</span>" if "+dirty" in v else escape(v))
        + "</div>"
        for k, v in header
    )
    command = f"<pre>{escape(run.command.strip())}</pre>\n" if run.command else ""
    body = f"<h1>{escape(name)}</h1>\n<div class=cards>{cards}</div>\n{command}"
    write_text(run.workdir / "report.html", page(name, body + "".join(map(render, parts))))

    lines = [f"# {markdown(name)}\n"]
    lines.append(markdown_table(Table(("", ""), [[Cell(k), Cell(v)] for k, v in header])))
    if run.command:
        fence = "`" * (3 + run.command.count("```"))
        lines.append(f"{fence}\n{run.command.strip()}\n{fence}\n")
    for section in parts:
        lines.append(f"## {markdown(section.title)}\n")
        if section.pictures and not section.table:
            lines.append("Pictures: see [report.html](report.html).\n")
        elif section.note:
            lines.append(markdown(section.note) + "\n")
        if section.table:
            lines.append(markdown_table(section.table))
    write_text(run.workdir / "report.md", "\n".join(lines))


# ------------------------------------------------------------------------------------ several runs


def comparison_tables(groups: Sequence[Group]) -> list[tuple[str, Table, Table | None]]:
    """(metric, values by group, differences from the first group)."""
    names = sorted({k for g in groups for k in g.values}, key=plots.natural)
    out = []
    for name in names:
        having = [g for g in groups if name in g.values]
        rows = []
        for group in having:
            s = summarize(list(group.values[name].values()))
            rows.append(
                [
                    Cell(group.label),
                    Cell(s.text(number), exact=repr(s.mean), number=True),
                    Cell(str(s.n), number=True),
                    Cell(_interval(s.low, s.high), number=True),
                ]
            )
        values = Table(("runs", "mean ± std", "n", "95 % interval of the mean"), rows)
        rows = []
        for other in having[1:]:
            d = difference(having[0].values[name], other.values[name])
            low = d.low
            high = d.high
            rows.append(
                [
                    Cell(f"{other.label.split()[0]} minus {having[0].label.split()[0]}"),
                    Cell(f"{d.mean:+.4g}", exact=repr(d.mean), number=True),
                    Cell(_interval(low, high), strong=low > 0 or high < 0, number=True),
                    Cell("paired by seed" if d.paired else "unpaired"),
                ]
            )
        head = ("difference", "of means", "95 % interval", "seeds")
        out.append((name, values, Table(head, rows) if rows else None))
    return out


def overview_table(groups: Sequence[Group]) -> Table:
    """What each group is, and how its config differs from the first one's."""
    rows = []
    for group in groups:
        changes = settings.difference(groups[0].config, group.config)
        rows.append(
            [
                Cell(group.label),
                Cell(", ".join(map(str, group.seeds))),
                Cell(", ".join(path.name for path in group.folders)),
                Cell("; ".join(line.removeprefix("config.") for line in changes) or "-"),
            ]
        )
    return Table(("runs", "seeds", "folders", "config, against the first"), rows)


def _interval(low: float, high: float) -> str:
    return "one seed" if math.isnan(low) else f"[{number(low)}, {number(high)}]"


NOTE = (
    "Mean ± sample standard deviation over n seeds. Intervals: percentile bootstrap of the mean, "
    "10,000 resamples. A difference stands out (bold) where its interval leaves out zero."
)


def compare(workdirs: Sequence[str | Path]) -> tuple[str, str]:
    """Runs of one config pooled over seeds, side by side: (text for a terminal, HTML page).

    Raises:
        UserError: a folder that is no finished run (the missing file is named), or a damaged file.
    """
    groups, remarks = load_groups(workdirs)
    tables = comparison_tables(groups)
    overview = overview_table(groups)
    text = [text_table(overview), *remarks]
    body = "<h1>Comparison of runs</h1>\n" + html_table(overview)
    body += "".join(f"<p class=warn>{escape(line)}</p>\n" for line in remarks)
    body += f"<h2>Results</h2>\n<p class=note>{escape(NOTE)}</p>\n"
    for name, values, differences in tables:
        text += ["", name, text_table(values)]
        body += f"<h3>{escape(name)}</h3>\n{html_table(values)}"
        if differences:
            text.append(text_table(differences))
            body += html_table(differences)
    body += _overlays(groups, [name for name, _, _ in tables])
    return "\n".join([*text, "", NOTE]), page("Comparison of runs", body)


def _overlays(groups: Sequence[Group], first: Sequence[str]) -> str:
    by_group = {g.label: plots.curves(g.records) for g in groups}
    keys = {key for found in by_group.values() for key in found}
    order = sorted(
        keys, key=lambda k: (k not in first, k.startswith("train/"), "loss" not in k,
                             plots.natural(k))
    )  # fmt: skip
    pictures = ""
    for key in order[:MAX_PLOTS]:
        lines = [f[key]._replace(label=label) for label, f in by_group.items() if key in f]
        pictures += picture(key, plots.draw(key, lines[: plots.LINES]))
    if not pictures:
        return ""
    rest = ", ".join(order[MAX_PLOTS:])
    more = f"<p class=note>Not drawn: {escape(rest)}</p>\n" if rest else ""
    note = plots.legend([curve for found in by_group.values() for curve in found.values()])
    return (
        f"<h2>Learning curves</h2>\n<p class=note>{escape(note)}</p>\n"
        f"<div class=grid>{pictures}</div>\n{more}"
    )


def write_comparison(workdirs: Sequence[str | Path], out_dir: str | Path = ".") -> str:
    """Compares runs, writes comparison.html into `out_dir`; returns the text for the terminal."""
    text, document = compare(workdirs)
    path = Path(out_dir) / "comparison.html"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, document)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error}") from error
    return f"{text}\n\npage with curves: {path}"
