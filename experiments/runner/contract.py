# SPDX-License-Identifier: Apache-2.0
"""The contract between the loop and a system: one bundle of functions.

A module `experiments/systems/<name>.py` offers `make(config, artifacts) -> Experiment` and, where
something has to exist before training (task tables, semantic IDs, a tokenizer), also
`prepare(config) -> artifacts`: nested dicts of NumPy arrays and JSON values, made once on a fresh
start, saved with every checkpoint and read back by resume, eval, check and actions.

The config module `experiments/configs/<name>.py` offers `get_config`, `GROUPS` and `VARIANTS`
(settings.py), `ABOUT` and `HEADLINE` (about.py), where there are published numbers `PAPER`, and
where a system stands on the folder of an earlier run, `STANDS_ON = ("teacher",)`, the keys of the
top level that name it. A system may also offer `compare(folders) -> {title: Rows or Picture}` for
--mode=report of several of its run folders.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import PartitionSpec

from experiments.runner.queries import Answer, Query

State = dict[str, Any]
Batch = Mapping[str, np.ndarray]
Metrics = Mapping[str, Any]
Records = Sequence[Mapping[str, Any]]


class Rows(NamedTuple):
    """A table for the report; cells are text or numbers."""

    head: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    caption: str
    """What the table shows, in a sentence; not empty."""


class Picture(NamedTuple):
    """A picture for the report."""

    data: bytes
    """PNG or GIF."""
    caption: str
    """What it shows and how to read it, in a sentence; not empty."""


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
    figures: Callable[[Records, State], Mapping[str, Picture | Rows]] | None = None
    """(all records, last state) -> {title: a picture or a table} for the report."""
    must_be_finite: tuple[str, ...] = ("loss", "grad_norm", "reward", "kl")
    """Endings of the training metrics that stop a run, with a saved state, where one is not
    finite."""
    bar: tuple[str, ...] = ("loss", "reward")
    """Training metrics beside the progress bar, at most two; those a step lacks are left out."""
    actions: Mapping[str, Callable[[State, Query], Answer]] = {}
    """{name: (state, query) -> answer}, served by --mode=<name> --query=TEXT|@FILE|all [--top=K]
    [--out=FILE|DIR]. An answer is text, tables one after the other, or named bytes; the runner
    alone writes files. The config module's ABOUT says what each answers."""
