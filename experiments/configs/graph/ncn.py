# SPDX-License-Identifier: Apache-2.0
"""NCN: states of a graph network, pooled over the common neighbours of a link (Wang et al. 2024).

:base   USAir, fixed split 0, on PENCIL's subgraphs; a minute or two on 2 CPU cores.
        python experiments/run.py --config=ncn
:tiny   a made-up graph, needs no file.
:h200, :paper   Citeseer, shared negatives, width 256 (not run here; with node features, which the
        files at hand lack, it is published at MRR .6403 (NCNC) [secondary]).
"""

from ml_collections import ConfigDict

from experiments.configs.graph import graph_heuristics, pencil
from experiments.runner import settings
from graph.config import NCNConfig, OptimConfig

GROUPS = {
    "data": graph_heuristics.LinkGroup,
    "sample": pencil.Sampling,
    "model": NCNConfig,
    "optim": OptimConfig,
    "eval": pencil.LinkEval,
}
VARIANTS = ("base", "tiny", "h200", "paper")
HEADLINE = pencil.HEADLINE


def get_config(arg: str = "base") -> ConfigDict:
    """Config of one variant."""
    settings.parse_arg(arg, VARIANTS)
    config = pencil.predictor_config("ncn", arg)
    small = arg == "tiny"
    config.model = ConfigDict(
        {
            "kind": "gcn",
            "width": 16 if small else 128,
            "layers": 1,
            "heads": 1,
            "inputs": "learned",
            "residual": False,
            "head_layers": 2,
            "dropout": 0.0,
        }
    )
    if arg in ("h200", "paper"):
        pencil.sampled_as(config, pencil.SETTINGS["paper"])
        config.model.width = 256
    return config
