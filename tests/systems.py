# SPDX-License-Identifier: Apache-2.0
"""What several test files need of a system: its tiny config, assembled, and a loop by hand."""

import importlib
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from experiments import loop, settings, sharding

CONFIGS = sorted(
    p.stem
    for p in (Path(__file__).resolve().parent.parent / "experiments" / "configs").glob("*.py")
    if p.stem != "__init__"
)


def tiny(system: str, **changes: Any) -> ConfigDict:
    """`:tiny` config; changes are given as group__key=value."""
    config = importlib.import_module(f"experiments.configs.{system}").get_config("tiny")
    for name, value in changes.items():
        group, _, key = name.partition("__")
        if key:
            config[group][key] = value
        else:
            config[group] = value
    settings.groups(config)
    return config.lock()


def run_steps(asm: loop.Assembly, steps: int) -> tuple[Any, list[dict[str, Any]]]:
    """State and metrics after the first steps, on the assembly's mesh."""
    assert asm.experiment.batch is not None
    feed = sharding.Feed(asm.mesh, asm.experiment.rules)
    state, metrics = loop.initial_state(asm), []
    step = loop.jit_step(asm, asm.experiment.batch(0))
    for t in range(steps):
        state, found = step(state, feed.put(asm.experiment.batch(t), None))
        metrics.append(loop.to_host(found))
    return state, metrics
