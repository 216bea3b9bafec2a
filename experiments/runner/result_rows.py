# SPDX-License-Identifier: Apache-2.0
"""README's results table: which number stands for a system, and what it is compared with.

The number is that of the config's default, not of the best of its conditions.
"""

from collections.abc import Sequence
from typing import NamedTuple

from experiments.runner import names
from experiments.runner.about import Headline
from experiments.runner.pages import markdown
from experiments.runner.result_files import Found, members_of, ours
from experiments.runner.verdict import Compared, brief, compare, name_of


class Shown(NamedTuple):
    """One number, found in one result file."""

    what: str
    """Data and metric in words."""
    source: str
    """SYSTEM:VARIANT of runs, or the file of a learning check."""
    condition: str
    """Condition of that check; "" for runs."""
    metric: str
    references: tuple[str, ...] | None = None
    """Metrics of the same runs that need no training; None: those the system's HEADLINE names, ():
    the row itself trains nothing."""


class Row(NamedTuple):
    """One system of the table."""

    system: str
    paper: str
    shown: Shown | None
    """None: no result file."""
    also: tuple[Shown, ...] = ()
    """Further verdicts, so that no loss is hidden behind the one number."""


def _passkey(what: str, condition: str) -> Shown:
    return Shown(what, "passkey_lengths.json", condition, "lengths/accuracy@1024")


def _links(what: str, source: str, condition: str, metric: str) -> Shown:
    return Shown(f"{what} {metric.upper()}", source, condition, f"test/{metric}")


def _peer(system: str, paper: str) -> Row:
    """A predictor of links beside PENCIL: ten splits of USAir, then Citeseer and Pubmed."""
    splits = f"{system}, ten splits"
    first = _links("USAir, ten splits:", "graph_usair_splits.json", splits, "auc")
    also = (
        _links("there", "graph_usair_splits.json", splits, "mrr"),
        _links("Citeseer", "graph_citeseer.json", f"{system}, citeseer", "mrr"),
        _links("Pubmed", "graph_pubmed.json", f"{system}, pubmed", "mrr"),
    )
    return Row(system, paper, first, also if system == "pencil" else also[:2])


def _student(system: str, source: str, condition: str) -> Row:
    """A student of a generator on Beauty, and beside its teacher."""
    teacher = ("teacher/test/ndcg@10",)
    return Row(
        system,
        "Guo et al. 2026",
        Shown("Beauty 8-core, recall@10", source, condition, "test/recall@10"),
        (Shown("ndcg@10 beside its teacher's", source, condition, "test/ndcg@10", teacher),),
    )


ROWS = (
    Row(
        "banyan",
        "Seth et al. 2026",
        Shown(
            "success on the first layouts",
            "banyan:base",
            "",
            "d1/end/success",
        ),
        (
            Shown(
                "on the next layouts, before learning there",
                "banyan:base",
                "",
                "d2/start/success",
            ),
        ),
    ),
    Row(
        "lm",
        "Huang et al. 2026",
        Shown(
            "Tiny Shakespeare, nats per character",
            "lm_base.json",
            "softmax",
            "valid/loss",
        ),
        (
            Shown(
                "tda after 300 updates",
                "lm_kinds.json",
                "tda",
                "valid/loss",
            ),
        ),
    ),
    Row(
        "passkey",
        "Huang et al. 2026",
        _passkey("softmax, accuracy at 8 times the training length", "softmax"),
        (_passkey("ssmax", "ssmax"), _passkey("tda", "tda"), _passkey("beta .25", "tda beta=0.25")),
    ),
    Row(
        "rec_baselines",
        "",
        Shown(
            "Beauty 8-core, recall@10 of co-occurrence",
            "rec_baselines:base",
            "",
            "cooccurrence/test/recall@10",
            (),
        ),
    ),
    Row(
        "sasrec",
        "Kang and McAuley 2018",
        Shown(
            "Beauty 8-core, recall@10",
            "rec_sasrec_beauty.json",
            "sasrec",
            "test/recall@10",
        ),
    ),
    Row(
        "tiger",
        "Rajput et al. 2023",
        Shown(
            "Beauty 8-core, recall@10",
            "rec_tiger_beauty.json",
            "tiger",
            "test/recall@10",
        ),
        (
            Shown(
                "SIDs of text alone",
                "rec_tiger_beauty.json",
                "text",
                "test/recall@10",
            ),
        ),
    ),
    _student("sid_mlp", "rec_sid_mlp.json", "SID-MLP"),
    _student("sid_mlp_pp", "rec_sid_mlp_pp.json", "SID-MLP++"),
    Row("sid", "Ju et al. 2025", None),
    Row(
        "pencil",
        "Truong et al. 2026",
        _links("USAir, ten splits:", "graph_usair_splits.json", "pencil, ten splits", "auc"),
        (
            _links("there", "graph_usair_splits.json", "pencil, ten splits", "mrr"),
            _links("Citeseer", "graph_citeseer.json", "pencil, citeseer", "mrr"),
            _links("Pubmed", "graph_pubmed.json", "pencil, pubmed", "mrr"),
            _links("Power", "graph_power.json", "Power", "mrr"),
            _links("Router", "graph_router.json", "Router", "mrr"),
        ),
    ),
    _peer("gnn", "Kipf and Welling 2017"),
    Row("refined_gae", "Ma et al. 2025", None),
    _peer("ncn", "Wang et al. 2024"),
    _peer("seal", "Zhang and Chen 2018"),
    Row("mplp", "Dong et al. 2024", None),
    Row(
        "graph_heuristics",
        "",
        Shown(
            "USAir, ten splits: AUC of resource allocation",
            "graph_heuristics.json",
            "USAir, ten splits",
            "ra/test/auc",
            (),
        ),
    ),
    Row(
        "heuristic_regression",
        "Truong et al. 2026",
        Shown(
            "common neighbors on Citeseer, RMSE",
            "graph_regression.json",
            "pencil",
            "test/rmse",
        ),
    ),
)


def line_of(system: str, metric: str) -> Headline:
    """The line of a system's HEADLINE for a metric."""
    headline = names.config_module(system).HEADLINE
    return next(entry for entry in headline if entry.metric == metric)


def references_of(system: str, metric: str) -> tuple[str, ...]:
    """What the system's HEADLINE compares a metric with."""
    return line_of(system, metric).references


def entry_of(system: str, shown: Shown) -> Headline:
    """The same line, with the row's own references where it names some."""
    entry = line_of(system, shown.metric)
    return entry if shown.references is None else entry._replace(references=shown.references)


def compared_in(found: Found, shown: Shown, entry: Headline) -> Compared:
    """Compares a number with the best of the entry's references, in the same runs."""
    runs = members_of(found, shown.source, shown.condition)
    return compare(runs, entry.metric, entry.references, entry.better)


def _aside(found: Found, system: str, shown: Shown) -> str:
    """A further verdict in few words."""
    entry = entry_of(system, shown)
    compared = compared_in(found, shown, entry)
    mean = compared.value + compared.gap
    word = compared.word(entry.better)
    reference = f"{name_of(compared.reference)} {brief(compared.value)}"
    joint = " from" if word == "no difference" else ""
    runs = members_of(found, shown.source, shown.condition)
    alone = " (one seed)" if len(runs) == 1 else ""
    return f"{shown.what} {brief(mean)}: {word}{joint} {reference}{alone}"


def _cells(found: Found, row: Row) -> list[str]:
    """Ours, the best row without training, the verdict."""
    shown = row.shown
    if shown is None:
        return ["no result file", "", "not measured"]
    value = ours(members_of(found, shown.source, shown.condition), shown.metric, brief)
    entry = entry_of(row.system, shown)
    if not entry.references:
        return [value, "itself", "trains nothing"]
    compared = compared_in(found, shown, entry)
    asides = (_aside(found, row.system, aside) for aside in row.also)
    verdict = "; ".join([compared.verdict(entry.better), *asides])
    return [value, f"{name_of(compared.reference)} {brief(compared.value)}", verdict]


def results_table(found: Found, folder: str = "", rows: Sequence[Row] = ROWS) -> str:
    """One row a system, in Markdown; every number comes from a result file.

    Raises:
        UserError: a row names a file, condition or metric that is not there.
    """
    head = ("system", "metric", "ours ± sd", "best untrained", "verdict, 95 % interval", "paper")
    lines = []
    for row in rows:
        what = row.shown.what if row.shown else ""
        cells = [what, *_cells(found, row), row.paper]
        link = f"[{markdown(row.system)}]({folder}{row.system}.md)"
        lines.append(f"| {link} | {' | '.join(markdown(cell) for cell in cells)} |")
    return "\n".join([f"| {' | '.join(head)} |", "| --- " * len(head) + "|", *lines]) + "\n"


def missing() -> set[str]:
    """Systems without a row."""
    return set(names.systems()) - {row.system for row in ROWS}
