# SPDX-License-Identifier: Apache-2.0
"""Recurrent PPO in Banyan across shifts of the task distribution.

Paper: Seth, Shah, Jha, Gershman, Kleiman-Weiner, Carvalho 2026, arXiv 2606.00880.

:base   one shift of layouts (5x5, depths 1-2), four to five minutes on 2 CPU cores:
        python experiments/run.py --config=banyan
:small  the same shift with 13k parameters and no memory, about a minute; the finished run kept in
        experiments/results is one of these.
:tiny   the same wiring in seconds, for tests; learns nothing worth reading.
        Real layouts instead of generated ones (see experiments/data.py):
        --config.env.levels=boxoban
:h200   one H200, depths 1-4 on 6x6, four co-varied distributions (not run here).
:paper  100M + 100M environment steps, depths 1-6; any axis and size, e.g.
        --config.env.shift=objects, --config.env.objects=100,10000 --config.env.layouts=1
        Paper, PPO, layouts n=1: S_end .54 +- .11, S_start .11 +- .01 (5 seeds; draft table 1).
"""

from dataclasses import dataclass

from ml_collections import ConfigDict

from banyan.agents.config import ModelConfig, PPOConfig
from banyan.task_config import TaskConfig
from experiments.runner import settings
from experiments.runner.about import About, Headline


@dataclass(frozen=True)
class BanyanTrain:
    """steps: PPO updates in all, at most env.num_dists * phase_steps; phase_steps: updates on each
    distribution; save_every: updates between checkpoints."""

    steps: int
    phase_steps: int
    save_every: int

    def __post_init__(self) -> None:
        settings.at_least("train", 0, steps=self.steps)
        settings.at_least("train", 1, phase_steps=self.phase_steps, save_every=self.save_every)


@dataclass(frozen=True)
class BanyanEval:
    """every: updates between points of the curve; episodes: per depth and distribution at a shift;
    curve_episodes: the same for the curve; greedy: best action instead of a drawn one."""

    every: int
    select: tuple[str, str]
    tolerance: float
    episodes: int
    curve_episodes: int
    greedy: bool

    def __post_init__(self) -> None:
        settings.at_least("eval", 0, tolerance=self.tolerance)
        settings.at_least(
            "eval", 1, every=self.every, episodes=self.episodes, curve_episodes=self.curve_episodes
        )
        if self.select[0]:
            raise ValueError(
                f"config.eval.select={self.select!r}: a continual run is tested at its shifts and "
                'at its end; leave it at ("", "max")'
            )


GROUPS = {
    "env": TaskConfig,
    "model": ModelConfig,
    "agent": PPOConfig,
    "train": BanyanTrain,
    "eval": BanyanEval,
}
VARIANTS = ("base", "tiny", "small", "h200", "paper")
ABOUT = About(
    asked="An agent is trained by PPO to make goal items whose recipe it never sees, then the "
    "layouts change.",
    cost={"base": "4 to 6 min on 2 idle CPU cores", "tiny": "30 s on 2 CPU cores"},
    data="Worlds generated from the seed; no license applies.",
    use="Measuring transfer and forgetting of reinforcement learners across shifts.",
    failures="Trained on few layouts it fails on new ones: at :base about .68 of its success is "
    "lost at the shift. Deep tasks (:paper) were not trained here.",
    actions={"watch": 'one episode, drawn or as a picture: --query="d2 depth1 seed7 agent.gif"'},
)
HEADLINE = (
    Headline(
        "d1/end/success",
        "higher",
        "Share of tasks solved, 0 to 1, at the end of training on the first distribution.",
        ("untrained/d1/success",),
    ),
    Headline(
        "d2/start/success",
        "higher",
        "The same on the second distribution, before any update on it.",
        ("untrained/d2/success",),
    ),
    Headline("gap/2", "lower", "Success lost at the shift: d1/end minus d2/start, -1 to 1."),
    Headline(
        "d2/end/success",
        "higher",
        "Share of tasks solved at the end of training on the second distribution.",
        ("untrained/d2/success",),
    ),
    Headline(
        "backward/2/1",
        "higher",
        "Change of success on the first distribution while learning the second, -1 to 1.",
    ),
)


def get_config(arg: str = "base") -> ConfigDict:
    """Config of one variant."""
    settings.parse_arg(arg, VARIANTS)
    config = settings.base_config("banyan", arg)
    config.env = ConfigDict(
        {
            "depths": (1, 2),
            "depth1": "fetch",
            "small_shape": (5, 5),
            "large_shape": (8, 8),
            "small_max_depth": 4,
            "num_walls": 3,
            "rules": "global",
            "combine_density": 0.9,
            # At 1.0 every toggle here is a dead end; on a single layout the agent then learns to
            # do nothing before it ever meets a success.
            "transform_density": 0.5,
            "item_pools": "shared",
            "topology_kind": "balanced",
            "p_binary": 0.5,
            "p_stop": 0.4,
            "num_dists": 2,
            "shift": ("layouts",),
            "layouts": (16, 256),
            "objects": (8,),
            "topologies": (1,),
            "levels": "",
            "max_steps": 100,
            "reward_success": 1.0,
            "reward_dead_end": -1.0,
            "verify_pairs": 256,
        }
    )
    config.model = ConfigDict(
        {
            "encoder": "mlp",
            "item_embed": "joint",
            "embed": 16,
            "channels": 64,
            "hidden": 192,
            "layers": 1,
            "memory": "gru",
            "memory_size": 128,
            "head": 128,
        }
    )
    config.agent = ConfigDict(
        {
            "num_envs": 256,
            "num_steps": 32,
            "epochs": 2,
            "minibatches": 4,
            "lr": 1e-3,
            "gamma": 0.99,
            "gae_lambda": 0.95,
            "clip": 0.2,
            "entropy_coef": 0.01,
            "value_coef": 0.5,
            "max_grad_norm": 0.5,
            "adam_eps": 1e-5,
            "reset_optimizer": False,
        }
    )
    config.train = ConfigDict({"steps": 300, "phase_steps": 150, "save_every": 50})
    config.eval.update({"every": 25, "episodes": 1024, "curve_episodes": 128, "greedy": False})
    if arg == "tiny":
        _tiny(config)
    if arg == "small":
        _small(config)
    if arg in ("h200", "paper"):
        _large(config)
    if arg == "h200":
        _h200(config)
    if arg == "paper":
        _paper(config)
    return config


def _tiny(config: ConfigDict) -> None:
    config.env.update({"layouts": (4, 8), "objects": (2,), "max_steps": 20, "verify_pairs": 8})
    config.model.update({"embed": 4, "hidden": 16, "memory_size": 16, "head": 16})
    config.agent.update({"num_envs": 16, "num_steps": 8, "minibatches": 2})
    config.train.update({"steps": 12, "phase_steps": 6, "save_every": 4})
    config.eval.update({"every": 3, "episodes": 16, "curve_episodes": 8})


def _small(config: ConfigDict) -> None:
    config.env.layouts = (16, 64)
    config.model.update({"memory": "none", "embed": 8, "hidden": 40, "head": 16})
    config.agent.update({"num_envs": 128, "epochs": 3})
    config.train.update({"steps": 400, "phase_steps": 200, "save_every": 200})
    config.eval.update({"every": 50, "episodes": 256})
    config.log.update({"every": 20})


def _large(config: ConfigDict) -> None:
    """Network and PPO of spec section 3.7 [our choice]; full world."""
    config.env.update(
        {
            "depths": (1, 6),
            "small_shape": (6, 6),
            "num_walls": 6,
            "transform_density": 1.0,
            "topology_kind": "random",
            "max_steps": 160,
        }
    )
    config.model.update(
        {
            "encoder": "cnn",
            "item_embed": "factored",
            "hidden": 256,
            "memory_size": 256,
            "head": 256,
        }
    )
    config.agent.update(
        {"num_envs": 2048, "num_steps": 64, "epochs": 4, "minibatches": 8, "lr": 3e-4}
    )
    config.log.update({"every": 10})


def _h200(config: ConfigDict) -> None:
    """Four distributions, 64 layouts and 64 topologies each, 15M environment steps per phase."""
    config.env.update(
        {
            "depths": (1, 4),
            "num_dists": 4,
            "shift": ("layouts", "topologies"),
            "layouts": (64,),
            "topologies": (13,),
            "objects": (1,),
        }
    )
    config.num_seeds = 2
    config.train.update({"steps": 456, "phase_steps": 114, "save_every": 57})
    config.eval.update({"every": 19, "episodes": 1024, "curve_episodes": 256})


def _paper(config: ConfigDict) -> None:
    """Single shift of layouts, n = 1 then 10,000 held-out ones; 763 updates of 131,072 steps."""
    config.env.update({"layouts": (1, 10000), "objects": (1,), "topologies": (1,)})
    config.num_seeds = 5
    config.train.update({"steps": 1526, "phase_steps": 763, "save_every": 109})
    config.eval.update({"every": 38, "episodes": 1024, "curve_episodes": 256})
