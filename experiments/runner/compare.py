# SPDX-License-Identifier: Apache-2.0
"""Several runs side by side: runs of one config pooled over seeds, as text and as one page."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.runner import names, plots, report, settings
from experiments.runner.about import metrics_of
from experiments.runner.comparison import (
    Group,
    difference,
    load_groups,
    rank_differences,
    summarize,
)
from experiments.runner.contract import Picture, Rows
from experiments.runner.errors import UserError
from experiments.runner.folder import write_text
from experiments.runner.pages import Cell, Table, escape, html_table, number, page, text_table

WIDTH = 120  # of the terminal
MAX_METRICS = 12  # on the terminal
MAX_SETTINGS = 12  # on the terminal
MAX_KEYS = 4  # named by a warning
ABSENT = "absent"
COLUMNS = 3  # groups side by side on the terminal
NOTE = (
    "Mean ± sample standard deviation over n seeds. Intervals: percentile bootstrap of the mean, "
    "10,000 resamples. A difference stands out (bold, or * on the terminal) where its 95 % "
    "interval leaves out zero."
)


def letter(group: Group) -> str:
    """The short name of a group: A, B, ..."""
    return group.label.split()[0]


def headline_metrics(groups: Sequence[Group]) -> list[str]:
    """Metrics that the config modules of these systems show first, and that were measured."""
    first: list[str] = []
    for system in dict.fromkeys(str(group.config.get("system")) for group in groups):
        if system not in names.systems():
            continue
        first += metrics_of(getattr(names.config_module(system), "HEADLINE", ()))
    return [name for name in dict.fromkeys(first) if any(name in g.values for g in groups)]


def list_metrics(groups: Sequence[Group], headline: Sequence[str]) -> list[str]:
    """All metrics: the headline, then the rest in natural order."""
    every = sorted({name for group in groups for name in group.values}, key=plots.natural)
    return list(dict.fromkeys([*headline, *every]))


def metric_tables(groups: Sequence[Group], name: str) -> tuple[Table, Table | None]:
    """One metric: values by group, and differences from the first group that has it."""
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
        rows.append(
            [
                Cell(f"{letter(other)} minus {letter(having[0])}"),
                Cell(f"{d.mean:+.4g}", exact=repr(d.mean), number=True),
                Cell(_interval(d.low, d.high), strong=d.low > 0 or d.high < 0, number=True),
                Cell("paired by seed" if d.paired else "unpaired"),
            ]
        )
    head = ("difference", "of means", "95 % interval", "seeds")
    return values, Table(head, rows) if rows else None


def terminal_tables(groups: Sequence[Group], metrics: Sequence[str]) -> list[str]:
    """The first metrics as rows, a few groups side by side, then their differences."""
    shown = list(metrics[:MAX_METRICS])
    out = []
    for start in range(0, len(groups), COLUMNS):
        part = groups[start : start + COLUMNS]
        rows = []
        for name in shown:
            cells = [
                summarize(list(g.values[name].values())).text(number) if name in g.values else "-"
                for g in part
            ]
            rows.append([Cell(name), *map(Cell, cells)])
        out += ["", text_table(Table(("metric", *map(letter, part)), rows), WIDTH)]
    for start in range(1, len(groups), COLUMNS):
        part = groups[start : start + COLUMNS]
        gaps = {name: [_gap(groups[0], g, name) for g in part] for name in shown}
        rows = [[Cell(name), *map(Cell, texts)] for name, texts in gaps.items() if any(texts)]
        if not rows:
            continue
        head = tuple(f"{letter(g)} minus {letter(groups[0])}" for g in part)
        out += ["", text_table(Table(("difference", *head), rows), WIDTH)]
    if len(metrics) > len(shown):
        out += ["", f"{len(metrics) - len(shown)} more metrics: see the page"]
    return out


def _gap(first: Group, other: Group, name: str) -> str:
    """ "+0.02 [0.01, 0.03]*" of a metric; "" where one of both lacks it."""
    if name not in first.values or name not in other.values:
        return ""
    d = difference(first.values[name], other.values[name])
    star = "*" if d.low > 0 or d.high < 0 else ""
    return f"{d.mean:+.4g} {_interval(d.low, d.high)}{star}"


def overview_table(groups: Sequence[Group]) -> Table:
    """What each group is."""
    rows = []
    for group in groups:
        rows.append(
            [
                Cell(group.label),
                Cell(", ".join(map(str, group.seeds))),
                Cell(", ".join(path.name for path in group.folders)),
            ]
        )
    return Table(("runs", "seeds", "folders"), rows)


def setting_tables(groups: Sequence[Group]) -> tuple[Table, Table]:
    """(settings that differ, a column for each group; settings that all share).

    What only some of the systems have stands last.
    """
    flat = [settings.flatten(group.config) for group in groups]
    show = lambda values, key: (str(values[key]) or '""') if key in values else ABSENT
    differing = []
    shared = []
    for key in sorted(set().union(*flat)):
        texts = [show(values, key) for values in flat]
        if len(set(texts)) > 1:
            differing.append([Cell(key), *map(Cell, texts)])
        else:
            shared.append([Cell(key), Cell(texts[0])])
    differing.sort(key=lambda row: ABSENT in [cell.text for cell in row])
    head = ("setting", *map(letter, groups))
    return Table(head, differing), Table(("setting", "value"), shared)


def warnings(groups: Sequence[Group]) -> list[str]:
    """Why numbers of these groups may not compare: other systems, or other data, than the first."""
    first = groups[0]
    data = settings.flatten(first.config.get("data", {}))
    out = []
    for other in groups[1:]:
        ours, theirs = first.config.get("system"), other.config.get("system")
        if ours != theirs:
            out.append(f"warning: {letter(other)} is a run of {theirs}, {letter(first)} of {ours}")
        found = settings.flatten(other.config.get("data", {}))
        keys = [k for k in sorted({*data, *found} - {"root"}) if data.get(k) != found.get(k)]
        if keys:
            keys.sort(key=lambda key: key != "name")
            named = ", ".join(f"data.{key}" for key in keys[:MAX_KEYS])
            more = f" and {len(keys) - MAX_KEYS} more" if len(keys) > MAX_KEYS else ""
            out.append(
                f"warning: {letter(other)} saw other data than {letter(first)}, in {named}{more}: "
                "their numbers may not compare"
            )
    return out


def rank_table(groups: Sequence[Group]) -> tuple[Table, list[str]]:
    """Differences over the queries of the folders that hold ranks.npz, and remarks."""
    folders = [path for g in groups for path in g.folders if (path / "ranks.npz").is_file()]
    rows = []
    remarks = []
    for other in folders[1:]:
        found = rank_differences(folders[0] / "ranks.npz", other / "ranks.npz")
        if found is None:
            remarks.append(f"not paired: {other.name} ranked other queries than {folders[0].name}")
            continue
        for metric, d in found.items():
            rows.append(
                [
                    Cell(f"{other.name} minus {folders[0].name}"),
                    Cell(metric),
                    Cell(f"{d.mean:+.4g}", exact=repr(d.mean), number=True),
                    Cell(_interval(d.low, d.high), strong=d.low > 0 or d.high < 0, number=True),
                ]
            )
    return Table(("difference", "metric", "of means", "95 % interval over queries"), rows), remarks


def system_figures(groups: Sequence[Group]) -> Mapping[str, Picture | Rows]:
    """What the one common system has to say of its runs; {} where it offers no `compare`."""
    systems = {str(group.config.get("system")) for group in groups}
    system = systems.pop()
    if systems or system not in names.systems():
        return {}
    offer: Any = getattr(names.system_module(system), "compare", None)
    return offer([path for group in groups for path in group.folders]) if offer else {}


def _interval(low: float, high: float) -> str:
    return "one seed" if math.isnan(low) else f"[{number(low)}, {number(high)}]"


def _wrap(text: str) -> str:
    """Text of lines that fit the terminal; a path stays whole."""
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def compare(workdirs: Sequence[str | Path]) -> tuple[str, str]:
    """Compares runs: (text for a terminal, HTML page).

    Raises:
        UserError: a folder that is no finished run (the missing file is named), or a damaged file.
    """
    groups, remarks = load_groups(workdirs)
    headline = headline_metrics(groups)
    metrics = list_metrics(groups, headline)
    overview = overview_table(groups)
    differing, shared = setting_tables(groups)
    ranks, unpaired = rank_table(groups)
    remarks = [*warnings(groups), *remarks, *unpaired]
    sections = [report.figure_section(title, f) for title, f in system_figures(groups).items()]
    if ranks.rows:
        note = "Means over the same queries; 2,000 paired bootstrap resamples of the queries."
        sections.append(report.Section("Query by query", note, ranks))

    text = [text_table(overview, WIDTH), *map(_wrap, remarks)]
    if differing.rows:
        short = differing._replace(rows=differing.rows[:MAX_SETTINGS])
        text += ["", text_table(short, WIDTH)]
        if len(differing.rows) > MAX_SETTINGS:
            text.append(f"  {len(differing.rows) - MAX_SETTINGS} more differ: see the page")
    if shared.rows:
        text.append(f"  {len(shared.rows)} settings are the same: see the page")
    text += terminal_tables(groups, metrics)
    for section in sections:
        if section.table:
            text += ["", section.title, text_table(section.table, WIDTH), _wrap(section.note)]
    text += ["", _wrap(NOTE)]

    body = "<h1>Comparison of runs</h1>\n" + html_table(overview)
    body += "".join(f"<p class=warn>{escape(line)}</p>\n" for line in remarks)
    if differing.rows:
        note = "The rest of the config is the same for all."
        is_long = len(differing.rows) > MAX_SETTINGS
        title = f"{len(differing.rows)} settings that differ"
        body += report.render(report.Section(title, note, differing, folded=is_long))
    if shared.rows:
        body += report.render(report.Section("Settings all share", "", shared, folded=True))
    body += f"<h2>Results</h2>\n<p class=note>{escape(NOTE)}</p>\n"
    body += "".join(_metric_html(groups, name) for name in headline)
    rest = "".join(_metric_html(groups, name) for name in metrics if name not in headline)
    if headline and rest:
        count = len(metrics) - len(headline)
        rest = f"<details><summary>{count} more metrics</summary>\n{rest}</details>\n"
    body += rest + "".join(map(report.render, sections)) + _overlays(groups, metrics)
    return "\n".join(text), page("Comparison of runs", body)


def _metric_html(groups: Sequence[Group], name: str) -> str:
    values, differences = metric_tables(groups, name)
    below = html_table(differences) if differences else ""
    return f"<h3>{escape(name)}</h3>\n{html_table(values)}{below}"


def _overlays(groups: Sequence[Group], first: Sequence[str]) -> str:
    """Learning curves of the groups over each other."""
    by_group = {g.label: plots.curves(g.records) for g in groups}
    keys = {key for found in by_group.values() for key in found}
    place = {name: index for index, name in enumerate(first)}
    order = sorted(
        keys, key=lambda k: (place.get(k, len(place)), k.startswith("train/"), "loss" not in k,
                             plots.natural(k))
    )  # fmt: skip
    pictures = []
    for key in order[: report.MAX_PLOTS]:
        lines = [f[key]._replace(label=label) for label, f in by_group.items() if key in f]
        caption = f"By training step, one line for each of {len(lines)} groups of runs."
        if len(lines) > plots.LINES:
            caption = f"By training step, the first {plots.LINES} of {len(lines)} groups."
        pictures.append((key, Picture(plots.draw(key, lines[: plots.LINES]), caption)))
    if not pictures:
        return ""
    rest = ", ".join(order[report.MAX_PLOTS :])
    more = f"<p class=note>Not drawn: {escape(rest)}</p>\n" if rest else ""
    note = plots.legend([curve for found in by_group.values() for curve in found.values()])
    section = report.Section("Learning curves", note, pictures=tuple(pictures))
    return report.render(section) + more


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
