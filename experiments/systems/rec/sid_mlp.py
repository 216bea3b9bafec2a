# SPDX-License-Identifier: Apache-2.0
"""Wiring of SID-MLP: a read-out and an MLP per digit learn what a frozen generator answers."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from experiments.runner import settings
from experiments.runner.contract import Experiment
from experiments.systems.rec.recommenders import distillation
from experiments.systems.rec.recommenders.distillation import Student
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
    step = training.make_step(tx, make_loss(student), training.update_with_parts)
    return distillation.make_experiment(config, artifacts, student, tx.init, step)


def make_student(config: ConfigDict, artifacts: Mapping[str, Any]) -> Student:
    """Makes the student, which reads histories with its teacher unless it starts from scratch."""
    control = settings.groups(config)["distill"].control

    def make_reader(teacher: Tiger | Packed) -> Tiger | Packed | None:
        return generators.make(teacher.cfg, teacher.sizes) if control == "scratch" else None

    return distillation.make_student(config, artifacts, make_reader)


def make_loss(student: Student) -> Callable[..., tuple[jax.Array, dict[str, jax.Array]]]:
    """Makes (params, batch, key) -> (loss, its parts)."""
    model = student.model

    def loss(
        params: Any, batch: Mapping[str, Any], key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        pairs = student.draw_pairs(key, batch)
        joined = {**params, "teacher": distillation.teacher_params(batch)}
        dropout_key = student.dropout_key(key, batch) if model.cfg.dropout else None
        return sid_mlp.loss(model, joined, pairs, dropout_key)

    return loss
