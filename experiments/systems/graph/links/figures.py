# SPDX-License-Identifier: Apache-2.0
"""Tables and pictures of link predictors: beside heuristics and published rows, sizes of subgraphs,
and what is read around one link."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments.runner.contract import Picture, Rows
from experiments.runner.plots import BLUE, INK, ORANGE, RED, TYPE, color_bar, new_axes, png, style
from experiments.systems.graph.links.scores import Evaluation
from graph import heuristics

SHOWN_LINKS = 500  # positives, and as many negatives
READABLE_NODES = 40  # of a picture of a subgraph
COLUMNS = ("auc", "ap", "mrr", "hits@1", "hits@3", "hits@10", "hits@50")
# Published test rows of other papers' protocols on the same files: (row, {column: value}, source).
SEAL = "SEAL, Zhang and Chen 2018 [secondary]"
WALKPOOL = "WalkPool, Pan et al. 2022 [secondary]"
PUBLISHED = {
    ("USAir", "original"): (("SEAL", {"auc": 0.966}, SEAL), ("WalkPool", {"auc": 0.987}, WALKPOOL)),
    ("PB", "original"): (("SEAL", {"auc": 0.947}, SEAL), ("WalkPool", {"auc": 0.956}, WALKPOOL)),
    ("Yeast", "original"): (("SEAL", {"auc": 0.979}, SEAL), ("WalkPool", {"auc": 0.984}, WALKPOOL)),
    ("Power", "original"): (("SEAL", {"auc": 0.876}, SEAL), ("WalkPool", {"auc": 0.926}, WALKPOOL)),
    ("Router", "original"): (
        ("SEAL", {"auc": 0.964}, SEAL),
        ("WalkPool", {"auc": 0.973}, WALKPOOL),
    ),
    ("citeseer", "original"): (
        ("PENCIL, no features", {"mrr": 0.4751}, "Truong et al. 2026 [secondary]"),
        ("PENCIL, features", {"mrr": 0.4374}, "Truong et al. 2026 [secondary]"),
        ("NCNC, features", {"mrr": 0.6403}, "as quoted there [secondary]"),
        ("LPFormer, features", {"mrr": 0.6542}, "as quoted there [secondary]"),
    ),
    ("citeseer", "heart"): (
        ("PENCIL, no features", {"mrr": 0.1650}, "Truong et al. 2026 [secondary]"),
        ("PENCIL, features", {"mrr": 0.1680}, "Truong et al. 2026 [secondary]"),
        ("NCN, features", {"mrr": 0.2865}, "as quoted there [secondary]"),
    ),
    ("pubmed", "original"): (
        ("PENCIL, no features", {"mrr": 0.3828}, "Truong et al. 2026 [secondary]"),
        ("PENCIL, features", {"mrr": 0.3834}, "Truong et al. 2026 [secondary]"),
        ("NBFNet, features", {"mrr": 0.4473}, "as quoted there [secondary]"),
    ),
}
Figures = Callable[[Any, Mapping[str, Any]], dict[str, Picture | Rows]]


def compare_rows(
    config: ConfigDict, rows: Mapping[str, Any], ours: Mapping[str, Any] | None
) -> Rows:
    """Lists this run, the heuristics on the same links, and published rows."""

    def cells(name: str, suffix: str = "", metrics: Mapping[str, Any] = rows) -> tuple[Any, ...]:
        return tuple(float(metrics[f"{name}test/{column}{suffix}"]) for column in COLUMNS)

    out: list[tuple[Any, ...]] = []
    if ours is not None:
        draws = config.eval.draws
        how = f"mean of {draws} draws of the sample" if "test/tokens" in ours else "this run"
        out.append((f"{config.system} (this run)", *cells("", "", ours), how))
        if "test/tokens" in ours:
            out.append((f"{config.system} (this run)", *cells("", "/one_draw", ours), "one draw"))
    for name in heuristics.NAMES:
        if f"{name}/test/auc" in rows:
            out.append((name, *cells(f"{name}/"), "no training, same links"))
    if "gnn/test/auc" in rows:
        out.append(("gnn", *cells("gnn/"), f"GCN, {config.peer.steps} updates, same links"))
    group = config.data
    published = PUBLISHED.get((group.name, group.protocol), ()) if group.split == "fixed" else ()
    for name, values, source in published:
        out.append((name, *(values.get(c, "") for c in COLUMNS), source))
    caption = (
        "Links of the test told from pairs without a link, highest is best: this run, rows without "
        "training on the same links, and published ones. hits@K by rank among a link's negatives, "
        "ties in the middle."
    )
    if any("auc" in values for _, values, _ in published):
        here = f"split {group.index}" if group.index >= 0 else "the same"
        caption += f" Published rows: mean over the ten fixed splits; this run: {here}."
    return Rows(("row", *COLUMNS, "protocol or source"), tuple(out), caption)


def card_rows(card: Mapping[str, Any]) -> Rows:
    """Lists the counts of the graph and its split."""
    caption = (
        "Counts of the graph and its split. isolated_ends: links of validation and test with an "
        "end that has no edge in the graph; loops, duplicates: left out on reading."
    )
    plain = {k: str(v) if isinstance(v, bool) else v for k, v in card.items()}
    return Rows(("", "value"), tuple(plain.items()), caption)


def draw_sizes(tokens: np.ndarray, dropped: np.ndarray, positives: np.ndarray) -> Picture:
    """Draws a histogram of the tokens of test links, positives and negatives apart."""
    figure, ((axes,),) = new_axes(7.5, 2.8)
    bins = np.linspace(0, tokens.max() + 1, 40)
    sides = ((positives, "positives", BLUE), (~positives, "negatives", ORANGE))
    for in_side, label, color in sides:
        share = np.full(in_side.sum(), 1 / max(in_side.sum(), 1))
        axes.hist(tokens[in_side], bins, weights=share, alpha=0.6, color=color, label=label)
    axes.set_xlabel("tokens of a link (nodes of its subgraph)")
    axes.set_ylabel("share of links")
    style(axes)
    caption = (
        f"How many nodes are read for a test link: {tokens.mean():.0f} on average, at most "
        f"{tokens.max()}; {dropped.mean():.2f} nodes a link found no slot. Where both histograms "
        "agree, size alone does not give the answer away."
    )
    return Picture(png(figure), caption)


def place_nodes(adjacency: np.ndarray) -> np.ndarray:
    """Places nodes in the plane, float [N, 2]: s left, t right, others between by which end is
    nearer, in columns of equal difference of distance."""
    from_source, from_target = (measure_distances(adjacency, root) for root in (0, 1))
    lean = np.clip(from_source - from_target, -2, 2) / 2.0
    lean[:2] = (-1.7, 1.7)
    height = np.zeros(len(adjacency))
    for column in np.unique(lean[2:]):
        members = np.flatnonzero(lean == column)
        members = members[members > 1]
        by_degree = members[np.argsort(-adjacency[members].sum(1), kind="stable")]
        height[by_degree] = np.linspace(-1, 1, len(by_degree) + 2)[1:-1]
    return np.stack([lean, height], 1)


def measure_distances(adjacency: np.ndarray, root: int) -> np.ndarray:
    """Counts steps from a root, float [N]; as many as there are nodes where nothing leads."""
    unreached = len(adjacency)
    distance = np.full(unreached, float(unreached))
    frontier = np.arange(unreached) == root
    step = 0
    while frontier.any():
        distance[frontier] = step
        step += 1
        frontier = adjacency[frontier].any(0) & (distance == unreached)
    return distance


def draw_link(
    adjacency: np.ndarray, names: Sequence[str], weights: Sequence[np.ndarray]
) -> Picture:
    """Draws a link's subgraph; one panel per end, nodes colored by how much its task token reads
    them.

    Args:
        adjacency: bool [N, N]; names: [N]; weights: of each end [N], >= 0.
    """
    at = place_nodes(adjacency)
    all_labeled = len(names) <= READABLE_NODES
    figure, (panels,) = new_axes(10, 4, columns=len(weights))
    for panel, weight, end in zip(panels, weights, names[:2], strict=False):
        for i, j in zip(*np.nonzero(np.triu(adjacency)), strict=True):
            panel.plot(at[[i, j], 0], at[[i, j], 1], color=INK, linewidth=0.4, zorder=1)
        panel.plot(at[:2, 0], at[:2, 1], color=RED, linewidth=1, linestyle=":", zorder=1)
        shown = panel.scatter(
            at[:, 0], at[:, 1], c=weight, s=60, cmap="viridis", edgecolors="white", zorder=2
        )
        for index, name in enumerate(names):
            if all_labeled or index < 2:
                panel.annotate(name, at[index], fontsize=TYPE, color=INK, ha="center",
                               va="bottom", xytext=(0, 4), textcoords="offset points")  # fmt: skip
        style(panel, f"read for {end}", grid=None)
        panel.set_axis_off()
        color_bar(figure, shown, panel, "attention weight")
    caption = (
        f"Nodes around {names[0]} and {names[1]}, the likeliest small link of the test, colored by "
        "how much the task token of each end reads them in the last layer. Dotted: the link in "
        "question, which the model does not see."
    )
    return Picture(png(figure), caption)


def make_figures(
    config: ConfigDict,
    artifacts: Mapping[str, Any],
    evaluation: Evaluation,
    around: Callable[[Any, np.ndarray], dict[str, Picture | Rows]] | None = None,
) -> Figures:
    """Makes the report of a learned predictor.

    Args:
        evaluation: of the run.
        around: (state, the likeliest test link int32 [1, 2]) -> what to show of it.
    """

    def figures(records: Any, state: Mapping[str, Any]) -> dict[str, Picture | Rows]:
        tests = [r for r in records if r["split"] == "test"]
        out: dict[str, Picture | Rows] = {
            "Side by side": compare_rows(config, artifacts["rows"], tests[-1] if tests else None)
        }
        links = evaluation.loaded().links("test")
        count = min(len(links.pos), SHOWN_LINKS)
        negatives = links.neg.reshape(-1, 2)[:count]
        pairs = np.concatenate([links.pos[:count], negatives])
        _, scores = evaluation.draws(state, "test", pairs, 1)
        if scores.tokens.any():
            is_positive = np.arange(len(pairs)) < count
            out["Sizes of subgraphs"] = draw_sizes(scores.tokens, scores.dropped, is_positive)
        if around is not None:
            # Larger subgraphs are no picture anyone can read.
            is_small = scores.tokens[:count] <= READABLE_NODES
            likeliest = int(np.argmax(np.where(is_small, scores.logits[:count], -np.inf)))
            out |= around(state, pairs[[likeliest]])
        out["Data card"] = card_rows(artifacts["card"])
        return out

    return figures


def make_heuristic_figures(config: ConfigDict, artifacts: Mapping[str, Any]) -> Figures:
    """Makes the report of the rows without training."""

    def figures(records: Any, state: Mapping[str, Any]) -> dict[str, Picture | Rows]:
        del state
        out: dict[str, Picture | Rows] = {}
        for rows in [r for r in records if r["split"] == "test"][-1:]:
            out["Side by side"] = compare_rows(config, rows, None)
            out["AUC and MRR"] = draw_bars(rows)
        return out | {"Data card": card_rows(artifacts["card"])}

    return figures


def draw_bars(rows: Mapping[str, Any]) -> Picture:
    """Draws AUC and MRR of every heuristic, with the deviation over splits where there is one."""
    names = [n for n in heuristics.NAMES if f"{n}/test/auc" in rows]
    figure, (panels,) = new_axes(9, 3.0, columns=2)
    for panel, metric in zip(panels, ("auc", "mrr"), strict=True):
        values = [float(rows[f"{n}/test/{metric}"]) for n in names]
        spread = [float(rows.get(f"{n}/test/{metric}/std", 0)) for n in names]
        panel.bar(names, values, yerr=spread if any(spread) else None, color=BLUE, ecolor=INK)
        panel.set_ylabel(metric)
        style(panel)
        panel.tick_params(axis="x", labelrotation=45)
    caption = (
        "Every heuristic on the test links, highest is best. Lines on the bars, where there are "
        "any: standard deviation over splits."
    )
    return Picture(png(figure), caption)
