# SPDX-License-Identifier: Apache-2.0
"""Wiring of PENCIL."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments.runner import settings
from experiments.runner.contract import Experiment, Rows
from experiments.systems.graph.links import figures as links_figures
from experiments.systems.graph.links import peer as link_peer
from experiments.systems.graph.links import predictors as link_predictors
from experiments.systems.graph.links import scores as link_scores
from experiments.systems.graph.links import training as link_training
from experiments.systems.graph.links import wiring as links
from graph import sample
from graph.pencil import Pencil, attention_of, gather


def prepare(config: ConfigDict) -> dict[str, Any]:
    """Graph, names, features, card; rows of the heuristics and of a graph network."""
    found = links.prepare(config)
    check(config, found)  # before the peer is compiled
    return {**found, "rows": {**found["rows"], **link_peer.rows(config, found)}}


def check(config: ConfigDict, artifacts: Mapping[str, Any]) -> None:
    """Raises ValueError: config.model.slots below what is sampled; features fused where there are
    none."""
    link_training.check_slots(config, config.model.slots)
    if config.model.fusion != "none" and not np.asarray(artifacts["features"]).shape[1]:
        raise ValueError(
            f"config.model.fusion={config.model.fusion!r}: {config.data.name} brings no node "
            "features; use --config.model.fusion=none"
        )


def make(config: ConfigDict, artifacts: Mapping[str, Any]) -> Experiment:
    """Experiment of one config.

    Raises:
        ValueError: several seeds; see `check`.
    """
    check(config, artifacts)
    groups = settings.groups(config)
    cfg, sampling, features = groups["model"], groups["sample"], np.asarray(artifacts["features"])
    model = Pencil(cfg)
    known = {"graph": links.graph_of(artifacts), "names": list(artifacts["names"])}

    def around(state: Mapping[str, Any], pair: np.ndarray) -> dict[str, bytes | Rows]:
        """The subgraph of a link, and what its task tokens read in the last layer."""
        found = link_scores.one(known["graph"], pair, sampling)
        variables = {"params": state["params"], "frozen": state["frozen"]}
        maps = np.asarray(attention_of(model, variables, found, tables(found)))[0]
        n = int(np.asarray(found.n)[0])
        adjacency = sample.unpack(np.asarray(found.adj_bits), found.ids.shape[1])[0, :n, :n]
        names = [known["names"][int(i)] for i in np.asarray(found.ids)[0, :n]]
        title = f"{names[0]} - {names[1]}, the likeliest small link of the test; last layer"
        picture = links_figures.link_picture(adjacency, names, list(maps[:, :n]), title)
        return {"What is read around a link": picture}

    def tables(found: Any) -> Any:
        return gather(features, found.ids) if cfg.fusion != "none" else None

    predictor = link_predictors.of_subgraphs(model, cfg.fusion != "none")
    return link_training.make(config, artifacts, predictor, around)
