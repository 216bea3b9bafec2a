# SPDX-License-Identifier: Apache-2.0
"""Tables and pictures of link predictors: beside heuristics and published rows, sizes of subgraphs,
and what is read around one link."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from experiments.runner.contract import Rows
from experiments.runner.plots import png
from experiments.systems.graph.links.scores import Evaluation
from graph import heuristics

SHOWN_LINKS = 500  # positives, and as many negatives
READABLE_NODES = 40  # of a picture of a subgraph
COLUMNS = ("auc", "ap", "mrr", "hits@1", "hits@3", "hits@10", "hits@50")
BLUE = "#3b6ea5"
RED = "#b5483a"
GRAY = "#9a9a9a"
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
Figures = Callable[[Any, Mapping[str, Any]], dict[str, bytes | Rows]]


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
    note = "hits@K by rank among a link's negatives, ties in the middle."
    if any("auc" in values for _, values, _ in published):
        here = f"split {group.index}" if group.index >= 0 else "the same"
        note += f" Published rows: mean over the ten fixed splits; this run: {here}."
    return Rows(("row", *COLUMNS, "protocol or source"), tuple(out), note)


def card_rows(card: Mapping[str, Any]) -> Rows:
    """Lists the counts of the graph and its split."""
    note = (
        "isolated_ends: links of validation and test with an end that has no edge in the graph; "
        "loops, duplicates: left out on reading."
    )
    plain = {k: str(v) if isinstance(v, bool) else v for k, v in card.items()}
    return Rows(("", "value"), tuple(plain.items()), note)


def draw_sizes(tokens: np.ndarray, dropped: np.ndarray, positives: np.ndarray) -> bytes:
    """Draws a histogram of the tokens of test links, positives and negatives apart."""
    figure = Figure(figsize=(6.5, 2.8))
    axes = figure.subplots()
    bins = np.linspace(0, tokens.max() + 1, 40)
    sides = ((positives, "positives", BLUE), (~positives, "negatives", GRAY))
    for in_side, label, color in sides:
        share = np.full(in_side.sum(), 1 / max(in_side.sum(), 1))
        axes.hist(tokens[in_side], bins, weights=share, alpha=0.6, color=color, label=label)
    axes.set_xlabel("tokens of a link (nodes of its subgraph)")
    axes.set_ylabel("share of links")
    axes.set_title(
        f"mean {tokens.mean():.0f}, most {tokens.max()}; {dropped.mean():.2f} nodes a link found "
        "no slot",
        fontsize=9,
    )
    axes.legend(fontsize=8)
    figure.tight_layout()
    return png(figure)


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
    adjacency: np.ndarray, names: Sequence[str], weights: Sequence[np.ndarray], title: str
) -> bytes:
    """Draws a link's subgraph; one panel per end, nodes colored by how much its task token reads
    them.

    Args:
        adjacency: bool [N, N]; names: [N]; weights: of each end [N], >= 0.
    """
    at = place_nodes(adjacency)
    all_labeled = len(names) <= READABLE_NODES
    figure = Figure(figsize=(10, 4))
    panels = figure.subplots(1, len(weights), squeeze=False)[0]
    for panel, weight, end in zip(panels, weights, names[:2], strict=False):
        for i, j in zip(*np.nonzero(np.triu(adjacency)), strict=True):
            panel.plot(at[[i, j], 0], at[[i, j], 1], color=GRAY, linewidth=0.4, zorder=1)
        panel.plot(at[:2, 0], at[:2, 1], color=RED, linewidth=1, linestyle=":", zorder=1)
        shown = panel.scatter(
            at[:, 0], at[:, 1], c=weight, s=60, cmap="viridis", edgecolors="white", zorder=2
        )
        for index, name in enumerate(names):
            if all_labeled or index < 2:
                panel.annotate(name, at[index], fontsize=7, ha="center", va="bottom")
        panel.set_title(f"read for {end}", fontsize=9)
        panel.set_axis_off()
        figure.colorbar(shown, ax=panel, shrink=0.7)
    figure.suptitle(title, fontsize=9)
    figure.tight_layout()
    return png(figure)


def make_figures(
    config: ConfigDict,
    artifacts: Mapping[str, Any],
    evaluation: Evaluation,
    around: Callable[[Any, np.ndarray], dict[str, bytes | Rows]] | None = None,
) -> Figures:
    """Makes the report of a learned predictor.

    Args:
        evaluation: of the run.
        around: (state, the likeliest test link int32 [1, 2]) -> what to show of it.
    """

    def figures(records: Any, state: Mapping[str, Any]) -> dict[str, bytes | Rows]:
        tests = [r for r in records if r["split"] == "test"]
        out: dict[str, bytes | Rows] = {
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

    def figures(records: Any, state: Mapping[str, Any]) -> dict[str, bytes | Rows]:
        del state
        out: dict[str, bytes | Rows] = {}
        for rows in [r for r in records if r["split"] == "test"][-1:]:
            out["Side by side"] = compare_rows(config, rows, None)
            out["AUC and MRR"] = draw_bars(rows)
        return out | {"Data card": card_rows(artifacts["card"])}

    return figures


def draw_bars(rows: Mapping[str, Any]) -> bytes:
    """Draws AUC and MRR of every heuristic, with the deviation over splits where there is one."""
    names = [n for n in heuristics.NAMES if f"{n}/test/auc" in rows]
    figure = Figure(figsize=(8, 2.8))
    for panel, metric in zip(figure.subplots(1, 2), ("auc", "mrr"), strict=True):
        values = [float(rows[f"{n}/test/{metric}"]) for n in names]
        spread = [float(rows.get(f"{n}/test/{metric}/std", 0)) for n in names]
        panel.bar(names, values, yerr=spread if any(spread) else None, color=BLUE)
        panel.set_ylabel(metric)
        panel.tick_params(axis="x", labelrotation=45)
    figure.tight_layout()
    return png(figure)
