# SPDX-License-Identifier: Apache-2.0
"""Wiring of NCN."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from experiments import settings
from experiments.contract import Experiment
from experiments.systems import link_predictors, link_training, links
from graph.peers.ncn import NCN

prepare = links.prepare


def make(config: ConfigDict, artifacts: Mapping[str, Any]) -> Experiment:
    """Experiment of one config.

    Raises:
        ValueError: several seeds; node features wanted where there are none.
    """
    cfg = settings.groups(config)["model"]
    predictor = link_predictors.of_graph(NCN(cfg), subgraphs=True)
    return link_training.make(config, artifacts, predictor)
