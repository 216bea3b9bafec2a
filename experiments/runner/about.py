# SPDX-License-Identifier: Apache-2.0
"""What a config module says of its system in words, for `--list`, the report and README.

A config module offers `ABOUT`, an About, and `HEADLINE`, a tuple of Headline. Imports no JAX.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple


class About(NamedTuple):
    """One system in words; every field is wanted."""

    asked: str
    """One sentence: what is trained, and what is asked of it."""
    cost: Mapping[str, str]
    """{variant: time and machine} of at least "tiny" and "base": "40 s on 2 CPU cores"."""
    data: str
    """What `:base` learns from, and its licence."""
    use: str
    """What a trained model is meant for."""
    failures: str
    """Where it is known to fail."""
    actions: Mapping[str, str] = {}
    """{name of an action: what it answers}, as in Experiment.actions."""


class Headline(NamedTuple):
    """A metric that a reader sees first."""

    metric: str
    """Its key in results.json."""
    better: Literal["higher", "lower"]
    sentence: str
    """What it measures, in one sentence with its unit or range."""
    references: tuple[str, ...] = ()
    """Keys of metrics of the same run that need no training (counts, chance, the untrained agent);
    the best of them is what the verdict compares with. Where results.json also holds
    <metric>/minus_<first part of the reference>, with /low and /high, that interval is shown."""


def metrics_of(headline: tuple[Headline, ...]) -> tuple[str, ...]:
    """Keys to show first: the metrics, then what they are compared with; none twice."""
    metrics = [entry.metric for entry in headline]
    references = [name for entry in headline for name in entry.references]
    return tuple(dict.fromkeys([*metrics, *references]))
