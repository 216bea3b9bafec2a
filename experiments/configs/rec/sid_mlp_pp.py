# SPDX-License-Identifier: Apache-2.0
"""SID-MLP++: SID-MLP whose encoder, too, is replaced by MLPs, one for each digit position.

Paper: Guo et al. 2026, "MLPs are Efficient Distilled Generative Recommenders".
Stage 1 fits the states of the teacher's encoder by a stack of MLPs that mix a token with the mean
of its history; stage 2 freezes the stack and distills read-out and heads on its states, as sid_mlp
does on the teacher's. Tokens go to the MLP of their position (form "grouped"); the released code
gives every token to all four and masks ("masked": the same numbers for six times the products).

The teacher is a finished run of system tiger with layout encoder_decoder. First make it:
        python experiments/run.py --config=tiger:t5 --workdir=runs/teacher
        python experiments/run.py --config=sid_mlp_pp --config.teacher=runs/teacher

:base   Amazon-2014 Beauty's 8-core. The sizes and the recipe are [our choice], not tuned;
        config.train.steps counts both stages. Of a teacher with ndcg@10 .170 one student has .158,
        recovery .93, in four minutes; see results/rec_sid_mlp_pp.json.
:tiny   a made-up catalogue, needs no file and no teacher: it trains a brief one.
:h200   whole Beauty, the paper's sizes, a teacher of tiger:h200 (not run here).
:paper  the paper's recipe: 4 layers of 2,048 units (12.7M parameters), 300 passes in either stage,
        the last update tested; a teacher of tiger:paper (not run here).
"""

import dataclasses
from dataclasses import dataclass

from ml_collections import ConfigDict

from experiments.configs.rec import rec_baselines, sid_mlp
from experiments.configs.rec.sid_mlp import StudentEval
from experiments.configs.rec.tiger import Pairs
from experiments.runner import settings
from experiments.runner.about import About
from rec.models.config import OptimConfig
from rec.models.student_config import DistillConfig, MixerConfig


@dataclass(frozen=True)
class MixedDistill(DistillConfig):
    """Says how read-out and heads are distilled on the states of the mixing encoder; fields are
    those of `DistillConfig`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.control == "scratch":
            raise ValueError("control='scratch': is of sid_mlp, whose reader can start anew")


STANDS_ON = ("teacher",)
GROUPS = {
    "data": rec_baselines.RecData,
    "augment": Pairs,
    "mixer": MixerConfig,
    "optim_mixer": OptimConfig,
    "distill": MixedDistill,
    "optim": OptimConfig,
    "eval": StudentEval,
}
VARIANTS = ("base", "tiny", "h200", "paper")
ABOUT = About(
    asked="MLPs alone are trained to read a history and to write what a trained generator would.",
    cost={"base": "4 min on 2 CPU cores, the teacher not counted", "tiny": "30 s on 2 CPU cores"},
    data=rec_baselines.BEAUTY,
    use="Serving a generative recommender without any attention over its history.",
    failures="Tokens meet only in their mean, so order counts by learned positions alone.",
    actions={"recommend": 'the next items after a history: --query="ITEM ITEM"'},
)
HEADLINE = sid_mlp.HEADLINE
MIXER = MixerConfig(layers=2, width=256, dropout=0.1, positions=256, updates=1000, form="grouped")


def get_config(arg: str = "base") -> ConfigDict:
    """Builds the config of one variant."""
    settings.parse_arg(arg, VARIANTS)
    config = sid_mlp.student_config("sid_mlp_pp", arg)
    config.mixer = ConfigDict(dataclasses.asdict(MIXER))
    config.optim_mixer = ConfigDict(config.optim.to_dict())
    if arg == "tiny":
        config.distill.brief_teacher = "tiny_t5"
        config.mixer.update({"layers": 1, "width": 16, "positions": 32, "updates": 15})
        config.optim.update({"warmup": 2, "decay": 15})
    if arg in ("h200", "paper"):
        config.mixer.update({"layers": 4, "width": 2048, "updates": config.optim.decay})
        config.optim_mixer.lr = 1e-3
    config.optim_mixer.update({"warmup": config.optim.warmup, "decay": config.mixer.updates})
    config.train.steps = config.mixer.updates + config.optim.decay
    return config
