# SPDX-License-Identifier: Apache-2.0
"""Graph networks over the whole graph: GCN, SAGE, GAT and the graph auto-encoder.

:base   GCN on USAir, fixed split 0, learned vectors per node, MLP of the Hadamard product; a minute
        on 2 CPU cores. python experiments/run.py --config=gnn
        SAGE, GAT: --config.model.kind=sage; GAE: --config.model.head=dot
:tiny   a made-up graph, needs no file.
:h200   Citeseer, shared negatives, width 512 (not run here).
:paper  the same; PENCIL's authors quote these peers from HeaRT, whose tuned settings are not known
        to us.
Compare with PENCIL on the same links: --mode=report DIR DIR
"""

from dataclasses import replace

from ml_collections import ConfigDict

from experiments.configs.graph import graph_heuristics, pencil
from experiments.runner.about import About
from graph.config import GNNConfig

GROUPS = {**pencil.PREDICTOR_GROUPS, "model": GNNConfig}
VARIANTS = pencil.PEER_VARIANTS
ABOUT = About(
    asked="A graph network over the whole graph is trained to score links by its nodes' states.",
    cost={"base": "a minute on 2 CPU cores", "tiny": "20 s on 2 CPU cores"},
    data=graph_heuristics.LINKS,
    use="A peer of PENCIL on the same links.",
    failures="Below resource allocation on USAir and below PageRank on Citeseer; two nodes with "
    "equal surroundings look alike.",
    actions={"predict": 'scores of links: --query="NODE NODE", or --query=NODE for its best'},
)
HEADLINE = graph_heuristics.link_headline(gnn=False)


def get_config(arg: str = "base") -> ConfigDict:
    """Builds the config of one variant."""
    base = GNNConfig(
        kind="gcn",
        width=128,
        layers=2,
        heads=1,  # of kind "gat"
        inputs="learned",  # a trained vector per node: most files bring no features
        residual=False,
        head="mlp",
        head_layers=2,
        dropout=0.0,
    )
    tiny = replace(base, width=16)
    paper = replace(base, width=512)
    return pencil.peer_config("gnn", arg, base=base, tiny=tiny, paper=paper)
