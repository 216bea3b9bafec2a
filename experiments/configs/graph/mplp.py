# SPDX-License-Identifier: Apache-2.0
"""MPLP: counts of common neighbours at several distances from random signatures (Dong et al. 2024).

:base   USAir, fixed split 0, on PENCIL's subgraphs; a minute or two on 2 CPU cores.
        python experiments/run.py --config=mplp
:tiny   a made-up graph, needs no file.
:h200, :paper   Citeseer, shared negatives, signatures of 1024 (not run here).
"""

from dataclasses import replace

from ml_collections import ConfigDict

from experiments.configs.graph import graph_heuristics, pencil
from experiments.runner.about import About
from graph.config import MPLPConfig

GROUPS = {**pencil.PREDICTOR_GROUPS, "model": MPLPConfig}
VARIANTS = pencil.PEER_VARIANTS
ABOUT = About(
    asked="Counts of shared neighbors, estimated from random signatures, are trained to score "
    "links.",
    cost={"base": "1 to 2 min on 2 CPU cores", "tiny": "20 s on 2 CPU cores"},
    data=graph_heuristics.LINKS,
    use="A peer of PENCIL on the same links.",
    failures="Counts of short signatures are noisy. No learning check of it is on record.",
    actions={"predict": 'scores of links: --query="NODE NODE", or --query=NODE for its best'},
)
HEADLINE = graph_heuristics.link_headline(gnn=False)


def get_config(arg: str = "base") -> ConfigDict:
    """Builds the config of one variant."""
    base = MPLPConfig(
        slots=82,  # nodes around a link at most: 1 hop of 40
        signature=512,  # length of a node's random vector; counts of longer ones are closer
        width=64,  # of the MLPs
        weighted=True,
        dropout=0.0,
    )
    tiny = replace(base, slots=18, signature=32, width=16)
    paper = replace(base, slots=pencil.CITESEER.slots, signature=1024)
    return pencil.peer_config("mplp", arg, base=base, tiny=tiny, paper=paper)
