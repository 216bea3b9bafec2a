# SPDX-License-Identifier: Apache-2.0
"""What several test files need of a system: its tiny config, assembled, and a loop by hand."""

from typing import Any

from experiments.runner.assemble import Assembly, initial_state
from experiments.runner.hosts import to_host
from ml_collections import ConfigDict

from experiments.runner import loop, names, settings, sharding
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


def _drive(asm: Assembly, steps: int, build: Any) -> tuple[Any, list[dict[str, Any]], str]:
    assert asm.experiment.batch is not None
    feed = sharding.Feed(asm.mesh, asm.experiment.rules)
    state, metrics = initial_state(asm), []
    batch = asm.experiment.batch(0)
    step = build(loop.jit_step(asm, batch), state, feed.put(batch, None))
    for t in range(steps):
        state, found = step(state, feed.put(asm.experiment.batch(t), None))
        metrics.append(to_host(found))
    return state, metrics, step.as_text() if hasattr(step, "as_text") else ""
