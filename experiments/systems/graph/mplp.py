# SPDX-License-Identifier: Apache-2.0
"""Wiring of MPLP."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments.runner import settings
from experiments.runner.contract import Experiment
from experiments.systems.graph.links import predictors, training, wiring
from graph.peers.mplp import MPLP

prepare = wiring.prepare


def make(config: ConfigDict, artifacts: Mapping[str, Any]) -> Experiment:
    """Makes the Experiment of one config.

    Raises:
        ValueError: several seeds; node features wanted where there are none.
    """
    cfg = settings.groups(config)["model"]
    training.check_slots(config, cfg.slots)
    featured = np.asarray(artifacts["features"]).shape[1] > 0
    predictor = predictors.from_subgraph_model(MPLP(cfg), featured)
    return training.make(config, artifacts, predictor)
