# SPDX-License-Identifier: Apache-2.0
"""A whole system in one file, to copy: a small network tells two rings of points apart.

:base  500 updates, seconds on a laptop CPU: test accuracy about .99, a linear rule .5.
       python experiments/run.py --config=experiments/examples/minimal_system.py
:tiny  20 updates.

Modes that read the run folder want the same --config again, for code is never run from there:
       python experiments/run.py --config=experiments/examples/minimal_system.py --mode=check \\
           --workdir=runs/minimal_system-base-s0
A system of the checkout has the same parts in two files: numbers in configs/, wiring in systems/.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ml_collections import ConfigDict

from experiments.runner import settings
from experiments.runner.about import About, Headline

VARIANTS = ("base", "tiny")


@dataclass(frozen=True)
class Rings:
    """rows: points of a batch; noise: standard deviation of a point's distance from its ring."""

    rows: int
    noise: float
    root: str = ""

    def __post_init__(self) -> None:
        settings.at_least("data", 1, rows=self.rows)
        settings.at_least("data", 0, noise=self.noise)


@dataclass(frozen=True)
class Model:
    """width: of the hidden layer; lr: of Adam."""

    width: int
    lr: float

    def __post_init__(self) -> None:
        settings.at_least("model", 1, width=self.width)
        settings.at_least("model", 0, lr=self.lr)


GROUPS = {"data": Rings, "model": Model}
ABOUT = About(
    asked="A network of one hidden layer is trained to say on which of two rings a point lies.",
    cost={"base": "5 s on 2 CPU cores", "tiny": "3 s on 2 CPU cores"},
    data="Made from the seed; no licence applies.",
    use="An example to copy.",
    failures="Points beyond the rings are answered with confidence.",
    actions={"classify": 'the probability of the outer ring: --query="0.5 -1"'},
)
HEADLINE = (
    Headline("test/accuracy", "higher", "Share of right answers.", ("test/majority/accuracy",)),
)


def get_config(arg: str = "base") -> ConfigDict:
    settings.parse_arg(arg, VARIANTS)
    config = settings.base_config("minimal_system", arg)
    config.data.update({"rows": 64, "noise": 0.1})
    config.model = ConfigDict({"width": 32, "lr": 1e-2})
    config.train.update({"steps": 500 if arg == "base" else 20, "save_every": 250})
    config.eval.update({"every": 100, "select": ("valid/accuracy", "max")})
    config.log.every = 10
    return config


def make(config: ConfigDict, artifacts: Mapping[str, Any]) -> Any:
    """Makes the Experiment; JAX is imported here, since flags are checked before."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    from experiments.runner.contract import Experiment
    from experiments.runner.errors import UserError
    from experiments.runner.queries import text_of

    settings.one_seed(config)
    groups = settings.groups(config)
    tx = optax.adam(groups["model"].lr)

    def draw(stream: int, step: int, rows: int) -> dict[str, np.ndarray]:
        """Points [rows, 2] and their rings [rows]; ring 0 has radius 1, ring 1 radius 2."""
        generator = np.random.default_rng([config.seed, stream, step])
        ring = generator.integers(2, size=rows)
        radius = 1 + ring + groups["data"].noise * generator.normal(size=rows)
        angle = generator.uniform(0, 2 * np.pi, size=rows)
        point = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        return {"point": point.astype(np.float32), "ring": ring.astype(np.float32)}

    def init(key: jax.Array) -> dict[str, Any]:
        width = groups["model"].width
        params = {
            "hidden": jax.random.normal(key, (2, width)),
            "bias": jnp.zeros(width),
            "out": jnp.zeros(width),
        }
        return {"step": jnp.int32(0), "key": key, "params": params, "opt_state": tx.init(params)}

    def logits_of(params: Mapping[str, jax.Array], point: Any) -> jax.Array:
        return jax.nn.relu(point @ params["hidden"] + params["bias"]) @ params["out"] - 1.0

    def step(state: Any, batch: Any) -> Any:
        def loss_of(params: Any) -> jax.Array:
            logits = logits_of(params, batch["point"])
            return optax.sigmoid_binary_cross_entropy(logits, batch["ring"]).mean()

        loss, gradients = jax.value_and_grad(loss_of)(state["params"])
        updates, opt_state = tx.update(gradients, state["opt_state"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        new = {"step": state["step"] + 1, "key": state["key"], "params": params}
        return {**new, "opt_state": opt_state}, {"loss": loss}

    def batch(step: int, rows: tuple[int, int] | None = None) -> dict[str, np.ndarray]:
        first, last = rows or (0, groups["data"].rows)
        return {k: v[first:last] for k, v in draw(0, step, groups["data"].rows).items()}

    def evaluate(state: Any, split: str) -> dict[str, float]:
        held_out = draw({"valid": 1, "test": 2}[split], 0, 1000)
        answers = np.asarray(logits_of(state["params"], held_out["point"])) > 0
        share = float(held_out["ring"].mean())
        return {
            f"{split}/accuracy": float((answers == held_out["ring"]).mean()),
            f"{split}/majority/accuracy": max(share, 1 - share),
        }

    def classify(state: Any, query: Any) -> str:
        try:
            point = np.array([float(word) for word in text_of(query, "two numbers").split()])
            logit = logits_of(state["params"], point.reshape(1, 2))[0]
        except ValueError as error:
            raise UserError(f"--query={query.text!r}: give two numbers ({error})") from error
        return f"outer ring: {float(jax.nn.sigmoid(logit)):.3f}"

    return Experiment(
        init=init,
        step=step,
        batch=batch,
        evaluate=evaluate,
        selectable=("valid/accuracy",),
        actions={"classify": classify},
    )
