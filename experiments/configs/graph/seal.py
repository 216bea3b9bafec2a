# SPDX-License-Identifier: Apache-2.0
"""SEAL: distances to both ends as labels, and a GCN on the subgraph (Zhang and Chen 2018).

Published AUC, mean of the ten fixed splits [secondary]: USAir .966, PB .947, Yeast .979, Power
.876, Router .964. Pooling is by the endpoints, not by sorting [our choice].

:base   USAir, fixed split 0, on PENCIL's subgraphs; two minutes on 2 CPU cores.
        python experiments/run.py --config=seal
:tiny   a made-up graph, needs no file.
:h200, :paper   Citeseer, shared negatives, width 256 (not run here).
"""

from ml_collections import ConfigDict

from experiments.configs.graph import graph_heuristics, pencil
from experiments.runner import settings
from graph.config import OptimConfig, SEALConfig

GROUPS = {
    "data": graph_heuristics.LinkGroup,
    "sample": pencil.Sampling,
    "model": SEALConfig,
    "optim": OptimConfig,
    "eval": pencil.LinkEval,
}
VARIANTS = ("base", "tiny", "h200", "paper")
HEADLINE = pencil.HEADLINE


def get_config(arg: str = "base") -> ConfigDict:
    """Config of one variant."""
    settings.parse_arg(arg, VARIANTS)
    config = pencil.predictor_config("seal", arg)
    small = arg == "tiny"
    config.model = ConfigDict(
        {
            "width": 16 if small else 64,
            "layers": 3,
            "max_label": 100,
            "pooling": "roots",
            "features": False,
            "dropout": 0.0,
        }
    )
    if arg in ("h200", "paper"):
        pencil.sampled_as(config, pencil.SETTINGS["paper"])
        config.model.width = 256
    return config
