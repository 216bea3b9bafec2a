# SPDX-License-Identifier: Apache-2.0
"""Tables and pictures of recommenders: beside baselines, beside published rows, for a few users."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments.runner.contract import Picture, Rows
from experiments.runner.plots import BLUE, INK, new_axes, png, style
from experiments.systems.rec.recommenders.wiring import KS, shorten
from rec import metrics
from rec.baselines import evaluation as baselines

COLUMNS = tuple(f"{name}@{k}" for k in KS for name in ("recall", "ndcg"))
# Whole Beauty and Sports, leave-one-out, full ranking: recall@5, ndcg@5, recall@10, ndcg@10.
PUBLISHED = {
    "beauty": (
        ("SASRec, one negative", (0.0387, 0.0249, 0.0605, 0.0318), "TIGER paper [secondary]"),
        ("SASRec, full softmax", (0.0635, 0.0454, 0.0897, 0.0539), "public re-run [secondary]"),
        ("TIGER", (0.0454, 0.0321, 0.0648, 0.0384), "Rajput et al. 2023 [secondary]"),
        ("GRID, residual k-means", (0.0422, 0.0277, 0.0639, 0.0347), "Ju et al. 2025"),
        ("GRID, RQ-VAE", (0.0404, 0.0268, 0.0593, 0.0329), "Ju et al. 2025"),
        ("LETTER-TIGER", (0.0431, 0.0286, 0.0672, 0.0364), "Wang et al. 2024 [secondary]"),
    ),
    "sports": (
        ("SASRec, one negative", (0.0233, 0.0154, 0.0350, 0.0192), "TIGER paper [secondary]"),
        ("TIGER", (0.0264, 0.0181, 0.0400, 0.0225), "Rajput et al. 2023 [secondary]"),
        ("GRID, residual k-means", (0.0236, 0.0153, 0.0353, 0.0191), "Ju et al. 2025"),
        ("GRID, RQ-VAE", (0.0205, 0.0132, 0.0312, 0.0166), "Ju et al. 2025"),
    ),
}
Figures = Callable[[Any, Mapping[str, Any]], dict[str, Picture | Rows]]


def compare_rows(
    config: ConfigDict, rows: Mapping[str, Any], ours: Mapping[str, Any] | None
) -> Rows:
    """Lists this run, the rows without training, and published ones, on the test queries."""

    def cells(prefix: str, metrics_of_row: Mapping[str, Any]) -> tuple[Any, ...]:
        values = [metrics_of_row.get(f"{prefix}test/{name}", "") for name in COLUMNS]
        return tuple(v if isinstance(v, str) else float(np.mean(v)) for v in values)

    out = []
    if ours is not None:
        out.append((f"{config.system} (this run)", *cells("", ours), "history masked"))
        if "test/recall@10/unmasked" in ours:
            unmasked = [float(np.mean(ours[f"test/{name}/unmasked"])) for name in COLUMNS]
            out.append((f"{config.system} (this run)", *unmasked, "history not masked"))
        if "teacher/test/recall@10" in ours:
            out.append(("its teacher", *cells("teacher/", ours), "decoded alike, history masked"))
    names = [*baselines.NAMES, *(["bayes"] if "bayes/test/recall@10" in rows else [])]
    for name in names:
        how = "the best any ranker can do" if name == "bayes" else "no training, history masked"
        if f"{name}/test/recall@10" not in rows:
            how = "not measured: no text"
        out.append((name, *cells(f"{name}/", rows), how))
    caption = (
        "Recall and NDCG among the first K on the test queries, highest is best: this run, rows "
        "that need no training, and published ones. "
    )
    published = PUBLISHED.get(config.data.name, ())
    if config.data.format == "amazon2014" and published:
        out += [(name, *values, source) for name, values, source in published]
        comparable = config.data.core == 0 and config.data.split == "leave_one_out"
        caption += (
            "Published rows: whole catalogue, leave-one-out, history not masked."
            if comparable
            else "Published rows are of the whole catalogue under leave-one-out: other users and "
            "items than here, so they do not compare with the rows above."
        )
    return Rows(("row", *COLUMNS, "protocol or source"), tuple(out), caption.strip())


def card_rows(card: Mapping[str, Any]) -> Rows:
    """Lists the data card; ascending_* is the share of neighbors in raw-name order (.5: no
    artifact)."""
    caption = (
        "Counts of the data after filtering. ascending_pairs: neighbors of a row "
        "whose raw names ascend. Far above .5, events of the same time stand in name order, and "
        "counting successors profits from it."
    )
    plain = {k: v if isinstance(v, int | float) else str(v) for k, v in card.items()}
    plain |= {k: str(v) for k, v in card.items() if isinstance(v, bool)}
    return Rows(("", "value"), tuple(plain.items()), caption)


def draw_groups(rows: Mapping[str, Any], prefixes: Mapping[str, str]) -> Picture:
    """Draws recall@10 by group of queries, a group of bars for each ranking {label: key prefix}."""
    groups = (*metrics.BUCKETS, "U+", "U-")
    shown = [g for g in groups if any(f"{p}recall@10/{g}" in rows for p in prefixes.values())]
    figure, ((axes,),) = new_axes(9, 3.2)
    width = 0.8 / max(len(prefixes), 1)
    for index, (label, prefix) in enumerate(prefixes.items()):
        values = [float(np.mean(rows.get(f"{prefix}recall@10/{g}", np.nan))) for g in shown]
        at = np.arange(len(shown)) + (index - (len(prefixes) - 1) / 2) * width
        axes.bar(at, values, width, label=label)
    first = next(iter(prefixes.values()))
    labels = [f"{g}\n({float(np.mean(rows.get(f'{first}share/{g}', 0))):.0%})" for g in shown]
    axes.set_xticks(range(len(shown)), labels)
    axes.set_ylabel("recall@10")
    axes.set_xlabel("group of queries (share of all)")
    style(axes)
    caption = (
        "Recall@10 by group of test queries. First by popularity of the item to find; then U+, "
        "where one hop in the training data reaches it, and U-, where none does. Bars near "
        "nothing: this ranking serves such users badly."
    )
    return Picture(png(figure), caption)


def baseline_prefixes(rows: Mapping[str, Any]) -> dict[str, str]:
    """Maps the baselines in `rows` to the prefixes of their keys."""
    return {n: f"{n}/test/" for n in baselines.NAMES if f"{n}/test/recall@10/U+" in rows}


def make_baseline_figures(config: ConfigDict, artifacts: Mapping[str, Any]) -> Figures:
    """Makes the report of the rows without training."""

    def figures(records: Any, state: Mapping[str, Any]) -> dict[str, Picture | Rows]:
        del state
        tests = [r for r in records if r["split"] == "test"]
        rows = tests[-1] if tests else artifacts["rows"]
        return {
            "Side by side": compare_rows(config, artifacts["rows"], None),
            "Who is served": draw_groups(rows, baseline_prefixes(rows)),
            "Data card": card_rows(artifacts["card"]),
        }

    return figures


def recommendation_rows(
    lists: Sequence[tuple[np.ndarray, int, np.ndarray]], items: Sequence[str], texts: Sequence[str]
) -> Rows:
    """Lists what users had, what came next, and what is recommended.

    Args:
        lists: (history, target, recommended items) of each user.
    """

    def line(item: int) -> str:
        return f"{items[item]}: {shorten(texts[item])}"

    caption = (
        "For a few test users: the newest three items of the history, the item that came next, and "
        "the first five recommended."
    )
    rows: list[tuple[str, ...]] = []
    for number, (history, target, recommended) in enumerate(lists, 1):
        rows += [(f"user {number}", "had", line(int(i))) for i in history[-3:]]
        rows.append((f"user {number}", "then came", line(int(target))))
        for place, item in enumerate(recommended[:5], 1):
            hit = " (it is)" if item == target else ""
            if item >= 0:
                rows.append((f"user {number}", f"recommended {place}{hit}", line(int(item))))
    return Rows(("", "", "item"), tuple(rows), caption)


def sid_rows(report: Mapping[str, float], levels: int) -> Rows:
    """Lists the quality of semantic IDs by level."""
    names = ("usage", "entropy", "perplexity", "top_share", "reconstruction")
    rows = tuple(
        (f"level {i + 1}", *(report.get(f"{n}/level{i + 1}", "") for n in names))
        for i in range(levels)
    )
    alarm = "ALARM: codebooks have collapsed. " if report["alarm"] else ""
    caption = (
        f"{alarm}How evenly each level uses its codes: {report['distinct']:,.0f} distinct SIDs, "
        f"uniqueness {report['uniqueness']:.3f}, "
        f"largest group {report['largest_group']:.0f}, {report['collisions']:.1%} of the items "
        "share theirs (before conflicts are settled). Entropy in nats; reconstruction: mean "
        "squared distance from the first digits."
    )
    return Rows(("", *names), rows, caption)


def draw_usage(codes: np.ndarray, sizes: Sequence[int]) -> Picture:
    """Draws how many items have each code, codes of a level in descending order."""
    figure, (axes,) = new_axes(2.9 * len(sizes) + 0.4, 2.6, columns=len(sizes))
    for level, (panel, size) in enumerate(zip(axes, sizes, strict=True)):
        counts = np.sort(np.bincount(codes[:, level], minlength=size))[::-1]
        panel.fill_between(np.arange(size), counts, step="mid", color=BLUE)
        panel.axhline(len(codes) / size, color=INK, linestyle="--", linewidth=1)
        panel.set_xlabel("code, by frequency")
        panel.set_ylabel("items")
        style(panel, f"level {level + 1}: {np.count_nonzero(counts)} of {size} used")
    caption = (
        "Items that have each code, the most frequent code first. Dashed: every code used alike. "
        "A steep fall means that few codes carry most items."
    )
    return Picture(png(figure), caption)


def make_ranker_figures(
    config: ConfigDict,
    artifacts: Mapping[str, Any],
    lists: Callable[[Mapping[str, Any]], Sequence[tuple[np.ndarray, int, np.ndarray]]],
) -> Figures:
    """Makes the report of a learned recommender.

    Args:
        lists: state -> (history, target, recommended items) of a few test users.
    """

    def figures(records: Any, state: Mapping[str, Any]) -> dict[str, Picture | Rows]:
        tests = [r for r in records if r["split"] == "test"]
        ours = tests[-1] if tests else None
        out: dict[str, Picture | Rows] = {
            "Side by side": compare_rows(config, artifacts["rows"], ours)
        }
        if ours is not None:
            prefixes = {config.system: "test/", **baseline_prefixes(ours)}
            out["Who is served"] = draw_groups(ours, prefixes)
        out["Recommendations"] = recommendation_rows(
            lists(state), artifacts["items"], artifacts["texts"]
        )
        if "sid" in artifacts:
            sid = artifacts["sid"]
            levels = len(sid["greedy_sizes"])
            out["Semantic IDs"] = sid_rows(sid["report"], levels)
            out["Codes in use"] = draw_usage(
                np.asarray(sid["table"])[:, :levels], sid["greedy_sizes"]
            )
        out["Data card"] = card_rows(artifacts["card"])
        return out

    return figures
