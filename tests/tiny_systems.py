# SPDX-License-Identifier: Apache-2.0
"""What several test files need of a system: its tiny config, assembled, and a loop by hand."""

from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.runner import loop, names, settings, sharding
from experiments.runner.assemble import Assembly, initial_state
from experiments.runner.hosts import to_host
from tests import jitter
from tests.jitter import jittered
from tests.toy import changed

CONFIGS = sorted(names.systems())


def tiny(system: str, **changes: Any) -> ConfigDict:
    """`:tiny` config; changes are given as group__key=value."""
    config = changed(names.config_module(system).get_config("tiny"), changes)
    settings.groups(config)
    return config


def run_steps(asm: Assembly, steps: int) -> tuple[Any, list[dict[str, Any]]]:
    """State and metrics after the first steps, through the loop's own jitted step."""
    return _drive(asm, steps, lambda step, state, batch: step)[:2]


def run_compiled(asm: Assembly, steps: int) -> tuple[Any, list[dict[str, Any]], str]:
    """The same through one compiled program, with its text."""
    return _drive(asm, steps, lambda step, state, batch: step.lower(state, batch).compile())


def moments(state: Any) -> dict[str, np.ndarray]:
    """Adam's running means of gradients, on the host, by path in the state of the optimizer.

    They are linear in the gradients. Parameters are not: Adam gives the rounding of a gradient that
    should be 0 (of key biases, under softmax) a whole step.
    """
    leaves = jax.tree_util.tree_leaves_with_path(state["opt_state"])
    named = {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
    return {path: np.asarray(leaf) for path, leaf in named.items() if ".mu" in path}


def assert_same_training(got: Any, want: Any, atol: float = 0.0, share: float = 1e-4) -> None:
    """Asserts that states and metrics of `run_steps`, of two updates at most, agree.

    Losses to 1e-5 of themselves or `atol`, moments to `share` of the largest. Later updates are
    left out: thresholds and Adam amplify rounding, and six updates of two right programs differ by
    2.5e-4.
    """
    losses = [np.array([m["loss"] for m in metrics]) for _, metrics in (got, want)]
    jitter.close("loss", *losses, rtol=1e-5, atol=atol)
    means = moments(want[0])
    largest = max(float(np.abs(mean).max()) for mean in means.values())
    assert largest > 0
    jitter.close("moments of gradients", moments(got[0]), means, atol=share * largest)


def _drive(asm: Assembly, steps: int, build: Any) -> tuple[Any, list[dict[str, Any]], str]:
    assert asm.experiment.batch is not None
    feed = sharding.Feed(asm.mesh, asm.experiment.rules)
    state, metrics = initial_state(asm), []
    batch = asm.experiment.batch(0)
    step = build(loop.jit_step(asm, batch), state, feed.put(batch, None))
    for t in range(steps):
        state, found = step(state, feed.put(jittered(asm.experiment.batch(t)), None))
        metrics.append(to_host(found))
    return state, metrics, step.as_text() if hasattr(step, "as_text") else ""
