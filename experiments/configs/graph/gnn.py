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

from ml_collections import ConfigDict

from experiments.configs.graph import graph_heuristics, pencil
from experiments.runner import settings
from graph.config import GNNConfig, OptimConfig

GROUPS = {
    "data": graph_heuristics.LinkGroup,
    "sample": pencil.Sampling,
    "model": GNNConfig,
    "optim": OptimConfig,
    "eval": pencil.LinkEval,
}
VARIANTS = ("base", "tiny", "h200", "paper")
HEADLINE = pencil.HEADLINE


def get_config(arg: str = "base") -> ConfigDict:
    """Config of one variant."""
    settings.parse_arg(arg, VARIANTS)
    config = pencil.predictor_config("gnn", arg)
    small = arg == "tiny"
    config.model = ConfigDict(
        {
            "kind": "gcn",
            "width": 16 if small else 128,
            "layers": 2,
            "heads": 1,
            "inputs": "learned",
            "residual": False,
            "head": "mlp",
            "head_layers": 2,
            "dropout": 0.0,
        }
    )
    if arg in ("h200", "paper"):
        pencil.sampled_as(config, pencil.SETTINGS["paper"])
        config.model.width = 512
    return config
