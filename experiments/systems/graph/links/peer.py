# SPDX-License-Identifier: Apache-2.0
"""A graph network that learns beside PENCIL, so that every report has a learned peer too."""

from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from experiments.configs.graph import gnn
from experiments.systems.graph import gnn as system
from experiments.systems.graph.links import wiring as links


def rows(config: ConfigDict, artifacts: Mapping[str, Any]) -> dict[str, float]:
    """{"gnn/test/<metric>": value} of the GCN of the system gnn after config.peer.steps updates on
    the same links; the last state is tested, nothing is selected. {} for 0 updates."""
    if not config.peer.steps:
        return {}
    other = gnn.get_config("tiny" if config.variant == "tiny" else "base")
    other.data, other.seed = config.data, config.seed
    other.sample.update({"rows": config.sample.rows, "negatives": config.sample.negatives})
    other.sample.update({"avoid": config.sample.avoid, "groups": 1})
    made = system.make(other, {**artifacts, "rows": {}})
    assert made.step is not None and made.batch is not None
    state, step = jax.jit(made.init)(jax.random.key(config.seed)), jax.jit(made.step)
    for number in range(config.peer.steps):
        state, _ = step(state, made.batch(number))
    found = made.evaluate(state, "test")
    names = [name for name in found if name.count("/") == 1]
    out = {f"gnn/{name}": float(found[name]) for name in names}
    print(f"  {'gnn':<10} test: {links.cells(out, 'gnn/test/')}  ({config.peer.steps} updates)")
    return out
