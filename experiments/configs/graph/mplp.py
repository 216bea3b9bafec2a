# SPDX-License-Identifier: Apache-2.0
"""MPLP: counts of common neighbours at several distances from random signatures (Dong et al. 2024).

:base   USAir, fixed split 0, on PENCIL's subgraphs; a minute or two on 2 CPU cores.
        python experiments/run.py --config=mplp
:tiny   a made-up graph, needs no file.
:h200, :paper   Citeseer, shared negatives, signatures of 1024 (not run here).
"""

from ml_collections import ConfigDict

from experiments.configs.graph import graph_heuristics, pencil
from experiments.runner import settings
from graph.config import MPLPConfig, OptimConfig

GROUPS = {
    "data": graph_heuristics.LinkGroup,
    "sample": pencil.Sampling,
    "model": MPLPConfig,
    "optim": OptimConfig,
    "eval": pencil.LinkEval,
}
VARIANTS = ("base", "tiny", "h200", "paper")
HEADLINE = pencil.HEADLINE


def get_config(arg: str = "base") -> ConfigDict:
    """Config of one variant."""
    settings.parse_arg(arg, VARIANTS)
    config = pencil.predictor_config("mplp", arg)
    small = arg == "tiny"
    config.model = ConfigDict(
        {
            "slots": 18 if small else 82,
            "signature": 32 if small else 512,
            "width": 16 if small else 64,
            "weighted": True,
            "dropout": 0.0,
        }
    )
    if arg in ("h200", "paper"):
        pencil.sampled_as(config, pencil.SETTINGS["paper"])
        config.model.update({"slots": config.sample.buckets[-1], "signature": 1024})
    return config
