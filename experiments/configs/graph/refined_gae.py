# SPDX-License-Identifier: Apache-2.0
"""Refined GAE: a plain graph auto-encoder, tuned (Ma et al. 2025).

:base   USAir, fixed split 0; a minute on 2 CPU cores.
        python experiments/run.py --config=refined_gae
:tiny   a made-up graph, needs no file.
:h200   Citeseer, shared negatives, width 1024 (not run here).
:paper  the same; its own test figures are of OGB graphs (ogbl-ppa hits@100 78.41 [secondary]).
"""

from ml_collections import ConfigDict

from experiments.configs.graph import graph_heuristics, pencil
from experiments.runner import settings
from graph.config import OptimConfig, RefinedGAEConfig

GROUPS = {
    "data": graph_heuristics.LinkGroup,
    "sample": pencil.Sampling,
    "model": RefinedGAEConfig,
    "optim": OptimConfig,
    "eval": pencil.LinkEval,
}
VARIANTS = ("base", "tiny", "h200", "paper")
HEADLINE = pencil.HEADLINE


def get_config(arg: str = "base") -> ConfigDict:
    """Config of one variant."""
    settings.parse_arg(arg, VARIANTS)
    config = pencil.predictor_config("refined_gae", arg)
    small = arg == "tiny"
    config.model = ConfigDict(
        {
            "width": 16 if small else 128,
            "layers": 2,
            "residual": 1.0,
            "features": False,
            "head_layers": 2,
            "dropout": 0.0,
        }
    )
    if arg in ("h200", "paper"):
        pencil.sampled_as(config, pencil.SETTINGS["paper"])
        config.model.width = 1024
    return config
