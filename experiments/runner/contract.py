# SPDX-License-Identifier: Apache-2.0
"""The contract between the loop and a system: one bundle of functions.

A module `experiments/systems/<name>.py` offers `make(config, artifacts) -> Experiment` and, where
something has to exist before training (task tables, semantic IDs, a tokenizer), also
`prepare(config) -> artifacts`: nested dicts of NumPy arrays and JSON values, made once on a fresh
start, saved with every checkpoint and read back by resume, eval, check and actions.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import PartitionSpec

State = dict[str, Any]
Batch = Mapping[str, np.ndarray]
Metrics = Mapping[str, Any]
Records = Sequence[Mapping[str, Any]]


class Rows(NamedTuple):
    """A table for the report; cells are text or numbers."""

    head: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    note: str = ""


class Experiment(NamedTuple):
    """What a system gives the loop. Only `init`, `evaluate` and `rules` are always needed.

    Evaluation-only systems (train.steps = 0) have params {} and neither `step` nor `batch`.
    """

    init: Callable[[Any], State]
    """key -> state. Pure; a plain dict holding at least step (int32), params and key."""
    evaluate: Callable[[State, str], Metrics]
    """(state, split) -> full metric keys to floats, or to arrays [num_seeds]. Deterministic."""
    rules: tuple[tuple[str, PartitionSpec], ...] = ()
    """(regex over "/"-joined leaf paths, spec), first full match wins; state leaves not matched
    are replicated, leaves of `batch/<key>` default to P("data")."""
    step: Callable[[State, Any], tuple[State, Metrics]] | None = None
    """(state, batch) -> (state, metrics). Pure, jittable, one update; metrics: float32 scalars or
    [num_seeds]."""
    batch: Callable[..., Batch] | None = None
    """(step, rows=None) -> the global batch (or only rows [lo, hi) of it) as a pure function of
    (seed, step). A leaf that is the same object as last step's is not transferred again."""
    splits: tuple[str, ...] = ("test",)
    """Evaluated at every milestone and at the end; their keys make up results.json."""
    selectable: tuple[str, ...] = ()
    """Metrics of evaluate(state, "valid") that config.eval.select may name."""
    milestones: tuple[int, ...] = ()
    """Steps that are always evaluated, saved and kept."""
    summary: Callable[[Records], dict[str, Any]] | None = None
    """Records of all evaluations on `splits` -> metrics derived from several of them."""
    figures: Callable[[Records, State], Mapping[str, bytes | Rows]] | None = None
    """(all records, last state) -> {title: PNG or GIF bytes, or a table} for the report."""
    must_be_finite: tuple[str, ...] = ("loss", "grad_norm", "reward", "kl")
    """Endings of the training metrics that stop a run, with a saved state, where one is not
    finite."""
    actions: Mapping[str, Callable[[State, str], str]] = {}
    """{name: (state, query) -> answer}, served by --mode=<name> --query=TEXT|@FILE."""
