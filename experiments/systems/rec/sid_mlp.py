# SPDX-License-Identifier: Apache-2.0
"""Wiring of SID-MLP: a read-out and an MLP per digit learn what a frozen generator answers."""

from collections.abc import Mapping
from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from experiments.runner import settings
from experiments.runner.contract import Experiment
from experiments.systems.rec.recommenders import distillation
from experiments.systems.rec.recommenders.distillation import Step, Student
from rec import training
from rec.models import generators, sid_mlp
from rec.models.packed import Packed
from rec.models.tiger import Tiger

prepare = distillation.prepare


def make(config: ConfigDict, artifacts: Mapping[str, Any]) -> Experiment:
    """Makes the Experiment of one config.

    Raises:
        ValueError: several seeds, or a SID table that does not match its hash.
    """
    settings.one_seed(config)
    student = make_student(config, artifacts)
    tx = training.optimizer(settings.groups(config)["optim"])
    init = distillation.make_init(student, tx.init)
    return distillation.make_experiment(config, artifacts, student, init, make_step(student, tx))


def make_student(config: ConfigDict, artifacts: Mapping[str, Any]) -> Student:
    """Makes the student, which reads histories with its teacher unless it starts from scratch."""
    control = settings.groups(config)["distill"].control

    def make_reader(teacher: Tiger | Packed) -> Tiger | Packed | None:
        return generators.make(teacher.cfg, teacher.sizes) if control == "scratch" else None

    return distillation.make_student(config, artifacts, make_reader)


def make_step(student: Student, tx: optax.GradientTransformation) -> Step:
    """Makes (state, batch) -> (state, metrics): one update of the student."""
    model = student.model

    def step(state: Mapping[str, Any], batch: Mapping[str, Any]) -> tuple[dict, dict]:
        key = jax.random.fold_in(state["key"], state["step"])
        pairs = student.draw_pairs(key, batch)
        teacher = distillation.teacher_params(batch)
        dropout_key = student.dropout_key(key, batch) if model.cfg.dropout else None

        def loss(params: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
            return sid_mlp.loss(model, {**params, "teacher": teacher}, pairs, dropout_key)

        params, opt_state, metrics = training.update_with_parts(
            loss, state["params"], state["opt_state"], tx
        )
        new_state = {
            **state,
            "step": state["step"] + 1,
            "params": params,
            "opt_state": opt_state,
        }
        return new_state, metrics

    return step
