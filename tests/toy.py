# SPDX-License-Identifier: Apache-2.0
"""A linear regression that steps in microseconds: what the loop is killed, resumed and broken with.

Config file, system and command in one: `install` gives it to the loop under the name "toy", and

    python -m tests.toy --config=tests/toy.py --workdir=DIR

runs it as experiments/run.py runs a system.
"""

import os
import sys
import time
import types
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from experiments.runner import names, settings
from experiments.runner.about import About, Headline

DIM, OUT = 8, 4
PREPARED: list[int] = []  # one entry per call of `prepare`
VARIANTS = ("base", "tiny")


@dataclass(frozen=True)
class Toy:
    """rows: of a batch; scores: of the valid evaluations in turn; bad_step: its loss is NaN;
    milestones: of the experiment; extra: there is a second parameter; width: of the target."""

    rows: int
    lr: float
    scores: tuple[float, ...]
    bad_step: int
    milestones: tuple[int, ...]
    extra: bool
    width: int

    def __post_init__(self) -> None:
        settings.at_least("toy", 1, rows=self.rows, width=self.width)


GROUPS = {"toy": Toy}
ABOUT = About(
    asked="A linear map is trained to give the targets of made points.",
    cost={"tiny": "a second", "base": "a second"},
    data="Made from the seed.",
    use="Testing the loop.",
    failures="It learns nothing else.",
    actions={
        "say": "repeats the query",
        "step": "the step it was saved at",
        "weights": "rows of its parameters",
        "plot": "two files",
    },
)
HEADLINE = (Headline("test/error", "lower", "Mean squared distance of the parameters."),)


def get_config(arg: str = "base") -> ConfigDict:
    settings.parse_arg(arg, VARIANTS)
    config = settings.base_config("toy", arg)
    config.toy = ConfigDict(
        {
            "rows": 16,
            "lr": 0.05,
            "scores": (0.0,),
            "bad_step": -1,
            "milestones": (0, 10),
            "extra": False,
            "width": OUT,
        }
    )
    config.train.update({"steps": 20, "save_every": 4})
    config.eval.update({"every": 5, "tolerance": 1e-6})
    return config


def prepare(config: ConfigDict) -> dict[str, Any]:
    import numpy as np

    PREPARED.append(1)
    log = os.environ.get("TOY_PREPARED")
    if log:
        with Path(log).open("a") as file:
            file.write("prepared\n")
    rng = np.random.default_rng(config.seed)
    truth = rng.normal(size=(DIM, config.toy.width)).astype(np.float32)
    return {"truth": truth, "note": {"made": [len(PREPARED), os.getpid()], "text": "ü"}}


def host_batch(seed: int, step: int, rows: int, truth: Any) -> dict[str, Any]:
    import numpy as np

    rng = np.random.default_rng([seed, step])
    x = rng.normal(size=(rows, DIM)).astype(np.float32)
    return {"x": x, "y": x @ truth + 0.1}


def make(config: ConfigDict, artifacts: Mapping[str, Any]) -> Any:
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from jax.sharding import PartitionSpec as P

    from experiments.runner.contract import Experiment, Picture

    toy, seed = settings.groups(config)["toy"], config.seed
    truth = artifacts["truth"]
    every = config.eval.every
    tx = optax.adam(toy.lr)
    scale = np.ones((1, 1), np.float32)

    def init(key: Any) -> dict[str, Any]:
        params = {"w": 0.1 * jax.random.normal(key, (DIM, toy.width)), "b": jnp.zeros(toy.width)}
        if toy.extra:
            params["extra"] = jnp.ones(3)
        return {"step": jnp.int32(0), "key": key, "params": params, "opt_state": tx.init(params)}

    def loss_of(params: Any, batch: Any, noise: Any) -> Any:
        guess = batch["x"] @ params["w"] + params["b"][None, :]
        return jnp.mean((guess - batch["y"] * batch["scale"] + noise) ** 2)

    def step(state: Any, batch: Any) -> Any:
        now = state["step"] + 1
        noise = 0.01 * jax.random.normal(jax.random.fold_in(state["key"], now), (1, toy.width))
        loss, grads = jax.value_and_grad(loss_of)(state["params"], batch, noise)
        updates, opt_state = tx.update(grads, state["opt_state"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        loss = jnp.where(now == toy.bad_step, jnp.nan, loss)
        new = {"step": now, "key": state["key"], "params": params, "opt_state": opt_state}
        return new, {"loss": loss, "norm": optax.tree.norm(grads)}

    def batch(step: int, rows: tuple[int, int] | None = None) -> dict[str, Any]:
        time.sleep(float(os.environ.get("TOY_DELAY", "0")))
        lo, hi = rows or (0, toy.rows)
        whole = host_batch(seed, step, toy.rows, truth)
        return {**{k: v[lo:hi] for k, v in whole.items()}, "scale": scale}

    error_of = jax.jit(lambda params: jnp.mean((params["w"] - truth) ** 2))

    def evaluate(state: Any, split: str) -> dict[str, Any]:
        found = {f"{split}/error": error_of(state["params"])}
        if split == "valid":
            turn, rest = divmod(int(state["step"]), every)
            found["valid/score"] = float("nan") if rest else toy.scores[turn % len(toy.scores)]
        return found

    def weights(state: Any, query: Any) -> Any:
        """The rows of w as tables of `top` rows each."""
        matrix = np.asarray(state["params"]["w"])
        rows = query.top or 3
        for start in range(0, DIM, rows):
            part = matrix[start : start + rows]
            index = np.arange(start, start + len(part))
            name = [f"row {i}, {query.text}" for i in index]
            yield {"row": index, "name": name, "first": part[:, 0], "last": part[:, -1]}

    return Experiment(
        init=init,
        step=step if config.train.steps else None,
        batch=batch if config.train.steps else None,
        evaluate=evaluate,
        rules=((r"(.*/)?w", P("data", "model")), (r"batch/scale", P())),
        selectable=("valid/error", "valid/score"),
        milestones=toy.milestones,
        summary=lambda records: {"count": float(len(records))},
        figures=lambda records, state: {
            f"dots at {int(state['step'])}": Picture(PNG, "One pixel: that there is a picture.")
        },
        actions={
            "say": lambda state, query: f"{query.text} {artifacts['note']['made'][0]}",
            "step": lambda state, query: str(int(state["step"])),
            "weights": weights,
            "plot": lambda state, query: {"plot.png": PNG, "shape.json": b'{"width": 1}'},
        },
    )


def compare(folders: Any) -> dict[str, Any]:
    """What --mode=report of several runs shows beside the metrics."""
    from experiments.runner.contract import Picture, Rows

    rows = tuple((folder.name, len(folder.name)) for folder in folders)
    return {
        "Names": Rows(("folder", "letters"), rows, "Letters in the name of each folder."),
        "A dot": Picture(PNG, "One pixel for all of them."),
    }


PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c6360606060000000050001a5f645400000000049454e44ae426082"
)


def install() -> None:
    """Makes the loop find this module as system and config "toy"."""
    names.install("toy", sys.modules[__name__])


def remove() -> None:
    """Undoes `install`."""
    names.forget("toy")


def tiny(**changes: Any) -> ConfigDict:
    """Config with changes given as group__key=value."""
    return changed(get_config(), changes)


def changed(config: ConfigDict, changes: Mapping[str, Any]) -> ConfigDict:
    """A locked config with changes given as group__key=value."""
    for name, value in changes.items():
        group, _, key = name.partition("__")
        if key:
            config[group][key] = value
        else:
            config[group] = value
    return config.lock()


def main() -> None:
    from absl import app, flags

    from experiments import run
    from experiments.runner import command_line

    flag_values: Any = flags.FLAGS
    command_line.define_flags(flag_values)
    app.run(run.main, flags_parser=command_line.parse)


def as_module() -> types.ModuleType:
    return sys.modules[__name__]


if __name__ == "__main__":
    # Under its own name, so that there is one copy of everything.
    import tests.toy
    from tests import jitter

    jitter.install()
    tests.toy.install()
    tests.toy.main()
