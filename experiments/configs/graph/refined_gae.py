# SPDX-License-Identifier: Apache-2.0
"""Refined GAE: a plain graph auto-encoder, tuned (Ma et al. 2025).

:base   USAir, fixed split 0; a minute on 2 CPU cores.
        python experiments/run.py --config=refined_gae
:tiny   a made-up graph, needs no file.
:h200   Citeseer, shared negatives, width 1024 (not run here).
:paper  the same; its own test figures are of OGB graphs (ogbl-ppa hits@100 78.41 [secondary]).
"""

from dataclasses import replace

from ml_collections import ConfigDict

from experiments.configs.graph import graph_heuristics, pencil
from experiments.runner.about import About
from graph.config import RefinedGAEConfig

GROUPS = {**pencil.PREDICTOR_GROUPS, "model": RefinedGAEConfig}
VARIANTS = pencil.PEER_VARIANTS
ABOUT = About(
    asked="A tuned graph auto-encoder is trained to score links by products of states.",
    cost={"base": "a minute on 2 CPU cores", "tiny": "20 s on 2 CPU cores"},
    data=graph_heuristics.LINKS,
    use="A peer of PENCIL on the same links.",
    failures="Two nodes with equal surroundings look alike. Simplified: one map a step. No "
    "learning check of it is on record.",
    actions={"predict": 'scores of links: --query="NODE NODE", or --query=NODE for its best'},
)
HEADLINE = graph_heuristics.link_headline(gnn=False)


def get_config(arg: str = "base") -> ConfigDict:
    """Builds the config of one variant."""
    base = RefinedGAEConfig(
        width=128,
        layers=2,
        residual=1.0,  # weight of a node's own input in every step
        features=False,
        head_layers=2,
        dropout=0.0,
    )
    tiny = replace(base, width=16)
    paper = replace(base, width=1024)
    return pencil.peer_config("refined_gae", arg, base=base, tiny=tiny, paper=paper)
