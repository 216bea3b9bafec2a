# SPDX-License-Identifier: Apache-2.0
"""Language modelling with any kind of attention, and what its heads do.

Paper: Huang, Ding, Ju, Liu, Shah, Zhao 2026, "Threshold Differential Attention", arXiv 2601.12145.

:base   characters of Tiny Shakespeare (from $BANYAN_DATA/tinyshakespeare), 4 layers of width 128 at
        context 64, 2000 updates of 12 rows: three to six minutes on 2 CPU cores.
        python experiments/run.py --config=lm --config.model.attention=tda
        Yardstick (nanoGPT's README, softmax, same sizes): validation loss 1.88 nats per character.
:tiny   the same wiring on text the code makes, in seconds; needs no file.
:h200   6 layers of width 384 at context 256, 5000 updates of 64 rows (not run here). Yardstick
        (nanoGPT's README, softmax with dropout .2): 1.4697; here is no dropout.
:paper  GPT-2's shape, 162M parameters, context 1024, 524,288 tokens an update, 10B tokens of your
        own --config.data.text=FILE (the paper's is FineWeb-Edu; not run here). Paper [secondary]:
        validation loss 3.1190 (tda), 3.1196 (softmax), 99 % of weights exactly zero.
Any text: --config.data.text=FILE, UTF-8, plain or gzip, with
        --config.data.tokenizer=bpe --config.model.vocab_size=1024 where it has many characters.
A run has one seed; other seeds are other runs (--config.seed).
"""

from dataclasses import dataclass

from ml_collections import ConfigDict

from attention.lm.config import LMConfig
from attention.lm.optim_config import OptimConfig
from experiments.runner import settings
from experiments.runner.about import About, Headline

TOKENIZERS = ("char", "bpe")


@dataclass(frozen=True)
class TextData:
    """root: folder of raw files, "" means $BANYAN_DATA; text: "tinyshakespeare", "made" (a small
    grammar, from the seed) or a file; tokenizer: "char" (needs model.vocab_size of at least the
    number of characters) or "bpe" (byte-level, trained to model.vocab_size on the training part;
    256 are the bytes alone; needs the extra "lm"); valid_share: last part of the text, for
    evaluation; context: tokens a row predicts; rows: of a batch."""

    root: str
    text: str
    tokenizer: str
    valid_share: float
    context: int
    rows: int

    def __post_init__(self) -> None:
        settings.at_least("data", 1, context=self.context, rows=self.rows)
        if self.tokenizer not in TOKENIZERS:
            raise ValueError(f"tokenizer={self.tokenizer!r}: must be one of {TOKENIZERS}")
        if not 0 < self.valid_share < 1:
            raise ValueError(f"valid_share={self.valid_share}: must lie between 0 and 1")
        if not self.text:
            raise ValueError('text="": must be "tinyshakespeare", "made" or a file')


@dataclass(frozen=True)
class LMEval:
    """every: updates between evaluations; rows: stretches of the validation text an evaluation
    reads, evenly spaced; head_rows: of them for the statistics of heads; lengths: contexts the
    final checkpoint is tested at, with head statistics; ntk: rotary frequencies are rescaled
    (NTK-aware) for contexts beyond the training one."""

    every: int
    select: tuple[str, str]
    tolerance: float
    rows: int
    head_rows: int
    lengths: tuple[int, ...]
    ntk: bool

    def __post_init__(self) -> None:
        settings.at_least("eval", 0, tolerance=self.tolerance)
        settings.at_least("eval", 1, every=self.every, rows=self.rows, head_rows=self.head_rows)
        if self.head_rows > self.rows:
            raise ValueError(f"head_rows={self.head_rows}: at most rows={self.rows}")
        if not self.lengths or min(self.lengths) < 16:
            raise ValueError(f"lengths={self.lengths}: at least one, each at least 16")
        settings.check_select(self.select)


GROUPS = {"data": TextData, "model": LMConfig, "optim": OptimConfig, "eval": LMEval}
VARIANTS = ("base", "tiny", "h200", "paper")
ABOUT = About(
    asked="A language model with a chosen kind of attention is trained to predict the next token.",
    cost={"base": "3 to 6 min on 2 CPU cores", "tiny": "15 s on 2 CPU cores"},
    data="Tiny Shakespeare, 1.1 million characters of public-domain text, from karpathy/char-rnn.",
    use="Comparing kinds of attention at equal sizes, and what their heads do.",
    failures="Thresholded kinds learn more slowly: after 300 updates tda is .11 nats above softmax."
    " Beyond its training length every kind gets worse.",
    actions={
        "sample": 'continues a text: --query="ROMEO:"',
        "publish": "config.json and weights in the published layout: --out=DIR",
    },
)
HEADLINE = (
    Headline(
        "valid/loss",
        "lower",
        "Cross-entropy of the next token on held-out text, nats per token.",
        ("valid/loss/bigram",),
    ),
    Headline("valid/zeros", "higher", "Share of attention weights that are exactly zero, 0 to 1."),
    Headline("valid/dead_rows", "lower", "Share of queries without any weight, 0 to 1."),
    Headline(
        "valid/first_token/pooled",
        "lower",
        "Share of all weight that rests on the first token, 0 to 1.",
        ("valid/first_token/uniform",),
    ),
)
PAPER = {"source": "arXiv 2601.12145 [secondary]: other data and sizes; see the docstring"}


def get_config(arg: str = "base") -> ConfigDict:
    """Config of one variant."""
    settings.parse_arg(arg, VARIANTS)
    config = settings.base_config("lm", arg)
    config.data = ConfigDict(
        {
            "root": "",
            "text": "tinyshakespeare",
            "tokenizer": "char",
            "valid_share": 0.1,
            "context": 64,
            "rows": 12,
        }
    )
    config.model = ConfigDict(
        {
            "vocab_size": 65,
            "layers": 4,
            "width": 128,
            "heads": 4,
            "kv_heads": 4,
            "head_dim": 32,
            "mlp_width": 512,
            "norm": "layer",
            "norm_eps": 1e-5,
            "mlp": "gelu",
            "qk_norm": False,
            "qkv_bias": False,
            "tied": False,
            "rope_theta": 10000.0,
            "ntk_factor": 1.0,
            "llama3_factor": 1.0,
            "llama3_low": 1.0,
            "llama3_high": 4.0,
            "llama3_original": 8192,
            "attention": "softmax",
            "implementation": "auto",
            "beta": 1.0,
            "kappa": 1.0,
            "power": 2,
            "learn_beta": False,
            "lambda_init": "half",
            "output_norm_eps": 1e-6,
            "dtype": "float32",
            "scan": "auto",
            "remat": False,
            "init_std": 0.02,
        }
    )
    config.optim = ConfigDict(
        {
            "lr": 1e-3,
            "min_lr": 1e-4,
            "warmup": 100,
            "decay": 2000,
            "b1": 0.9,
            "b2": 0.99,
            "weight_decay": 0.1,
            "clip": 1.0,
            "microbatches": 1,
        }
    )
    config.train = ConfigDict({"steps": 2000, "save_every": 500})
    config.eval.update(
        {"every": 250, "rows": 256, "head_rows": 32, "lengths": (64, 128, 256, 512), "ntk": False}
    )
    config.eval.tolerance = 1e-4
    config.log.every = 10
    if arg == "tiny":
        _tiny(config)
    if arg == "h200":
        _h200(config)
    if arg == "paper":
        _paper(config)
    return config


def _tiny(config: ConfigDict) -> None:
    config.data.update({"text": "made", "context": 32, "rows": 8})
    config.model.update(
        {"layers": 2, "width": 32, "heads": 2, "kv_heads": 2, "head_dim": 16, "mlp_width": 64}
    )
    config.optim.update({"lr": 1e-2, "min_lr": 1e-3, "warmup": 5, "decay": 60})
    config.model.vocab_size = 32
    config.train.update({"steps": 60, "save_every": 20})
    config.eval.update({"every": 20, "rows": 16, "head_rows": 4, "lengths": (32, 64)})


def _h200(config: ConfigDict) -> None:
    config.data.update({"context": 256, "rows": 64})
    config.model.update(
        {"layers": 6, "width": 384, "heads": 6, "kv_heads": 6, "head_dim": 64, "mlp_width": 1536}
    )
    config.model.dtype = "bfloat16"
    config.optim.update({"decay": 5000})
    config.train.update({"steps": 5000, "save_every": 1000})
    config.eval.update(
        {"select": ("valid/loss", "min"), "lengths": (256, 512, 1024, 4096), "ntk": True}
    )


def _paper(config: ConfigDict) -> None:
    """Learning rates and weight decay of the paper; the rest [our choice], see spec section 2."""
    config.data.update(
        {"text": "fineweb-edu.txt", "tokenizer": "bpe", "valid_share": 0.001, "context": 1024}
    )
    config.data.rows = 512
    config.model.update(
        {
            "vocab_size": 50304,
            "layers": 12,
            "width": 768,
            "heads": 12,
            "kv_heads": 12,
            "head_dim": 64,
            "mlp_width": 3072,
            "attention": "tda",
            "dtype": "bfloat16",
            "remat": True,
        }
    )
    config.optim.update({"warmup": 715, "decay": 19073, "b2": 0.95, "microbatches": 16})
    config.train.update({"steps": 19073, "save_every": 1000})
    config.eval.update({"every": 500, "lengths": (1024, 2048, 4096), "ntk": True})
