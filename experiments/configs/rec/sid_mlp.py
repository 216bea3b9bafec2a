# SPDX-License-Identifier: Apache-2.0
"""SID-MLP: a trained generator of semantic IDs is distilled into an MLP per digit.

Paper: Guo et al. 2026, "MLPs are Efficient Distilled Generative Recommenders".
A frozen teacher reads the history; one attention reads its states out, and each digit is scored by
an MLP of that vector and the digits before: decoding keeps no keys and values. The paper reports
the teacher's ndcg@10 kept or passed, its student being constrained to the catalogue and the teacher
not. Here both decode along the same trie under the same normaliser, test/recovery is the student's
ndcg@10 over the teacher's with an interval over users, and teacher/test/* are the teacher's own.

The teacher is a finished run of system tiger, of any layout and any SIDs; its parameters and its
SID table become part of the run folder. First make it, then the student:
        python experiments/run.py --config=tiger:t5 --workdir=runs/teacher
        python experiments/run.py --config=sid_mlp --config.teacher=runs/teacher

:base   Amazon-2014 Beauty's 8-core; the encoder-decoder of tiger:t5, or a run of tiger. The sizes
        and the recipe are [our choice]; rate and head width were selected on validation. Of a
        teacher with ndcg@10 .170 (tiger:t5, 58 passes) three students have .169, .169 and .173,
        recovery .99 to 1.02; from targets alone .153 to .156: results/rec_sid_mlp.json.
:tiny   a made-up catalogue, needs no file and no teacher: it trains a brief one.
:h200   whole Beauty, the paper's sizes, a teacher of tiger:h200 (not run here).
:paper  the paper's recipe: learning rate 5e-5, 300 passes, the last update tested; a teacher of
        tiger:paper (not run here).
Controls: --config.distill.control=blind|shuffled_labels, without the history and with another row's
teacher; --config.distill.alpha=0.0 with and without --config.distill.control=scratch, no teacher
but its states, and no teacher at all.
"""

import dataclasses
from dataclasses import dataclass

from ml_collections import ConfigDict

from experiments.configs.rec import rec_baselines, sasrec
from experiments.configs.rec.tiger import BEAM_EVAL, BeamEval, Pairs
from experiments.runner import settings
from experiments.runner.about import About, Headline
from rec.models.config import OptimConfig
from rec.models.student_config import DistillConfig


@dataclass(frozen=True)
class StudentEval(BeamEval):
    """Says how student and teacher decode histories to lists of items.

    Attributes:
        fold: multiply the first layer of the heads with the vectors of all codes beforehand.
        children_only: score the codes that the trie allows and no others.
    """

    fold: bool
    children_only: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.normaliser == "full":
            raise ValueError("normaliser='full': a student scores level by level")
        if self.children_only and self.normaliser != "children":
            raise ValueError("children_only=True needs normaliser='children'")


STANDS_ON = ("teacher",)
GROUPS = {
    "data": rec_baselines.RecData,
    "augment": Pairs,
    "distill": DistillConfig,
    "optim": OptimConfig,
    "eval": StudentEval,
}
VARIANTS = ("base", "tiny", "h200", "paper")
ABOUT = About(
    asked="Small MLPs are trained to write the semantic IDs that a trained generator would write.",
    cost={"base": "3 min on 2 CPU cores, the teacher not counted", "tiny": "30 s on 2 CPU cores"},
    data=rec_baselines.BEAUTY,
    use="Serving a generative recommender at a fraction of its decoder's cost.",
    failures="It still pays for the teacher's encoder, and inherits its mistakes.",
    actions={"recommend": 'the next items after a history: --query="ITEM ITEM"'},
)
RECOVERY = Headline(
    "test/recovery",
    "higher",
    "The student's ndcg@10 over its teacher's, both along the same trie; 1 is all of it.",
)
HEADLINE = (*rec_baselines.ranking_headline(), RECOVERY)
DISTILL = DistillConfig(
    alpha=0.7,
    tau=1.0,
    heads=4,
    inner=128,
    mlp_width=256,
    head_width=512,
    dropout=0.1,
    control="none",
    brief_teacher="",
)


def student_config(system: str, arg: str) -> ConfigDict:
    """Builds what students share: data, pairs, the group distill, optimizer, decoding."""
    config = rec_baselines.rec_config(system, arg)
    pairs = Pairs(rows=256, pairs="prefixes", alpha=1.0, beta=0.0, gamma=0.0, search=False)
    beams = dataclasses.replace(
        BEAM_EVAL, every=500, draws=config.eval.draws, normaliser="children"
    )
    evaluation = StudentEval(**dataclasses.asdict(beams), fold=True, children_only=True)
    config.teacher = ""
    config.augment = ConfigDict(dataclasses.asdict(pairs))
    config.distill = ConfigDict(dataclasses.asdict(DISTILL))
    config.optim = sasrec.optim_group(3e-3)
    config.optim.update({"schedule": "cosine", "decay": 2000, "weight_decay": 1e-4})
    config.train.update({"steps": 2000, "save_every": 500})
    config.eval = ConfigDict(dataclasses.asdict(evaluation))
    config.log.every = 10
    if arg == "tiny":
        config.augment.rows = 32
        config.distill.update({"heads": 2, "inner": 8, "mlp_width": 16, "head_width": 16})
        config.optim.update({"warmup": 5, "decay": 30})
        config.train.update({"steps": 30, "save_every": 10})
        config.eval.update({"every": 10, "rows": 64, "batch": 64, "beams": 10})
        config.log.every = 1
    if arg in ("h200", "paper"):
        _follow_paper(config)
    if arg == "h200":
        config.distill.dropout = 0.1
        config.optim.update({"lr": 5e-4, "decay": 20_000})
        config.train.update({"steps": 20_000, "save_every": 2000})
        config.eval.update({"every": 2000, "rows": 2048, "batch": 512})
        config.eval.select = ("valid/ndcg@10", "max")
    return config


def _follow_paper(config: ConfigDict) -> None:
    """Sets the sizes and the recipe of the paper; 77,000 updates are 300 passes over whole
    Beauty's prefixes."""
    config.augment.rows = 512
    config.distill.update(
        {"heads": 4, "inner": 384, "mlp_width": 1024, "head_width": 512, "dropout": 0.2}
    )
    config.optim.update({"lr": 5e-5, "warmup": 0, "decay": 77_000, "b2": 0.999})
    config.train.update({"steps": 77_000, "save_every": 7700})
    config.eval.update({"every": 7700, "rows": 2048, "beams": 50, "batch": 512})
    config.eval.select = ("", "max")


def get_config(arg: str = "base") -> ConfigDict:
    """Builds the config of one variant."""
    settings.parse_arg(arg, VARIANTS)
    config = student_config("sid_mlp", arg)
    if arg == "tiny":
        config.distill.brief_teacher = "tiny"
    return config
