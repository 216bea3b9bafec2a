# SPDX-License-Identifier: Apache-2.0
"""Wiring of PENCIL."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments.runner import settings
from experiments.runner.contract import Experiment, Picture, Rows
from experiments.systems.graph.links import figures, peer, predictors, scores, training, wiring
from graph import sample
from graph.pencil import Pencil, attention_of, gather


def prepare(config: ConfigDict) -> dict[str, Any]:
    """Makes graph, names, features, card; rows of the heuristics and of a graph network."""
    artifacts = wiring.prepare(config)
    check(config, artifacts)  # before the peer is compiled
    rows = {**artifacts["rows"], **peer.train_and_test(config, artifacts)}
    return {**artifacts, "rows": rows}


def check(config: ConfigDict, artifacts: Mapping[str, Any]) -> None:
    """Raises ValueError where config.model.slots is below what is sampled, or features are fused
    and there are none."""
    training.check_slots(config, config.model.slots)
    if config.model.fusion != "none" and not np.asarray(artifacts["features"]).shape[1]:
        raise ValueError(
            f"config.model.fusion={config.model.fusion!r}: {config.data.name} brings no node "
            "features; use --config.model.fusion=none"
        )


def make(config: ConfigDict, artifacts: Mapping[str, Any]) -> Experiment:
    """Makes the Experiment of one config.

    Raises:
        ValueError: several seeds; see `check`.
    """
    check(config, artifacts)
    groups = settings.groups(config)
    cfg = groups["model"]
    featured = cfg.fusion != "none"
    features = np.asarray(artifacts["features"])
    graph = wiring.build_graph(artifacts)
    node_names = list(artifacts["names"])
    model = Pencil(cfg)

    def draw_attention(state: Mapping[str, Any], pair: np.ndarray) -> dict[str, Picture | Rows]:
        """The subgraph of a link, and what its task tokens read in the last layer."""
        batch = scores.sample_link(graph, pair, groups["sample"])
        table = gather(features, batch.ids) if featured else None
        variables = {"params": state["params"], "frozen": state["frozen"]}
        maps = np.asarray(attention_of(model, variables, batch, table))[0]
        tokens = int(np.asarray(batch.n)[0])
        bits = np.asarray(batch.adj_bits)
        adjacency = sample.unpack(bits, batch.ids.shape[1])[0, :tokens, :tokens]
        names = [node_names[int(i)] for i in np.asarray(batch.ids)[0, :tokens]]
        picture = figures.draw_link(adjacency, names, list(maps[:, :tokens]))
        return {"What is read around a link": picture}

    predictor = predictors.from_subgraph_model(model, featured)
    return training.make(config, artifacts, predictor, draw_attention)
