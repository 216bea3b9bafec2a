# SPDX-License-Identifier: Apache-2.0
"""A run folder as one page: report.html (self-contained), and report.md with its pictures.

Both pages are made from the same sections; several runs side by side are in compare.py.
"""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.runner import plots, settings
from experiments.runner.about import About, Headline
from experiments.runner.comparison import spread
from experiments.runner.contract import Picture, Rows
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
)
from experiments.runner.verdict import judge
from experiments.runner.writer import read_metrics, short

MAX_PLOTS = 8
PICTURES = "report_files"  # beside report.md
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
        "peak memory": f"{peak / 1e3:.2f} GB" if (peak := results.get("peak_rss_mb")) else "",
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
    """A heading with the same content for both pages."""

    title: str
    note: str = ""
    table: Table | None = None
    pictures: tuple[tuple[str, Picture], ...] = ()
    """(title, picture), side by side where there are several."""
    html: str = ""
    """What only the HTML page can show, above the table."""
    folded: bool = False


def figure_section(title: str, figure: Picture | Rows) -> Section:
    """Makes a section of what a system adds to the page: a picture or a table.

    Raises:
        ValueError: the caption is empty.
    """
    if not figure.caption.strip():
        raise ValueError(f"figure {title!r} has no caption: say in a sentence what it shows")
    if isinstance(figure, Picture):
        return Section(title, pictures=((title, figure),))
    rows = [
        [Cell(cell) if isinstance(cell, str) else numeric(cell) for cell in row]
        for row in figure.rows
    ]
    return Section(title, figure.caption, Table(figure.head, rows))


def headline_section(run: Run, headline: Sequence[Headline]) -> Section | None:
    """The metrics a reader looks for, each beside the best row that needs no training."""
    metrics = run.results.get("metrics", {})
    per_seed = run.results.get("per_seed", {})
    rows = []
    for entry in headline:
        if entry.metric not in metrics:
            continue
        found = judge(run.results, entry)
        rows.append(
            [
                Cell(entry.metric, strong=True),
                Cell(found.value, True, repr(metrics[entry.metric]), True),
                Cell(found.reference or "-"),
                Cell(found.sentence or "-"),
                Cell(f"{entry.sentence} ({entry.better} is better)"),
            ]
        )
    if not rows:
        return None
    most = max([1, *(len(values) for values in per_seed.values())])
    note = f"Mean ± sample standard deviation over {most} seeds. " if most > 1 else ""
    head = ("metric", "this run", "best without training", "verdict", "what it measures")
    return Section("Headline", note + REPRODUCIBLE, Table(head, rows))


def curve_sections(run: Run, headline: Sequence[Headline]) -> list[Section]:
    """Learning curves: those of the headline, then losses; the rest by first and last value."""
    found = plots.curves([run.records])
    named = [entry.metric for entry in headline]
    arranged = plots.arrange(found, named or list(run.results.get("metrics", {})))
    wanted = {plots.family(name) for name in named}
    is_drawn = lambda lines: plots.family(lines[0].label) in wanted or not plots.is_flat(lines)
    drawn = [(title, lines) for title, lines in arranged if is_drawn(lines)][:MAX_PLOTS]
    sentences = {plots.family(entry.metric): entry.sentence for entry in reversed(headline)}
    pictures = []
    for title, lines in drawn:
        names = ", ".join(line.label for line in lines)
        measured = sentences.get(plots.family(lines[0].label), "")
        caption = f"By training step: {names}. {measured}"
        pictures.append((title, Picture(plots.draw(title, lines), caption.strip())))
    out = []
    if pictures:
        note = plots.legend(found.values())
        out.append(Section("Learning curves", note, pictures=tuple(pictures)))
    shown = {title for title, _ in drawn}
    rest = [line for title, lines in arranged if title not in shown for line in lines]
    if rest:
        title = f"{len(rest)} more learning curves"
        note = "Curves that are not drawn, by their first and last value."
        out.append(Section(title, note, last_table(rest), folded=True))
    return out


def result_sections(run: Run, is_headed: bool) -> list[Section]:
    """Every metric, beside published numbers where there are some; folded below a headline."""
    results = run.results
    if not results.get("metrics"):
        return [Section("Results", "No results yet: the run has not reached its end.")]
    if not is_headed:
        most = max([1, *(len(v) for v in results.get("per_seed", {}).values())])
        note = f"Mean ± sample standard deviation over {most} seeds. " if most > 1 else ""
        return [Section("Results", note + REPRODUCIBLE, results_table(results))]
    out = []
    published = [name for name in results.get("paper", {}) if name != "source"]
    if published:
        table = results_table(results, published)
        out.append(Section("Beside published numbers", "In bold what a paper reports.", table))
    title = f"All {len(results['metrics'])} metrics"
    note = "Every metric of results.json, with the step of the checkpoint it was measured on."
    return [*out, Section(title, note, results_table(results), folded=True)]


def model_card(run: Run, about: About | None) -> Section:
    """What a user of the trained model has to know."""
    seed = dict(facts(run)).get("seed", "?")
    step = run.results.get("tested", run.results.get("step", "none yet"))
    rows = {
        "data and license": about.data if about else "",
        "intended use": about.use if about else "",
        "known failures": about.failures if about else "",
        "trained with": f"seed {seed}, checkpoint of step {number(step)}",
    }
    cells = [[Cell(key, strong=True), Cell(text)] for key, text in rows.items() if text]
    return Section("Model card", "", Table(("", ""), cells))


def sections(
    run: Run,
    figures: Mapping[str, Picture | Rows],
    base: Mapping[str, Any] | None,
    headline: Sequence[Headline] = (),
) -> list[Section]:
    """The page below its headline: curves, what the system adds, results, then how it was made."""
    out = curve_sections(run, headline)
    out += [figure_section(title, figure) for title, figure in figures.items()]
    is_headed = any(entry.metric in run.results.get("metrics", {}) for entry in headline)
    out = [*out, *result_sections(run, True)] if is_headed else [*result_sections(run, False), *out]
    timing = timing_table(run)
    if timing.rows:
        out.append(Section("Time", "Where the wall time went.", timing, html=_bar(timing)))
    if base is not None:
        table = config_table(run.config, base)
        note = "Settings that differ from the base variant."
        if not table.rows:
            note = "Every value is that of the base variant."
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
    several = len(section.pictures) > 1
    figures = "".join(
        picture(title, given.data, given.caption, show_title=several)
        for title, given in section.pictures
    )
    body += f"<div class=grid>{figures}</div>\n" if several else figures
    body += section.html + (html_table(section.table) if section.table else "")
    if section.folded:
        return f"<details><summary>{escape(section.title)}</summary>\n{body}</details>\n"
    return f"<h2>{escape(section.title)}</h2>\n{body}"


def save_pictures(workdir: Path, parts: Sequence[Section]) -> dict[int, str]:
    """Saves every picture into report_files/, whatever an earlier report left there removed.

    Returns:
        {id of the Picture: path of its file, seen from report.md}.
    """
    folder = workdir / PICTURES
    if folder.is_dir():
        shutil.rmtree(folder)
    paths: dict[int, str] = {}
    for title, given in [pair for section in parts for pair in section.pictures]:
        folder.mkdir(exist_ok=True)
        slug = re.sub(r"[^a-z0-9]+", "_", title.lower()).strip("_")[:40]
        ending = "gif" if given.data.startswith(b"GIF") else "png"
        path = folder / f"{len(paths) + 1:02d}_{slug}.{ending}"
        path.write_bytes(given.data)
        paths[id(given)] = f"{PICTURES}/{path.name}"
    return paths


def markdown_section(section: Section, paths: Mapping[int, str]) -> str:
    """Markdown of a section; pictures are links to their files."""
    lines = [f"## {markdown(section.title)}\n"]
    if section.note:
        lines.append(markdown(section.note) + "\n")
    for title, given in section.pictures:
        lines.append(f"![{markdown(title)}]({paths[id(given)]})\n")
        lines.append(markdown(given.caption) + "\n")
    if section.table:
        lines.append(markdown_table(section.table))
    return "\n".join(lines)


def write_report(
    workdir: str | Path,
    figures: Mapping[str, Picture | Rows] = {},
    base_config: Mapping[str, Any] | None = None,
    headline: Sequence[Headline] = (),
    about: About | None = None,
) -> None:
    """Writes report.html, report.md and its pictures into a run folder, from the files there.

    Args:
        figures: {title: picture or table} the system adds.
        base_config: config of the system's base variant, for the difference.
        headline: metrics shown at the top, the others folded; empty shows all.
        about: the system in words; the page opens with what it asks and ends with a model card.

    Raises:
        UserError: no run folder, or a damaged file.
        ValueError: a figure of another format, or one without a caption.
    """
    run = read_run(workdir)
    name = f"{run.config.get('system', '?')}:{run.config.get('variant', '?')}"
    header = facts(run)
    top = headline_section(run, headline)
    opening = [top] if top else []
    parts = [*sections(run, figures, base_config, headline), model_card(run, about)]
    cards = "".join(
        f"<div class=card><b>{escape(k)}</b>"
        + (f"<span class=warn>{escape(v)}</span>" if "+dirty" in v else escape(v))
        + "</div>"
        for k, v in header
    )
    command = f"<pre>{escape(run.command.strip())}</pre>\n" if run.command else ""
    asked = f"<p class=lead>{escape(about.asked)}</p>\n" if about else ""
    body = f"<h1>{escape(name)}</h1>\n{asked}" + "".join(map(render, opening))
    body += f"<div class=cards>{cards}</div>\n{command}" + "".join(map(render, parts))
    paths = save_pictures(run.workdir, parts)
    write_text(run.workdir / "report.html", page(name, body))

    lines = [f"# {markdown(name)}\n"]
    if about:
        lines.append(markdown(about.asked) + "\n")
    lines += [markdown_section(section, paths) for section in opening]
    lines.append("## Run\n")
    lines.append(markdown_table(Table(("", ""), [[Cell(k), Cell(v)] for k, v in header])))
    if run.command:
        fence = "`" * (3 + run.command.count("```"))
        lines.append(f"{fence}\n{run.command.strip()}\n{fence}\n")
    lines += [markdown_section(section, paths) for section in parts]
    write_text(run.workdir / "report.md", "\n".join(lines))
