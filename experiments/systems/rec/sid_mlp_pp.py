# SPDX-License-Identifier: Apache-2.0
"""Wiring of SID-MLP++: an encoder of MLPs is fitted to the teacher's states, then read-out and
heads are distilled on its own."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from experiments.runner import settings
from experiments.runner.contract import Experiment
from experiments.runner.errors import UserError
from experiments.systems.rec.recommenders import distillation
from experiments.systems.rec.recommenders.distillation import Student
from rec import training
from rec.models import sid_mlp
from rec.models.packed import Packed
from rec.models.sid_mlp_pp import Mixer
from rec.models.tiger import Tiger
from rec.training import Step

READER = "reader"
"""Subtree of the parameters that stage 1 trains; stage 2 trains the others."""


def prepare(config: ConfigDict) -> dict[str, Any]:
    """Makes the artifacts of a student, see `distillation.prepare`.

    Raises:
        UserError: a teacher that does not fit, or one without an encoder over digits.
    """
    artifacts = distillation.prepare(config)
    model = distillation.load_teacher_config(artifacts)
    if model.layout != "encoder_decoder":
        raise UserError(
            f"config.teacher={config.teacher}: its layout is {model.layout!r}, but sid_mlp_pp "
            "replaces the encoder of 'encoder_decoder': take a run of tiger:t5, or use sid_mlp"
        )
    return artifacts


def make(config: ConfigDict, artifacts: Mapping[str, Any]) -> Experiment:
    """Makes the Experiment of one config.

    Raises:
        ValueError: several seeds, a SID table that does not match its hash, or histories of more
            tokens than there are learned positions.
    """
    settings.one_seed(config)
    groups = settings.groups(config)
    mixer = groups["mixer"]

    def make_reader(teacher: Tiger | Packed) -> Mixer:
        cfg = teacher.cfg
        tokens = bool(cfg.user_tokens) + cfg.max_items * (len(teacher.sizes) + cfg.separators)
        if tokens > mixer.positions:
            raise ValueError(
                f"config.mixer.positions={mixer.positions}: the teacher's histories have {tokens} "
                "tokens"
            )
        return Mixer(mixer, len(teacher.sizes), bool(cfg.user_tokens), cfg.separators)

    student = distillation.make_student(config, artifacts, make_reader)
    optimizers = Optimizers(
        training.optimizer(groups["optim_mixer"]), training.optimizer(groups["optim"])
    )
    step = make_step(student, optimizers, mixer.updates)
    return distillation.make_experiment(config, artifacts, student, optimizers.init, step)


class Optimizers:
    """The optimizers of both stages, each with the parameters it updates."""

    def __init__(
        self, mixer: optax.GradientTransformation, heads: optax.GradientTransformation
    ) -> None:
        self.mixer = mixer
        self.heads = heads

    def init(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the states of both."""
        return {
            "mixer": self.mixer.init(params[READER]),
            "heads": self.heads.init(without_reader(params)),
        }


def without_reader(params: Mapping[str, Any]) -> dict[str, Any]:
    """Selects what stage 2 trains."""
    return {name: leaf for name, leaf in params.items() if name != READER}


def make_step(student: Student, optimizers: Optimizers, updates: int) -> Step:
    """Makes (state, batch) -> (state, metrics): one update of the stage that the step is in.

    The loss is that of the stage; states_error, that of stage 1, is told in both.

    Args:
        updates: of stage 1.
    """
    model = student.model

    def step(state: Mapping[str, Any], batch: Mapping[str, Any]) -> tuple[dict, dict]:
        key = jax.random.fold_in(state["key"], state["step"])
        pairs = student.draw_pairs(key, batch)
        teacher = distillation.teacher_params(batch)
        dropout_key = student.dropout_key(key, batch)
        params, opt_state = state["params"], state["opt_state"]

        def imitate() -> tuple[Any, Any, dict[str, jax.Array]]:
            def loss(reader: Any) -> jax.Array:
                joined = {READER: reader, "teacher": teacher}
                return sid_mlp.imitation_loss(model, joined, pairs, dropout_key)

            reader, mixer_state, metrics = training.update(
                loss, params[READER], opt_state["mixer"], optimizers.mixer
            )
            metrics = {**metrics, "states_error": metrics["loss"]}
            return {**params, READER: reader}, {**opt_state, "mixer": mixer_state}, metrics

        def distill() -> tuple[Any, Any, dict[str, jax.Array]]:
            def loss(heads: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
                joined = {**heads, READER: params[READER], "teacher": teacher}
                total, parts = sid_mlp.loss(model, joined, pairs, dropout_key)
                return total, {"states_error": parts["states_error"]}

            heads, heads_state, metrics = training.update_with_parts(
                loss, without_reader(params), opt_state["heads"], optimizers.heads
            )
            return {**params, **heads}, {**opt_state, "heads": heads_state}, metrics

        is_first = state["step"] < updates
        params, opt_state, metrics = jax.lax.cond(is_first, imitate, distill)
        metrics = {**metrics, "stage": jnp.where(is_first, 1.0, 2.0)}
        return training.next_state(state, params, opt_state), metrics

    return step
