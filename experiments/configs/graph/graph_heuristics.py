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

from experiments.configs.graph import links
from experiments.runner import settings
from graph import names


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
        links.check_heuristics(self.heuristics)


GROUPS = {"data": links.LinkGroup, "eval": HeuristicEval}
VARIANTS = ("base", "tiny", "h200", "paper")
HEADLINE = tuple(
    f"{name}/test/{metric}"
    for name in ("cn", "aa", "ra", "katz", "spd")
    for metric in ("auc", "mrr")
)


def get_config(arg: str = "base") -> ConfigDict:
    """Builds the config of one variant."""
    settings.parse_arg(arg, VARIANTS)
    config = links.link_config("graph_heuristics", arg)
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
