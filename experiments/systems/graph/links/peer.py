# SPDX-License-Identifier: Apache-2.0
"""A graph network that learns beside PENCIL, so that every report has a learned peer too."""

from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from experiments.configs.graph import gnn
from experiments.systems.graph import gnn as gnn_system
from experiments.systems.graph.links import wiring


def train_and_test(config: ConfigDict, artifacts: Mapping[str, Any]) -> dict[str, float]:
    """Trains the GCN of the system gnn for config.peer.steps updates on the same links and tests
    its last state, nothing is selected: {"gnn/test/<metric>": value}, or {} for 0 updates."""
    if not config.peer.steps:
        return {}
    peer = gnn.get_config("tiny" if config.variant == "tiny" else "base")
    peer.data = config.data
    peer.seed = config.seed
    peer.sample.rows = config.sample.rows
    peer.sample.negatives = config.sample.negatives
    peer.sample.avoid = config.sample.avoid
    peer.sample.groups = 1
    experiment = gnn_system.make(peer, {**artifacts, "rows": {}})
    assert experiment.step is not None
    assert experiment.batch is not None
    state = jax.jit(experiment.init)(jax.random.key(config.seed))
    step = jax.jit(experiment.step)
    for number in range(config.peer.steps):
        state, _ = step(state, experiment.batch(number))
    metrics = experiment.evaluate(state, "test")
    # "test/auc" and the like, not "test/auc/one_draw".
    names = [name for name in metrics if name.count("/") == 1]
    rows = {f"gnn/{name}": float(metrics[name]) for name in names}
    shown = wiring.format_metrics(rows, "gnn/test/")
    print(f"  {'gnn':<10} test: {shown}  ({config.peer.steps} updates)")
    return rows
