# SPDX-License-Identifier: Apache-2.0
"""Wiring of the passkey task: rows made from (seed, step), accuracy by length and depth."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from attention.lm import model, training
from attention.lm.config import LMConfig
from attention.lm.passkey import Task, rows
from experiments.runner import settings
from experiments.runner.contract import Experiment, Picture
from experiments.runner.plots import BLUE, INK, color_bar, new_axes, png, style
from experiments.systems.attention.language import wiring as language

EVAL_SEED = 20_260_112  # the same questions at every step of every run
EVAL_TOKENS = 1 << 15  # of an evaluation that run at once
DEPTHS = 5  # bins of the needle's depth in figures


def task_of(config: ConfigDict) -> Task:
    """The task of config.data."""
    data = config.data
    return Task(data.digits, data.needles, data.names, data.noise)


def make(config: ConfigDict, artifacts: Mapping[str, Any]) -> Experiment:
    """Experiment of one config.

    Raises:
        ValueError: model.vocab_size does not fit the task, a length is too short for its needles,
            more than one seed.
    """
    del artifacts
    language.check(config)
    groups = settings.groups(config)
    cfg, optim, evaluation, task = groups["model"], groups["optim"], groups["eval"], task_of(config)
    if cfg.vocab_size != task.vocab_size:
        raise ValueError(
            f"config.model.vocab_size={cfg.vocab_size} must be {task.vocab_size}: "
            "config.data.noise + 10 + config.data.names + 2"
        )
    short = [n for n in evaluation.lengths if n < task.shortest]
    if short:
        raise ValueError(f"config.eval.lengths: {short} are below {task.shortest}, the needles")

    def batch(step: int, wanted: tuple[int, int] | None = None) -> dict[str, np.ndarray]:
        low, high = wanted or (0, config.data.rows)
        made = rows(
            task, np.random.default_rng([config.seed, step]), config.data.rows, config.data.length
        )
        return {"ids": made.ids[low:high], "weights": made.weights[low:high]}

    evaluate = Evaluation(cfg, evaluation, task, config.data.length)
    return Experiment(
        init=language.make_init(cfg, optim),
        step=language.make_step(cfg, optim),
        batch=batch,
        evaluate=evaluate.metrics,
        rules=language.RULES,
        splits=("valid", "lengths"),
        selectable=("valid/accuracy",),
        figures=make_figures(evaluate.right, evaluation.lengths, config.data.length),
    )


class Evaluation:
    """Answers of a model to the same questions at every step."""

    def __init__(self, cfg: LMConfig, evaluation: Any, task: Task, length: int) -> None:
        self._cfg, self._evaluation, self._task, self._length = cfg, evaluation, task, length

        def answers(params: Any, cfg: LMConfig, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
            def one(row: jax.Array) -> tuple[jax.Array, jax.Array]:
                logits = model.forward(params, cfg, row[None, :-1]).logits[:, -task.digits :]
                asked = row[None, -task.digits :]
                right = (logits.argmax(-1) == asked).all()
                return right, training.cross_entropy(logits, asked).mean()

            at_once = max(1, EVAL_TOKENS // ids.shape[1])
            return jax.lax.map(one, ids, batch_size=min(at_once, ids.shape[0]))

        self._answers = jax.jit(answers, static_argnums=1)

    def right(self, params: Any, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(bool [rows] all digits right, nats [rows] per digit, depth [rows]).

        All digits are right under teacher forcing exactly if greedy decoding gets them all.
        """
        evaluation = self._evaluation
        cfg = language.config_at(self._cfg, self._length, length, ntk=evaluation.ntk)
        depth = np.linspace(0, 1, evaluation.rows)
        made = rows(
            self._task, np.random.default_rng([EVAL_SEED, length]), evaluation.rows, length, depth
        )
        found = jax.device_get(self._answers(params, cfg, jnp.asarray(made.ids)))
        return *found, made.depth

    def metrics(self, state: Mapping[str, Any], split: str) -> dict[str, float]:
        """Accuracy and loss at the training length ("valid"), or at all lengths."""
        chance = 10.0**-self._task.digits
        if split == "valid":
            right, nats, _ = self.right(state["params"], self._length)
            out = {"accuracy": right.mean(), "accuracy/chance": chance, "loss": nats.mean()}
            return {f"valid/{name}": float(value) for name, value in out.items()}
        out = {}
        for length in self._evaluation.lengths:
            right, nats, _ = self.right(state["params"], length)
            out[f"lengths/accuracy@{length}"] = float(right.mean())
            out[f"lengths/loss@{length}"] = float(nats.mean())
        return out


def make_figures(
    right: Callable[..., Any], lengths: Sequence[int], trained: int
) -> Callable[[Any, Mapping[str, Any]], dict[str, Picture]]:
    """Accuracy by length, and by length and depth of the needle."""

    def figures(records: Any, state: Mapping[str, Any]) -> dict[str, Picture]:
        del records
        grid, means = np.full((DEPTHS, len(lengths)), np.nan), []
        for column, length in enumerate(lengths):
            found, _, depth = right(state["params"], length)
            means.append(found.mean())
            bins = np.minimum((depth * DEPTHS).astype(int), DEPTHS - 1)
            for row in range(DEPTHS):
                if (bins == row).any():
                    grid[row, column] = found[bins == row].mean()
        figure, ((curve, heat),) = new_axes(10, 3.2, columns=2)
        curve.plot(lengths, means, marker="o", color=BLUE)
        curve.axvline(trained, color=INK, linewidth=1)
        curve.set_xscale("log", base=2)
        curve.set_xticks(lengths, [str(n) for n in lengths])
        curve.set(ylim=(-0.03, 1.03), xlabel="length, tokens", ylabel="share of right answers")
        style(curve, grid="both")
        image = heat.imshow(grid, vmin=0, vmax=1, cmap="viridis", aspect="auto")
        heat.set_xticks(range(len(lengths)), [str(n) for n in lengths])
        edges = np.arange(DEPTHS) / DEPTHS
        heat.set_yticks(range(DEPTHS), [f"{e:.0%}-{e + 1 / DEPTHS:.0%}" for e in edges])
        heat.set(xlabel="length, tokens", ylabel="depth of the needle")
        style(heat, grid=None)
        color_bar(figure, image, heat, "share of right answers")
        caption = (
            "Share of questions with every digit right. Left: by length of the text, the vertical "
            "line is the length of training. Right: by length and by where in the text the needle "
            "is, 0% being its beginning."
        )
        return {"Retrieval by length and depth": Picture(png(figure), caption)}

    return figures
