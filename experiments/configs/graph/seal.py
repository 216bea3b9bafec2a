# SPDX-License-Identifier: Apache-2.0
"""SEAL: distances to both ends as labels, and a GCN on the subgraph (Zhang and Chen 2018).

Published AUC, mean of the ten fixed splits [secondary]: USAir .966, PB .947, Yeast .979, Power
.876, Router .964. Pooling is by the endpoints, not by sorting [our choice].

:base   USAir, fixed split 0, on PENCIL's subgraphs; two minutes on 2 CPU cores.
        python experiments/run.py --config=seal
:tiny   a made-up graph, needs no file.
:h200, :paper   Citeseer, shared negatives, width 256 (not run here).
"""

from dataclasses import replace

from ml_collections import ConfigDict

from experiments.configs.graph import graph_heuristics, pencil
from experiments.runner.about import About
from graph.config import SEALConfig

GROUPS = {**pencil.PREDICTOR_GROUPS, "model": SEALConfig}
VARIANTS = pencil.PEER_VARIANTS
ABOUT = About(
    asked="A GCN on the labelled surroundings of two ends is trained to say whether they are "
    "linked.",
    cost={"base": "2 min on 2 CPU cores", "tiny": "20 s on 2 CPU cores"},
    data=graph_heuristics.LINKS,
    use="A peer of PENCIL on the same links.",
    failures="Below PageRank in MRR on Citeseer. Simplified: pooled by the ends, not by sorting.",
    actions={"predict": 'scores of links: --query="NODE NODE", or --query=NODE for its best'},
)
HEADLINE = graph_heuristics.link_headline(gnn=False)


def get_config(arg: str = "base") -> ConfigDict:
    """Builds the config of one variant."""
    base = SEALConfig(
        width=64,
        layers=3,
        max_label=100,  # labels above it share its vector
        pooling="roots",  # by the endpoints, not by sorting [our choice]
        features=False,
        dropout=0.0,
    )
    tiny = replace(base, width=16)
    paper = replace(base, width=256)
    return pencil.peer_config("seal", arg, base=base, tiny=tiny, paper=paper)
