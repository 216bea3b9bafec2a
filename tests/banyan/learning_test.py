# SPDX-License-Identifier: Apache-2.0
"""Learning checks, three seeds each, through the runner as a user types it (marker `slow`).

Feed-forward PPO on 5x5 boards with 3 walls, depths 1-2. Every seed draws its own rules, trees and
layouts. Each check leaves a dated file in experiments/results/ with all runs, commands and the
commit; criteria are those of the specification of the world, fixed before the runs.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.learning import SEEDS, leave, train

FEED_FORWARD = (
    "--config.model.memory=none",
    "--config.model.layers=2",
    "--config.agent.epochs=3",
    "--config.eval.every=1000",
    "--config.log.every_s=30",
)

pytestmark = pytest.mark.slow


def test_learns_depths_one_and_two(tmp_path: Path) -> None:
    """64 trees x 64 layouts: at least .93 / .90 success by 2.5M steps, on every seed; dead ends,
    frequent under random play, become rare."""
    runs = [
        train(
            tmp_path / f"s{seed}",
            "banyan",
            seed,
            *FEED_FORWARD,
            "--config.env.layouts=64,256",
            "--config.env.objects=64",
            "--config.train.phase_steps=305",
            "--config.train.steps=305",
        )
        for seed in SEEDS
    ]
    leave(
        "banyan_learns",
        "d1/end/success/depth1 >= .93 and depth2 >= .90 after 305 updates (2.5M steps), all seeds",
        {"64 trees x 64 layouts": runs},
    )
    for run in runs:
        metrics = run["metrics"]
        assert metrics["d1/end/success/depth1"] >= 0.93
        assert metrics["d1/end/success/depth2"] >= 0.90
        assert metrics["untrained/d1/success"] <= 0.25  # the trivial baseline: untrained play
        assert metrics["d1/end/dead_end"] < 0.02 < metrics["untrained/d1/dead_end"]


def gaps(
    tmp_path: Path, axis: str, conditions: dict[int, tuple[int, tuple[str, ...]]]
) -> dict[str, list[dict[str, Any]]]:
    """Runs of one phase per size of the first distribution: {size: (updates, options)}."""
    return {
        f"{axis}={size}": [
            train(
                tmp_path / f"{axis}{size}s{seed}",
                "banyan",
                seed,
                *FEED_FORWARD,
                *options,
                f"--config.train.phase_steps={updates}",
                f"--config.train.steps={updates}",
            )
            for seed in SEEDS
        ]
        for size, (updates, options) in conditions.items()
    }


def mean_gap(runs: list[dict[str, Any]]) -> float:
    return float(np.mean([run["metrics"]["gap/2"] for run in runs]))


def test_layout_gap_closes_with_diversity(tmp_path: Path) -> None:
    """8 trees, 256 held-out layouts: the more layouts in d1, the smaller the transfer gap."""
    options = lambda n: (f"--config.env.layouts={n},256", "--config.env.objects=8")
    runs = gaps(
        tmp_path,
        "layouts",
        {1: (100, options(1)), 64: (100, options(64)), 1024: (140, options(1024))},
    )
    leave("banyan_layout_gap", "gap(1) >= .7, gap(64) <= .45, gap(1024) <= .10, decreasing", runs)
    one, some, many = (mean_gap(runs[f"layouts={n}"]) for n in (1, 64, 1024))
    assert one >= 0.7 and some <= 0.45 and many <= 0.10
    assert one > some > many


def test_object_gap_closes_with_diversity(tmp_path: Path) -> None:
    """The same layouts, 256 held-out trees: the more trees in d1, the smaller the gap."""
    options = lambda n: (
        "--config.env.shift=('objects',)",
        "--config.env.layouts=64",
        f"--config.env.objects={n},256",
    )
    runs = gaps(tmp_path, "objects", {1: (140, options(1)), 64: (140, options(64))})
    leave("banyan_object_gap", "gap(1) >= .4, gap(64) <= .10", runs)
    assert mean_gap(runs["objects=1"]) >= 0.4
    assert mean_gap(runs["objects=64"]) <= 0.10
