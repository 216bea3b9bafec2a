# SPDX-License-Identifier: Apache-2.0
"""Link prediction without training: common neighbours, paths and walks.

They stand beside every learned row; here they run alone, over all fixed splits a graph comes with.
Expected AUC (%) over the ten fixed splits of USAir (spec pencil 2.3): cn 93.83 ± .59, aa 95.12
± .43, ra 95.85 ± .50, pa 88.59 ± 1.68. MRR (%) on Citeseer: cn 28.34, aa 29.37, ra 27.61, katz
38.16, spd 31.82; with HeaRT's hard negatives 8.42, 10.82, 10.84, 11.19, 5.83.

:base   USAir, ten splits, seconds on a CPU.
        python experiments/run.py --config=graph_heuristics
        Others: --config.data.name=Yeast; --config.data.name=citeseer
        [--config.data.protocol=heart]
:tiny   a made-up graph, needs no file.
:h200, :paper   Citeseer with shared negatives, and with HeaRT's; no accelerator is needed.
Your edges, FOLDER/NAME.csv with columns source and target: --config.data.format=own
        --config.data.root=FOLDER --config.data.name=NAME --config.data.split=random
"""

import dataclasses
from dataclasses import dataclass

from ml_collections import ConfigDict

from experiments.runner import settings
from experiments.runner.about import About, Headline
from graph import names
from graph.data import columns, reading


@dataclass(frozen=True)
class LinkGroup:
    """Says which graph is read and how it is split.

    Attributes:
        root: folder of raw files; "" means $BANYAN_DATA.
        format: kind of file, see graph.data.reading; a "planted" graph is made from its name.
        name: of the graph; a number where it is planted.
        split: "fixed" (as the files have it), "random" or "temporal" (both made here).
        index: which of several fixed splits; -1 for all of them (rows without training only).
        protocol: negatives of valid and test: "original" (the file's, or uniform ones, shared by
            all links), "heart" (hard ones of each link: the file's, or made here) or "ogb" (as
            exported).
        hard: hard negatives made for each end of a link.
        valid_share: of the edges, held out by a split that is made; also of fixed training links,
            to choose the checkpoint, where the file has no validation.
        test_share: of the edges, held out by a split that is made.
        seed: of what is made.
        columns: names of the columns of your own table, "source=from,target=to,time=ts"; those left
            out are recognized.
    """

    root: str
    format: str
    name: str
    split: str
    index: int
    protocol: str
    hard: int
    valid_share: float
    test_share: float
    seed: int
    columns: str = ""

    def __post_init__(self) -> None:
        columns.parse(self.columns)
        allowed = {
            "format": tuple(reading.FORMATS),
            "split": reading.SPLITS,
            "protocol": reading.PROTOCOLS,
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name}={getattr(self, name)!r}: must be one of {values}")
        settings.at_least("data", -1, index=self.index)
        settings.at_least("data", 1, hard=self.hard)
        settings.at_least("data", 0, seed=self.seed)
        for name in ("valid_share", "test_share"):
            if not 0 < getattr(self, name) < 0.5:
                raise ValueError(f"{name}={getattr(self, name)}: must be in (0, .5)")


def check_heuristics(chosen: tuple[str, ...]) -> None:
    """Raises ValueError for an unknown heuristic, or one named twice."""
    if not set(chosen) <= set(names.HEURISTICS) or len(set(chosen)) < len(chosen):
        raise ValueError(f"heuristics={chosen!r}: must be different ones of {names.HEURISTICS}")


@dataclass(frozen=True)
class HeuristicEval:
    """Says which heuristics are evaluated.

    Attributes:
        every, select, tolerance: as everywhere (nothing is trained).
        heuristics: names of graph.names.HEURISTICS.
    """

    every: int
    select: tuple[str, str]
    tolerance: float
    heuristics: tuple[str, ...]

    def __post_init__(self) -> None:
        settings.at_least("eval", 1, every=self.every)
        settings.at_least("eval", 0, tolerance=self.tolerance)
        settings.check_select(self.select)
        check_heuristics(self.heuristics)


GROUPS = {"data": LinkGroup, "eval": HeuristicEval}
VARIANTS = ("base", "tiny", "h200", "paper")
HEURISTICS = ("cn", "aa", "ra", "katz", "spd")
LINKS = (
    "USAir, 332 airports and 2,126 links, fixed splits; the edges are from muhanzhang/SEAL (MIT), "
    "the splits from WalkPooling, which states no license."
)
ABOUT = About(
    asked="Counts of neighbors, paths and walks, which need no training, score missing links.",
    cost={"base": "4 s on 2 CPU cores", "tiny": "5 s on 2 CPU cores"},
    data=LINKS,
    use="What a trained link predictor must beat; served as it is where it wins.",
    failures="Counts of common neighbors say nothing of nodes further than two steps apart.",
    actions={"predict": 'scores of links, by one of them: --query="katz: NODE NODE"'},
)
HEADLINE = tuple(
    Headline(
        f"{name}/test/{metric}",
        "higher",
        f"{sentence} by {name}.",
        (f"pa/test/{metric}",),
    )
    for name in HEURISTICS
    for metric, sentence in (
        ("auc", "Chance, 0 to 1, that a link scores above a pair without one"),
        ("mrr", "Mean reciprocal rank, 0 to 1, of a link among its negatives"),
    )
)
LINK_SENTENCES = {
    "auc": "Chance, 0 to 1, that a link scores above a pair without one.",
    "ap": "Average precision of links among pairs without one, 0 to 1.",
    "mrr": "Mean reciprocal rank, 0 to 1, of a link among its negatives.",
    "hits@10": "Share of links, 0 to 1, above all but ten negatives.",
    "hits@50": "Share of links, 0 to 1, above all but fifty negatives.",
}


def link_headline(gnn: bool) -> tuple[Headline, ...]:
    """Headline of a link predictor, beside the heuristics.

    Args:
        gnn: whether a graph network was trained beside it, whose row is shown too.
    """
    rows = names.HEURISTICS
    found = []
    for metric, sentence in LINK_SENTENCES.items():
        shown = metric in ("auc", "mrr")
        references = tuple(f"{name}/test/{metric}" for name in rows) if shown else ()
        found.append(Headline(f"test/{metric}", "higher", sentence, references))
    if gnn:
        found += [
            Headline(
                f"gnn/test/{metric}",
                "higher",
                f"{LINK_SENTENCES[metric][:-1]}, of a GCN trained beside it.",
                tuple(f"{name}/test/{metric}" for name in rows),
            )
            for metric in ("auc", "mrr")
        ]
    return tuple(found)


def link_config(system: str, arg: str) -> ConfigDict:
    """Builds frame and data group of a link predictor: USAir, in :tiny a made-up graph."""
    config = settings.base_config(system, arg)
    group = LinkGroup(
        root="",
        format="npz",
        name="USAir",
        split="fixed",
        index=0,
        protocol="original",
        hard=250,
        valid_share=0.05,
        test_share=0.1,
        seed=0,
    )
    if arg == "tiny":
        group = dataclasses.replace(group, format="planted", name="0", split="random")
    config.data = ConfigDict(dataclasses.asdict(group))
    return config


def get_config(arg: str = "base") -> ConfigDict:
    """Builds the config of one variant."""
    settings.parse_arg(arg, VARIANTS)
    config = link_config("graph_heuristics", arg)
    config.data.index = -1
    evaluation = HeuristicEval(
        every=1000, select=("", "max"), tolerance=1e-6, heuristics=names.HEURISTICS
    )
    config.eval = ConfigDict(dataclasses.asdict(evaluation))
    if arg in ("h200", "paper"):
        config.data.name = "citeseer"
    if arg == "paper":
        config.data.protocol = "heart"
    return config
