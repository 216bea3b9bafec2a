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
from graph import heuristics

COLUMNS = ("auc", "ap", "mrr", "hits@1", "hits@3", "hits@10", "hits@50")
BLUE, RED, GREY = "#3b6ea5", "#b5483a", "#9a9a9a"
# Published test rows of other papers' protocols on the same files: (row, {column: value}, source).
SEAL, WALKPOOL = "SEAL, Zhang and Chen 2018 [secondary]", "WalkPool, Pan et al. 2022 [secondary]"
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


def side_by_side(
    config: ConfigDict, rows: Mapping[str, Any], ours: Mapping[str, Any] | None
) -> Rows:
    """This run, the heuristics on the same links, and published rows."""

    def cells(name: str, suffix: str = "", found: Mapping[str, Any] = rows) -> tuple[Any, ...]:
        return tuple(float(found[f"{name}test/{c}{suffix}"]) for c in COLUMNS)

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
    known = PUBLISHED.get((group.name, group.protocol), ()) if group.split == "fixed" else ()
    for name, values, source in known:
        out.append((name, *(values.get(c, "") for c in COLUMNS), source))
    note = "hits@K by rank among a link's negatives, ties in the middle."
    if any("auc" in values for _, values, _ in known):
        here = f"split {group.index}" if group.index >= 0 else "the same"
        note += f" Published rows: mean over the ten fixed splits; this run: {here}."
    return Rows(("row", *COLUMNS, "protocol or source"), tuple(out), note)


def card_rows(card: Mapping[str, Any]) -> Rows:
    """Counts of the graph and its split."""
    note = (
        "isolated_ends: links of validation and test with an end that has no edge in the graph; "
        "loops, duplicates: left out on reading."
    )
    plain = {k: str(v) if isinstance(v, bool) else v for k, v in card.items()}
    return Rows(("", "value"), tuple(plain.items()), note)


def sizes_picture(tokens: np.ndarray, dropped: np.ndarray, positives: np.ndarray) -> bytes:
    """Histogram of the tokens of test links, positives and negatives apart."""
    figure = Figure(figsize=(6.5, 2.8))
    axes = figure.subplots()
    bins = np.linspace(0, tokens.max() + 1, 40)
    for kept, label, colour in ((positives, "positives", BLUE), (~positives, "negatives", GREY)):
        share = np.full(kept.sum(), 1 / max(kept.sum(), 1))
        axes.hist(tokens[kept], bins, weights=share, alpha=0.6, color=colour, label=label)
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


def places(adjacency: np.ndarray) -> np.ndarray:
    """Where nodes stand, float [N, 2]: s left, t right, others between by which end is nearer, in
    columns of equal difference of distance."""
    far = [distances(adjacency, root) for root in (0, 1)]
    lean = np.clip(far[0] - far[1], -2, 2) / 2.0
    lean[:2] = (-1.7, 1.7)
    height = np.zeros(len(adjacency))
    for column in np.unique(lean[2:]):
        mine = np.flatnonzero(lean == column)
        mine = mine[mine > 1]
        order = mine[np.argsort(-adjacency[mine].sum(1), kind="stable")]
        height[order] = np.linspace(-1, 1, len(order) + 2)[1:-1]
    return np.stack([lean, height], 1)


def distances(adjacency: np.ndarray, root: int) -> np.ndarray:
    """Steps from a root, float [N]; as far as there are nodes where nothing leads."""
    found = np.full(len(adjacency), float(len(adjacency)))
    edge, step = np.arange(len(adjacency)) == root, 0
    while edge.any():
        found[edge] = step
        step += 1
        edge = adjacency[edge].any(0) & (found == len(adjacency))
    return found


def link_picture(
    adjacency: np.ndarray, names: Sequence[str], weights: Sequence[np.ndarray], title: str
) -> bytes:
    """A link's subgraph; one panel per end, nodes coloured by how much its task token reads them.

    Args:
        adjacency: bool [N, N]; names: [N]; weights: of each end [N], >= 0.
    """
    at, labelled = places(adjacency), len(names) <= 40
    figure = Figure(figsize=(10, 4))
    panels = figure.subplots(1, len(weights), squeeze=False)[0]
    for panel, weight, end in zip(panels, weights, names[:2], strict=False):
        for i, j in zip(*np.nonzero(np.triu(adjacency)), strict=True):
            panel.plot(at[[i, j], 0], at[[i, j], 1], color=GREY, linewidth=0.4, zorder=1)
        panel.plot(at[:2, 0], at[:2, 1], color=RED, linewidth=1, linestyle=":", zorder=1)
        shown = panel.scatter(
            at[:, 0], at[:, 1], c=weight, s=60, cmap="viridis", edgecolors="white", zorder=2
        )
        for index, name in enumerate(names):
            if labelled or index < 2:
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
    judged: Any,
    around: Callable[[Any, np.ndarray], dict[str, bytes | Rows]] | None = None,
) -> Figures:
    """Report of a learned predictor.

    Args:
        judged: `link_training.Evaluation` of the run.
        around: (state, the likeliest test link int32 [1, 2]) -> what to show of it.
    """

    def figures(records: Any, state: Mapping[str, Any]) -> dict[str, bytes | Rows]:
        tests = [r for r in records if r["split"] == "test"]
        out: dict[str, bytes | Rows] = {
            "Side by side": side_by_side(config, artifacts["rows"], tests[-1] if tests else None)
        }
        asked = judged.loaded().links("test")
        some = min(len(asked.pos), 500)
        negatives = asked.neg.reshape(-1, 2)[:some]
        pairs = np.concatenate([asked.pos[:some], negatives])
        logits, tokens, dropped = judged.draws(state, "test", pairs, 1)
        if tokens.any():
            positives = np.arange(len(pairs)) < some
            out["Sizes of subgraphs"] = sizes_picture(tokens, dropped, positives)
        if around is not None:
            small = np.where(tokens[:some] <= 40, logits[0, :some], -np.inf)
            out |= around(state, pairs[[int(np.argmax(small))]])
        out["Data card"] = card_rows(artifacts["card"])
        return out

    return figures


def make_heuristic_figures(config: ConfigDict, artifacts: Mapping[str, Any]) -> Figures:
    """Report of the rows without training."""

    def figures(records: Any, state: Mapping[str, Any]) -> dict[str, bytes | Rows]:
        del state
        out: dict[str, bytes | Rows] = {}
        for found in [r for r in records if r["split"] == "test"][-1:]:
            out["Side by side"] = side_by_side(config, found, None)
            out["AUC and MRR"] = bars_picture(found)
        return out | {"Data card": card_rows(artifacts["card"])}

    return figures


def bars_picture(found: Mapping[str, Any]) -> bytes:
    """AUC and MRR of every heuristic, with the deviation over splits where there is one."""
    names = [n for n in heuristics.NAMES if f"{n}/test/auc" in found]
    figure = Figure(figsize=(8, 2.8))
    for panel, metric in zip(figure.subplots(1, 2), ("auc", "mrr"), strict=True):
        values = [float(found[f"{n}/test/{metric}"]) for n in names]
        spread = [float(found.get(f"{n}/test/{metric}/std", 0)) for n in names]
        panel.bar(names, values, yerr=spread if any(spread) else None, color=BLUE)
        panel.set_ylabel(metric)
        panel.tick_params(axis="x", labelrotation=45)
    figure.tight_layout()
    return png(figure)
