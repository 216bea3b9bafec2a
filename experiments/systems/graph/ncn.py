# SPDX-License-Identifier: Apache-2.0
"""Wiring of NCN."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from experiments.runner import settings
from experiments.runner.contract import Experiment
from experiments.systems.graph.links import predictors, training, wiring
from graph.peers.ncn import NCN

prepare = wiring.prepare


def make(config: ConfigDict, artifacts: Mapping[str, Any]) -> Experiment:
    """Makes the Experiment of one config.

    Raises:
        ValueError: several seeds; node features wanted where there are none.
    """
    cfg = settings.groups(config)["model"]
    predictor = predictors.from_graph_model(NCN(cfg), subgraphs=True)
    return training.make(config, artifacts, predictor)
