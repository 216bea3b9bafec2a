# SPDX-License-Identifier: Apache-2.0
"""Draws the plots of experiments/results as SVG: the same data give the same bytes.

One style for all: colors of Okabe and Ito, which color-blind readers tell apart, letters that are
readable at half of a page's width, a white ground. Text is drawn as outlines, so a picture looks
alike everywhere; its words stand in <title> and <desc>, its data as JSON in <metadata>.
"""

import io
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from experiments.runner.result_series import BEGIN, END, Data, Plot

BLUE = "#0072B2"
ORANGE = "#D55E00"
GREEN = "#009E73"
PINK = "#CC79A7"
YELLOW = "#E69F00"
SKY = "#56B4E9"
INK = "#333333"
GREY = "#8a8f98"
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "banyan-stack",
    "svg.fonttype": "path",
    "path.simplify": True,
    "font.size": 12,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 13,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 12,
    "axes.axisbelow": True,
    "grid.color": "#e3e6eb",
    "grid.linewidth": 0.8,
    "lines.linewidth": 2,
    "figure.facecolor": "white",
    "text.parse_math": False,
}
SIZE = (5.6, 4.0)


def _spread_labels(values: Sequence[float], distance: float) -> list[float]:
    """Positions at or below `values` that keep a distance from each other, the highest first."""
    order = sorted(range(len(values)), key=lambda i: -values[i])
    spread = [0.0] * len(values)
    above = float("inf")
    for index in order:
        above = min(values[index], above - distance)
        spread[index] = above
    return spread


def _band(axes: Axes, x: Sequence[float], rows: Sequence[Sequence[float]], color: str) -> None:
    """Mean over seeds with the range of the seeds."""
    values = np.asarray(rows)
    axes.fill_between(x, values.min(1), values.max(1), color=color, alpha=0.22, linewidth=0)
    axes.plot(x, values.mean(1), color=color, marker="o", markersize=6)


def draw_shift(data: Data) -> Figure:
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    small = data["small"]
    for name, color in (("d1", BLUE), ("d2", ORANGE)):
        axes.plot(small["phases"], small[name], color=color, linewidth=1.1, linestyle=(0, (3, 2)))
        _band(axes, (0.0, 1.0, 2.0), data["base"][name], color)
    axes.axvline(1, color=GREY, linewidth=1)
    axes.text(1.03, 0.02, "shift", color=GREY, fontsize=12)
    axes.text(0.08, 0.84, "first layouts", color=BLUE, fontweight="bold")
    axes.text(1.37, 0.42, "next layouts", color=ORANGE, fontweight="bold")
    axes.set(ylim=(0, 1.04), xlim=(0, 2.04), ylabel="success", title="Success across a shift")
    axes.set_xticks((0, 1, 2), ("untrained", "trained on first", "trained on next"))
    axes.get_xticklabels()[0].set_horizontalalignment("left")
    axes.get_xticklabels()[2].set_horizontalalignment("right")
    axes.grid(axis="y")
    seeds = len(data["base"]["d1"][0])
    note = f"solid: base, {seeds} seeds and their range; dashed: small, 1 seed"
    axes.set_xlabel(note, fontsize=11, color=GREY)
    return figure


def draw_gap(data: Data) -> Figure:
    figure = Figure(figsize=SIZE, layout="constrained")
    panels = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    for axes, (axis, panel), color in zip(panels, data.items(), (BLUE, GREEN), strict=True):
        x = list(range(len(panel["sizes"])))
        axes.plot(x, [np.mean(g) for g in panel["gaps"]], color=color)
        for place, values in zip(x, panel["gaps"], strict=True):
            axes.plot([place] * len(values), values, "o", color=color, markersize=6)
        for size, side, bound in panel["bounds"]:
            place = panel["sizes"].index(size)
            axes.plot((place - 0.3, place + 0.3), (bound, bound), color=INK, linewidth=1.6)
            arrow = "^" if side == ">=" else "v"
            shift = 0.025 if side == ">=" else -0.025
            axes.plot(place + 0.24, bound + shift, arrow, color=INK, markersize=5)
        axes.set_xticks(x, [f"{size:,}" for size in panel["sizes"]])
        axes.set(xlabel=f"number of {axis}", xlim=(-0.5, len(x) - 0.5), ylim=(-0.03, 1))
        axes.grid(axis="y")
    panels[0].set(ylabel="success lost at the shift", title="Diversity closes the gap")
    note = "dots: seeds; bars: must pass"
    panels[1].set_title(note, fontsize=11, color=GREY, fontweight="normal", loc="right")
    return figure


def draw_recall(data: Data) -> Figure:
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    learned = {label: rows for label, rows in data["learned"].items()}
    rows = [(np.mean([r[0] for r in found]), label, found) for label, found in learned.items()]
    rows += [(value, label, None) for label, value in data["baselines"].items()]
    rows.sort(key=lambda row: row[0])
    labels = []
    for place, (value, label, found) in enumerate(rows):
        labels.append({"item_knn": "item-kNN", "cooccurrence": "co-occurrence"}.get(label, label))
        if found is None:
            axes.plot(value, place, "o", color=GREY, markersize=9)
            continue
        offsets = np.linspace(-0.22, 0.22, len(found)) if len(found) > 1 else [0.0]
        color = ORANGE if "shuffled" in label else BLUE
        for offset, (mean, low, high) in zip(offsets, found, strict=True):
            axes.plot((low, high), (place + offset, place + offset), color=color, linewidth=1.6)
            axes.plot(mean, place + offset, "o", color=color, markersize=6)
    best = max(data["baselines"].values())
    axes.axvline(best, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_yticks(range(len(rows)), labels)
    for tick, (_, _, found) in zip(axes.get_yticklabels(), rows, strict=True):
        tick.set_color(GREY if found is None else INK)
    axes.tick_params(axis="y", length=0)
    axes.set(xlim=(0, None), ylim=(-0.6, len(rows) - 0.4))
    axes.set_title("recall@10 on Beauty, 8-core", loc="left")
    axes.set_xlabel("a dot a seed, 95 % over users; grey: no training", fontsize=11, color=GREY)
    axes.grid(axis="x")
    return figure


SYSTEMS = {"pencil": ("PENCIL", BLUE, "o"), "seal": ("SEAL", GREEN, "s"),
           "ncn": ("NCN", YELLOW, "D"), "gnn": ("GCN", PINK, "^")}  # fmt: skip
HEURISTIC_NAMES = {"ra": "RA", "ppr": "PageRank", "katz": "Katz", "aa": "AA", "cn": "CN",
                   "spd": "distance", "pa": "PA", "jaccard": "Jaccard"}  # fmt: skip


def draw_links(data: Data) -> Figure:
    figure = Figure(figsize=SIZE, layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    graphs = list(data)
    for axes, metric in zip(panels, ("auc", "mrr"), strict=True):
        for place, graph in enumerate(reversed(graphs)):
            panel = data[graph][metric]
            present = [s for s in SYSTEMS if s in panel["gaps"]]
            offsets = np.linspace(0.27, -0.27, 4) if len(present) > 1 else [0.0]
            for offset, system in zip(offsets, present, strict=False):
                _, color, marker = SYSTEMS[system]
                mean, *interval = panel["gaps"][system]
                if interval:
                    axes.plot(
                        interval, (place + offset, place + offset), color=color, linewidth=1.6
                    )
                axes.plot(mean, place + offset, marker, color=color, markersize=7)
            side = min(panel["gaps"][s][0] for s in present) > -0.02
            axes.annotate(
                HEURISTIC_NAMES[panel["heuristic"]], (0, place - 0.46), fontsize=10, color=GREY,
                ha="right" if side else "left", xytext=(-4 if side else 4, 0),
                textcoords="offset points", va="center",
            )  # fmt: skip
        axes.axvline(0, color=INK, linewidth=1.2)
        axes.set_title(metric.upper(), fontsize=12)
        axes.grid(axis="x")
        axes.margins(x=0.12)
        axes.set_ylim(-0.65, len(graphs) - 0.45)
        axes.locator_params(axis="x", nbins=4)
        axes.tick_params(axis="y", length=0)
    panels[0].set_yticks(range(len(graphs)), [g.replace(", ", "\n") for g in reversed(graphs)])
    figure.suptitle("Minus the best heuristic of each graph", x=0.02, ha="left", fontsize=13,
                    fontweight="bold")  # fmt: skip
    handles = [
        Line2D([], [], linestyle="", color=c, marker=m, markersize=7, label=label)
        for label, c, m in SYSTEMS.values()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False,
                  handletextpad=0.2, columnspacing=1.2)  # fmt: skip
    return figure


def draw_kinds(data: Data) -> Figure:
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    points = {kind: (np.mean(p["zeros"]), np.mean(p["loss"])) for kind, p in data["kinds"].items()}
    for kind, point in data["kinds"].items():
        zeros, loss = points[kind]
        color = BLUE if kind.startswith("tda") else ORANGE if zeros > 0.01 else GREY
        axes.errorbar(
            zeros, loss, xerr=np.std(point["zeros"], ddof=1), yerr=np.std(point["loss"], ddof=1),
            fmt="o", color=color, markersize=7, linewidth=1.4,
        )  # fmt: skip
    dense = [kind for kind, (zeros, _) in points.items() if zeros <= 0.01]
    places = _spread_labels([points[kind][1] for kind in dense], 0.022)
    for kind, place in zip(dense, places, strict=True):
        axes.text(0.035, place, kind, va="center", fontsize=12)
    for kind, (zeros, loss) in points.items():
        if kind not in dense:
            right = zeros > 0.6
            axes.annotate(
                kind, (zeros, loss), xytext=(-9 if right else 9, 7), textcoords="offset points",
                ha="right" if right else "left", fontsize=12,
            )  # fmt: skip
    axes.axhline(data["bigram"], color=GREY, linewidth=1, linestyle=(0, (4, 3)))
    axes.text(0.0, data["bigram"] - 0.006, "counting pairs", color=GREY, va="top", fontsize=11)
    axes.set(xlim=(-0.04, 1.04), ylabel="loss, nats per character")
    axes.set_title("Loss against exact zeros", loc="left")
    axes.set_xlabel("share of weights exactly zero (300 updates, 3 seeds ± sd)", fontsize=11)
    axes.grid()
    return figure


def draw_passkey(data: Data) -> Figure:
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    lengths = data["lengths"]
    colors = {"softmax": GREY, "ssmax": GREEN, "diff": PINK, "rela": YELLOW, "tra": SKY}
    ends = [values[0] for values in data["accuracy"].values()]
    places = _spread_labels(ends, 0.062)
    for (kind, values), place in zip(data["accuracy"].items(), places, strict=True):
        color = colors.get(kind, BLUE)
        dash = {"tda beta=0.25": "-", "tda": "--", "tda beta=1.0": ":"}.get(kind, "-")
        axes.plot(lengths, values, color=color, marker="o", markersize=4, linestyle=dash)
        axes.annotate(
            kind, (lengths[0], values[0]), xytext=(lengths[0] * 0.9, place), ha="right",
            va="center", color=color if color != SKY else "#2b7fb0", fontsize=12,
        )  # fmt: skip
    axes.axhline(data["chance"], color=INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(lengths))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([str(length) for length in lengths])
    axes.set_xlim(lengths[0] * 0.93, lengths[-1] * 1.05)
    axes.set_ylim(0, 1.03)
    axes.spines["left"].set_visible(False)
    axes.yaxis.tick_right()
    axes.set_title("Passkey accuracy by length", loc="left")
    note = f"tokens (trained at {lengths[0]}; one seed; dashed line: chance)"
    axes.set_xlabel(note, fontsize=11)
    axes.grid(axis="y")
    return figure


def draw_ratios(data: Data) -> Figure:
    figure = Figure(figsize=(5.6, 4.8), layout="constrained")
    axes = figure.subplots()
    labels = sorted(data, key=lambda label: data[label])
    colors = [BLUE if data[label] >= 1 else ORANGE for label in labels]
    values = [data[label] for label in labels]
    axes.hlines(range(len(labels)), 1, values, colors=colors, linewidth=1.6)
    axes.scatter(values, range(len(labels)), s=49, c=colors)
    for place, value in enumerate(values):
        axes.annotate(
            f"{value:.2g}", (value, place), xytext=(8 if value >= 1 else -8, 0), fontsize=10.5,
            textcoords="offset points", ha="left" if value >= 1 else "right", va="center",
        )  # fmt: skip
    axes.axvline(1, color=INK, linewidth=1.2)
    axes.set_xscale("log")
    axes.set_yticks(range(len(labels)), labels, fontsize=10.5)
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(min(data.values()) / 6, max(data.values()) * 3.5)
    axes.xaxis.set_major_locator(FixedLocator([0.1, 1, 10]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels(["0.1", "1", "10"])
    axes.set_xlabel("times as fast, same run, one CPU", fontsize=11)
    figure.suptitle("Speed against a peer", x=0.02, ha="left", fontsize=13, fontweight="bold")
    return figure


DRAW = {
    "shift": draw_shift,
    "gap": draw_gap,
    "recall": draw_recall,
    "links": draw_links,
    "kinds": draw_kinds,
    "passkey": draw_passkey,
    "ratios": draw_ratios,
}


def svg(plot: Plot, data: Mapping[str, Any]) -> str:
    """One picture with its words and its data inside."""
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure = DRAW[plot.name](data)
        FigureCanvasSVG(figure)
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.DOTALL)
    held = json.dumps(data, separators=(",", ":"), ensure_ascii=True)
    words = (
        f'<title id="title">{escape(plot.title)}</title>\n'
        f'<desc id="desc">{escape(plot.alt(data))}</desc>\n{BEGIN}{held}{END}\n'
    )
    role = ' role="img" aria-labelledby="title desc">\n'
    return re.sub(
        r"(<svg\b[^>]*)>\n", lambda match: match[1] + role + words, _shorter(text), count=1
    )


def _shorter(text: str) -> str:
    """Two decimals, which is a hundredth of a point, but in scales; and no indentation."""
    text = re.sub(r"(?<!scale\()(?<![\d.])(\d+\.\d{2})\d+", r"\1", text)
    lines = (line.strip() for line in text.splitlines())
    return "\n".join(line for line in lines if line) + "\n"
