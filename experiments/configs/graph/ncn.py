# SPDX-License-Identifier: Apache-2.0
"""NCN: states of a graph network, pooled over the common neighbours of a link (Wang et al. 2024).

:base   USAir, fixed split 0, on PENCIL's subgraphs; a minute or two on 2 CPU cores.
        python experiments/run.py --config=ncn
:tiny   a made-up graph, needs no file.
:h200, :paper   Citeseer, shared negatives, width 256 (not run here; with node features, which the
        files at hand lack, it is published at MRR .6403 (NCNC) [secondary]).
"""

from dataclasses import replace

from ml_collections import ConfigDict

from experiments.configs.graph import graph_heuristics, pencil
from experiments.runner.about import About
from graph.config import NCNConfig

GROUPS = {**pencil.PREDICTOR_GROUPS, "model": NCNConfig}
VARIANTS = pencil.PEER_VARIANTS
ABOUT = About(
    asked="A graph network is trained to score links by the states of their common neighbors.",
    cost={"base": "1 to 2 min on 2 CPU cores", "tiny": "20 s on 2 CPU cores"},
    data=graph_heuristics.LINKS,
    use="A peer of PENCIL on the same links.",
    failures="Below resource allocation on USAir; without common neighbors it sees little. "
    "Simplified: no completion.",
    actions={"predict": 'scores of links: --query="NODE NODE", or --query=NODE for its best'},
)
HEADLINE = graph_heuristics.link_headline(gnn=False)


def get_config(arg: str = "base") -> ConfigDict:
    """Builds the config of one variant."""
    base = NCNConfig(
        kind="gcn",
        width=128,
        layers=1,
        heads=1,  # of kind "gat"
        inputs="learned",  # a trained vector per node: most files bring no features
        residual=False,
        head_layers=2,
        dropout=0.0,
    )
    tiny = replace(base, width=16)
    paper = replace(base, width=256)
    return pencil.peer_config("ncn", arg, base=base, tiny=tiny, paper=paper)
