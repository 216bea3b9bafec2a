# SPDX-License-Identifier: Apache-2.0
"""Says of a metric how it stands beside the best row of the same run that needs no training."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from experiments.runner.about import Headline


class Verdict(NamedTuple):
    """A metric beside its reference."""

    metric: str
    value: float
    reference: str
    """Key of the best reference; "" where none was measured."""
    reference_value: float
    """nan without a reference."""
    word: str
    """better, worse, equal; "" without a reference."""
    low: float
    high: float
    """Interval of the difference; nan where it is not known."""
    text: str
    """The verdict in words."""


def judge(
    metrics: Mapping[str, float], per_seed: Mapping[str, Sequence[float]], entry: Headline
) -> Verdict:
    """Compares metrics[entry.metric] with the best of its references."""
    del per_seed
    value = metrics[entry.metric]
    known = [name for name in entry.references if name in metrics]
    if not known:
        text = "nothing to compare with"
        return Verdict(entry.metric, value, "", math.nan, "", math.nan, math.nan, text)
    best = (max if entry.better == "higher" else min)(known, key=lambda name: metrics[name])
    gap = value - metrics[best]
    ahead = gap if entry.better == "higher" else -gap
    word = "better" if ahead > 0 else "worse" if ahead < 0 else "equal"
    text = f"{word}: {gap:+.4f}"
    return Verdict(entry.metric, value, best, metrics[best], word, math.nan, math.nan, text)
