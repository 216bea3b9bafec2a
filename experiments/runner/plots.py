# SPDX-License-Identifier: Apache-2.0
"""One style for every picture of a report; learning curves of runs as PNG bytes.

Figures are objects of their own (no pyplot, no global state). Ink is a middle gray on a transparent
ground, so one picture is readable on a light and on a dark page.
"""

import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.runner.writer import RESERVED, tag

INK = "#767c86"
# Okabe and Ito: told apart with any color vision. Black is left out: it vanishes on a dark page.
COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#8a6d3b")
BLUE, ORANGE, GREEN, PINK, SKY, RED = COLORS[:6]
POINTS = 300  # longer curves are shown as means of this many equal bins
LINES = 8  # per plot
INSIDE = 1  # lines whose legend has room inside the plot; of more it stands above
TYPE = 9  # points of the smallest text: what a phone still shows at 9 pixels, see pages.py
NARROW = 26  # letters of a name that leave room for another beside it
SIZE = (4.8, 2.9)  # inches, dots per inch
DPI = 150


class Curve(NamedTuple):
    """One line: mean over seeds at each step, and their standard deviation."""

    label: str
    steps: np.ndarray  # [n]
    values: np.ndarray  # [n]
    spread: np.ndarray  # [n], 0 where there is one seed
    train: bool
    binned: bool = False


def seed_values(record: Mapping[str, Any], name: str) -> np.ndarray:
    """Values of a metric by seed, [num_seeds] or [1]."""
    values = record.get("per_seed", {}).get(name, [record[name]])
    return np.asarray(values, np.float64)


def curves(runs: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Curve]:
    """{full key: curve} of the records of runs that differ in their seed; seeds are pooled.

    Only metrics with values at two steps or more; steps that some of the runs lack are left out.
    """
    found: dict[str, dict[int, list[np.ndarray]]] = {}
    train: dict[str, bool] = {}
    for records in runs:
        for record in records:
            for name in record:
                if name in RESERVED or not isinstance(record[name], int | float):
                    continue
                key = tag(record["split"], name)
                train[key] = record["split"] == "train"
                found.setdefault(key, {}).setdefault(record["step"], []).append(
                    seed_values(record, name)
                )
    out = {}
    for key, by_step in found.items():
        most = max(len(values) for values in by_step.values())
        steps = sorted(step for step, values in by_step.items() if len(values) == most)
        if len(steps) < 2:
            continue
        with np.errstate(invalid="ignore", over="ignore"):
            pooled = [np.concatenate(by_step[step]) for step in steps]
            mean = np.array([values.mean() for values in pooled])
            std = np.array([values.std(ddof=1) if values.size > 1 else 0.0 for values in pooled])
        out[key] = thin(Curve(key, np.asarray(steps), mean, std, train[key]))
    return out


def thin(curve: Curve) -> Curve:
    """At most POINTS points: means over bins of equal size, the last bin may be smaller."""
    size = math.ceil(len(curve.steps) / POINTS)
    if size == 1:
        return curve
    starts = np.arange(0, len(curve.steps), size)
    counts = np.diff(np.append(starts, len(curve.steps)))
    with np.errstate(invalid="ignore"):
        steps, values, spread = (
            np.add.reduceat(np.asarray(array, np.float64), starts) / counts
            for array in (curve.steps, curve.values, curve.spread)
        )
    return curve._replace(steps=steps, values=values, spread=spread, binned=True)


def legend(found: Iterable[Curve]) -> str:
    """What a reader has to know about these curves."""
    found = list(found)
    lines = []
    if any(np.any(curve.spread > 0) for curve in found):
        lines.append("Bands: ± standard deviation over seeds.")
    if any(curve.binned for curve in found):
        lines.append(f"Curves of more than {POINTS} points are drawn as means of equal bins.")
    return " ".join(lines)


def natural(text: str) -> list[tuple[int, int, str]]:
    """Sort key that puts recall@5 before recall@10."""
    pieces = re.split(r"(\d+)", text)
    return [(1, int(p), "") if p.isdigit() else (0, 0, p) for p in pieces]


def family(key: str) -> str:
    """What shares a plot: the metric without its split, cutoff and last part.

    train/loss and valid/loss -> loss; test/recall@5 -> recall; valid/success/depth2 -> success.
    """
    name = key.partition("/")[2] or key
    return re.split(r"@", name.rpartition("/")[0] or name)[0]


def arrange(found: Mapping[str, Curve], first: Sequence[str]) -> list[tuple[str, list[Curve]]]:
    """(title, curves) of each plot: families of the metrics in `first`, then losses,
    then what is evaluated, then the rest."""
    families: dict[str, list[Curve]] = {}
    for key in sorted(found, key=natural):
        families.setdefault(family(key), []).append(found[key])
    wanted = {family(key) for key in first}
    only_train = {name: all(line.train for line in lines) for name, lines in families.items()}
    order = sorted(
        families, key=lambda f: (f not in wanted, "loss" not in f, only_train[f], natural(f))
    )
    plots = []
    for name in order:
        lines = families[name]
        parts = math.ceil(len(lines) / LINES)
        for i in range(parts):
            title = name if parts == 1 else f"{name} ({i + 1}/{parts})"
            plots.append((title, lines[i * LINES : (i + 1) * LINES]))
    return plots


def is_flat(lines: Sequence[Curve]) -> bool:
    """Whether no line ever moves: such a plot shows nothing that two numbers do not."""
    return all(np.ptp(line.values) == 0 and not np.any(line.spread) for line in lines)


def draw(title: str, lines: Sequence[Curve]) -> bytes:
    """One plot as PNG. Names are shown as they are: a `$` is no formula."""
    columns = 2 if max(len(line.label) for line in lines) <= NARROW else 1
    above = math.ceil(len(lines) / columns) if len(lines) > INSIDE else 0  # rows of the legend
    width, plain = SIZE
    height = plain + 0.2 * above
    figure = Figure(figsize=(width, height), dpi=DPI)
    FigureCanvasAgg(figure)
    # A layout engine would draw it all twice.
    axes = figure.add_axes((0.18, 0.43 / height, 0.8, (plain - 0.67) / height))
    for index, line in enumerate(lines):
        color = COLORS[index % len(COLORS)]
        marker = "" if line.train or len(line.steps) > 40 else "o"
        axes.plot(line.steps, line.values, color=color, marker=marker, markersize=3.5,
                  linewidth=1.3, label=line.label)  # fmt: skip
        if np.any(line.spread > 0):
            low = line.values - line.spread
            high = line.values + line.spread
            axes.fill_between(line.steps, low, high, color=color, alpha=0.18, linewidth=0)
    everything = np.concatenate([line.values for line in lines])
    everything = everything[np.isfinite(everything)]
    if everything.size and everything.min() > 0 and everything.max() > 1000 * everything.min():
        axes.set_yscale("log")
    axes.set_xlabel("training step", color=INK, fontsize=TYPE)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 5, 10], integer=True))
    axes.set_ylabel(title, color=INK, fontsize=TYPE, parse_math=False)
    axes.yaxis.set_label_coords(0.035, 0.5 * plain / height, transform=figure.transFigure)
    axes.yaxis.get_offset_text().set(color=INK, fontsize=TYPE)
    axes.tick_params(which="both", colors=INK, labelsize=TYPE)
    axes.grid(color=INK, alpha=0.22, linewidth=0.6)
    color_spines(axes)
    if above:
        legend = axes.legend(
            fontsize=TYPE,
            labelcolor=INK,
            frameon=False,
            ncols=columns,
            loc="lower left",
            bbox_to_anchor=(0.0, (plain - 0.24) / height),
            bbox_transform=figure.transFigure,
        )
    else:
        legend = axes.legend(fontsize=TYPE, labelcolor=INK, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
    out = io.BytesIO()
    figure.savefig(out, format="png", transparent=True, metadata={"Software": None})
    return out.getvalue()


def color_spines(axes: Axes) -> None:
    """Shows the left and the lower border, in the ink of the pictures."""
    for side, spine in axes.spines.items():
        spine.set_color(INK)
        spine.set_visible(side in ("left", "bottom"))


# ------------------------------------------------------------------------- pictures of the systems


def new_axes(
    width: float | int, height: float | int, columns: int = 1, rows: int = 1
) -> tuple[Figure, np.ndarray]:
    """Makes a figure of so many inches and its panels, [rows, columns], in the report's colors."""
    figure = Figure(figsize=(width, height), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for panel in panels.flat:
        panel.set_prop_cycle(color=COLORS)
    return figure, panels


def style(axes: Axes, title: str = "", grid: Literal["both", "x", "y"] | None = "y") -> None:
    """Gives finished axes the report's ink, type size and grid; its legend moves to the right."""
    if title:
        axes.set_title(
            title, color=INK, fontsize=9.5, fontweight="bold", loc="left", parse_math=False
        )
    axes.tick_params(which="both", colors=INK, labelsize=TYPE)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_color(INK)
        label.set_fontsize(TYPE)
    if grid is not None:
        axes.set_axisbelow(True)
        axes.grid(axis=grid, color=INK, alpha=0.22, linewidth=0.6)
    color_spines(axes)
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        legend = axes.legend(
            handles,
            labels,
            fontsize=TYPE,
            labelcolor=INK,
            frameon=False,
            loc="upper left",
            bbox_to_anchor=(1.0, 1.0),
        )
        for text in legend.get_texts():
            text.set_parse_math(False)


def color_bar(figure: Figure, image: ScalarMappable, panels: Any, label: str) -> None:
    """Puts a color bar with its label beside one panel or several."""
    bar = figure.colorbar(image, ax=panels, shrink=0.8)
    bar.set_label(label, color=INK, fontsize=TYPE)
    bar.ax.tick_params(colors=INK, labelsize=TYPE)
    for spine in bar.ax.spines.values():
        spine.set_color(INK)


def png(figure: Figure) -> bytes:
    """PNG bytes of a figure that a system draws for the report."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, transparent=True, metadata={"Software": None})
    return buffer.getvalue()
