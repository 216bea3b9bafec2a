# SPDX-License-Identifier: Apache-2.0
"""Needles in noise, trained at one length and tested up to sixteen times as far.

Paper: Huang, Ding, Ju, Liu, Shah, Zhao 2026, "Threshold Differential Attention", arXiv 2601.12145.
[secondary] passkey at 4,000 tokens after fine-tuning GPT-2 162M: tda 15 %, softmax 6 %. The task
here is made, so the numbers do not compare.

:base   2 layers of width 64, length 128, tested to 2048; ten minutes on one CPU core. The lower
        the threshold, the easier tda learns it: of 1500 updates, seed 0, accuracy at 128 / 512 /
        2048 is .99 / .98 / .08 at beta .25 and .58 / .30 / .11 at .5; softmax 1.00 / .88 / .13,
        ssmax 1.00 / .99 / .33 (experiments/results/passkey_lengths.json).
        python experiments/run.py --config=passkey
:tiny   the same wiring in seconds; learns nothing worth reading.
:h200   6 layers of width 384, length 512, tested to 8192, two needles (not run here).
:paper  4 and more needles at the sizes of :h200 (not run here; the paper's model and text are not
        public).
A run has one seed; other seeds are other runs (--config.seed).
"""

from dataclasses import dataclass

from ml_collections import ConfigDict

from attention.lm.config import LMConfig
from attention.lm.optim_config import OptimConfig
from experiments.configs.attention import lm
from experiments.runner import settings
from experiments.runner.about import About, Headline


@dataclass(frozen=True)
class PasskeyData:
    """root: not used; length: tokens of a training row; rows: of a batch; digits: of a needle;
    needles: in a row; names, noise: sizes of those parts of the vocabulary. model.vocab_size is
    noise + 10 + names + 2."""

    root: str
    length: int
    rows: int
    digits: int
    needles: int
    names: int
    noise: int

    def __post_init__(self) -> None:
        settings.at_least(
            "data",
            1,
            rows=self.rows,
            digits=self.digits,
            needles=self.needles,
            noise=self.noise,
        )
        settings.at_least("data", self.needles, names=self.names)
        settings.at_least("data", (self.needles + 1) * (self.digits + 2), length=self.length)


@dataclass(frozen=True)
class PasskeyEval:
    """every: updates between evaluations; rows: at each length, at evenly spaced depths of the
    needle; lengths: of the final test; ntk: rotary frequencies are rescaled (NTK-aware) beyond the
    training length."""

    every: int
    select: tuple[str, str]
    tolerance: float
    rows: int
    lengths: tuple[int, ...]
    ntk: bool

    def __post_init__(self) -> None:
        settings.at_least("eval", 0, tolerance=self.tolerance)
        settings.at_least("eval", 1, every=self.every, rows=self.rows)
        settings.check_select(self.select)
        if not self.lengths:
            raise ValueError("lengths=(): at least one")


GROUPS = {"data": PasskeyData, "model": LMConfig, "optim": OptimConfig, "eval": PasskeyEval}
VARIANTS = ("base", "tiny", "h200", "paper")
ABOUT = About(
    asked="A small transformer is trained to find a number hidden in noise, then asked at greater "
    "lengths.",
    cost={"base": "7 to 12 min on 2 CPU cores", "tiny": "15 s on 2 CPU cores"},
    data="Made from the seed; no license applies.",
    use="Comparing how far kinds of attention reach beyond their training length.",
    failures="At 16 times the training length no kind is above .33; high thresholds learn slowly.",
)
HEADLINE = (
    Headline(
        "valid/accuracy",
        "higher",
        "Share of right answers at the training length, 0 to 1.",
        ("valid/accuracy/chance",),
    ),
    *(
        Headline(
            f"lengths/accuracy@{length}",
            "higher",
            f"Share of right answers among {length} tokens, 0 to 1.",
            ("valid/accuracy/chance",),
        )
        for length in (128, 256, 512, 1024, 2048)
    ),
)


def get_config(arg: str = "base") -> ConfigDict:
    """Config of one variant."""
    settings.parse_arg(arg, VARIANTS)
    config = settings.base_config("passkey", arg)
    config.data = ConfigDict(
        {"root": "", "length": 128, "rows": 32, "digits": 2, "needles": 1, "names": 4, "noise": 8}
    )
    config.model = lm.get_config("base").model
    config.model.update(
        {
            "vocab_size": 24,
            "layers": 2,
            "width": 64,
            "heads": 2,
            "kv_heads": 2,
            "head_dim": 64,
            "mlp_width": 128,
            "beta": 0.5,
        }
    )
    config.optim = lm.get_config("base").optim
    config.optim.update({"decay": 1500, "lr": 4e-3, "min_lr": 1e-4, "weight_decay": 0.01})
    config.train = ConfigDict({"steps": 1500, "save_every": 500})
    lengths = (128, 256, 512, 1024, 2048)
    config.eval.update({"every": 250, "rows": 128, "lengths": lengths, "ntk": False})
    config.eval.tolerance = 0.01
    config.log.every = 10
    if arg == "tiny":
        config.data.update({"length": 32, "rows": 8})
        config.model.update({"layers": 2, "width": 32, "head_dim": 16, "mlp_width": 64})
        config.optim.update({"warmup": 5, "decay": 40})
        config.train.update({"steps": 40, "save_every": 10})
        config.eval.update({"every": 20, "rows": 10, "lengths": (32, 64)})
    if arg in ("h200", "paper"):
        config.data.update({"length": 512, "rows": 128, "digits": 5, "needles": 2, "noise": 16})
        config.model.vocab_size = 32
        config.model.update(
            {"layers": 6, "width": 384, "heads": 6, "kv_heads": 6, "mlp_width": 1536}
        )
        config.model.dtype = "bfloat16"
        config.eval.lengths = (512, 1024, 2048, 4096, 8192)
        config.eval.ntk = True
    if arg == "paper":
        config.data.update({"needles": 4})
    return config
