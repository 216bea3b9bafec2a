# SPDX-License-Identifier: Apache-2.0
"""Wiring of graph networks over the whole graph."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from experiments.runner import settings
from experiments.runner.contract import Experiment
from experiments.systems.graph.links import predictors as link_predictors
from experiments.systems.graph.links import training as link_training
from experiments.systems.graph.links import wiring as links
from graph.peers.gnn import GNN

prepare = links.prepare


def make(config: ConfigDict, artifacts: Mapping[str, Any]) -> Experiment:
    """Experiment of one config.

    Raises:
        ValueError: several seeds; node features wanted where there are none.
    """
    cfg = settings.groups(config)["model"]
    predictor = link_predictors.of_graph(GNN(cfg), subgraphs=False)
    return link_training.make(config, artifacts, predictor)
