# SPDX-License-Identifier: Apache-2.0
"""Wiring of SEAL."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from experiments.runner import settings
from experiments.runner.contract import Experiment
from experiments.systems.graph.links import predictors, training, wiring
from graph.peers.seal import SEAL

prepare = wiring.prepare


def make(config: ConfigDict, artifacts: Mapping[str, Any]) -> Experiment:
    """Makes the Experiment of one config.

    Raises:
        ValueError: several seeds; node features wanted where there are none.
    """
    cfg = settings.groups(config)["model"]
    predictor = predictors.from_subgraph_model(SEAL(cfg), cfg.features)
    return training.make(config, artifacts, predictor)
