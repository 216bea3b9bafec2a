# SPDX-License-Identifier: Apache-2.0
"""TIGER: a generator of semantic IDs, and beam search along the trie of the catalogue.

Papers: Rajput et al. 2023 (NeurIPS); Ju et al. 2025 (GRID, CIKM), whose table has on whole Beauty
recall@5 / recall@10 / ndcg@5 / ndcg@10 = .0422 / .0639 / .0277 / .0347 (residual k-means on Flan-T5
XL text); TIGER's own .0454 / .0648 / .0321 / .0384 [secondary]. Counting the successors of the last
item, without training, reaches .0513 / .0668 / .0389 / .0439 there: every run prints that too.

:base   Amazon-2014 Beauty's 8-core (803 items): residual k-means 3 x 64, made unique by PSID, on
        TF-IDF features beside vectors of co-occurrence in training (--config.sid.sources=text is
        without them); layout "packed" (rec/models/packed.py): a causal token per item, all training
        pairs in rows without padding, 60 passes; beams of 20. A minute and a half on 2 CPU cores.
        Measured over three seeds: recall@10 .312 (text alone .273), the same SIDs shuffled .248
        (.246), successor counts .230, co-occurrence .253, SASRec .338.
        python experiments/run.py --config=tiger
        The layout and its recipe are [our choice], selected on validation.
:t5     the paper's encoder-decoder, with the recipe of :base, 16 passes in four minutes on 2 cores;
        a teacher for students (configs/rec/sid_mlp.py) is better trained for 58:
        python experiments/run.py --config=tiger:t5 --config.train.steps=13000
        --config.optim.decay=13000
        reaches recall@10 .284, ndcg@10 .170 in 20 minutes on one core (one seed).
:tiny   a made-up catalogue, needs no file; :tiny_t5 the same with the layers of :t5.
:h200   whole Beauty, the 13.13M-parameter generator of GRID in bf16, 20,000 updates (not run here);
        wanted recall@10 >= .055 with these features.
:paper  TIGER's sizes: 4+4 layers, 2,000 user tokens, unconstrained beams, 200,000 updates (not run
        here).
SIDs of an earlier run: --config.sid.run=DIR; published ones: --config.sid.table=FILE
"""

import dataclasses
from dataclasses import dataclass

from ml_collections import ConfigDict

from experiments.configs.rec import rec_baselines, sasrec, sid
from experiments.runner import settings
from experiments.runner.about import About
from rec import names
from rec.models.config import OptimConfig, TigerConfig


@dataclass(frozen=True)
class Pairs:
    """Says which pairs of history and target are trained on.

    Attributes:
        rows: pairs of a batch.
        pairs: "last_target", "prefixes", "windows" or "genpas", see rec.augment.
        alpha, beta, gamma: exponents of "genpas", 1e6 is infinity.
        search: choose them before training by the two-stage search of rec.genpas.
    """

    rows: int
    pairs: str
    alpha: int | float
    beta: int | float
    gamma: int | float
    search: bool

    def __post_init__(self) -> None:
        if self.pairs not in names.STRATEGIES:
            raise ValueError(f"pairs={self.pairs!r}: must be one of {names.STRATEGIES}")
        if self.search and self.pairs != "genpas":
            raise ValueError("search=True chooses exponents: it needs pairs='genpas'")
        settings.at_least("augment", 1, rows=self.rows)


@dataclass(frozen=True)
class BeamEval(rec_baselines.RecEval):
    """Says how histories are decoded to lists of items.

    Attributes:
        beams: of the search.
        constrained: along the trie of the catalogue.
        normaliser: "digit", "full" or "children", see rec.decode.beam.
        policy: order of items that share an SID, see rec.decode.items.
        per_sid: items taken of one SID.
        batch: histories decoded at once.
        exact: also score the whole catalogue at the test.
    """

    beams: int
    constrained: bool
    normaliser: str
    policy: str
    per_sid: int
    batch: int
    exact: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        settings.at_least("eval", 10, beams=self.beams)
        settings.at_least("eval", 1, per_sid=self.per_sid, batch=self.batch)
        if self.policy not in names.POLICIES:
            raise ValueError(f"policy={self.policy!r}: must be one of {names.POLICIES}")
        if self.normaliser not in names.NORMALISERS:
            raise ValueError(f"normaliser={self.normaliser!r}: must be one of {names.NORMALISERS}")
        if self.normaliser == "children" and not self.constrained:
            raise ValueError("normaliser='children' needs constrained=True")


GROUPS = {
    "data": rec_baselines.RecData,
    "sid": sid.SIDGroup,
    "augment": Pairs,
    "model": TigerConfig,
    "optim": OptimConfig,
    "eval": BeamEval,
}
VARIANTS = ("base", "t5", "tiny", "tiny_t5", "h200", "paper")
ABOUT = About(
    asked="A generator is trained to write the semantic ID of a user's next item.",
    cost={"base": "1 to 2 min on 2 CPU cores", "tiny": "20 s on 2 CPU cores"},
    data=rec_baselines.BEAUTY,
    use="Generative retrieval: recommending from a catalogue through codes of its texts.",
    failures="At :base it is below SASRec, which has a vector per item; most of what it is above "
    "counting it keeps with meaningless IDs; items with the same ID share their rank.",
    actions={"recommend": 'the next items after a history: --query="ITEM ITEM"'},
)
HEADLINE = rec_baselines.ranking_headline()


PACKED = TigerConfig(
    layout="packed",
    width=64,
    heads=2,
    head_dim=32,
    mlp_width=256,
    layers=2,
    mlp="gelu",
    position="none",
    attention="softmax",
    dropout=0.3,
    user_tokens=0,
    separators=False,
    tied=False,
    softmax="digit",
    max_items=64,
    dtype="float32",
    scan="auto",
    remat=False,
    fusion_width=192,
    digit_dropout=0.3,
    smoothing=0.1,
)

BEAM_EVAL = BeamEval(
    every=420,
    select=("valid/ndcg@10", "max"),
    tolerance=1e-3,
    rows=0,
    top=10,
    draws=1000,
    beams=20,
    constrained=True,
    normaliser="digit",
    policy="popularity",
    per_sid=1,
    batch=128,
    exact=False,
)


def get_config(arg: str = "base") -> ConfigDict:
    """Builds the config of one variant."""
    settings.parse_arg(arg, VARIANTS)
    config = rec_baselines.rec_config("tiger", "tiny" if arg == "tiny_t5" else arg)
    config.variant = arg
    pairs = Pairs(rows=16, pairs="prefixes", alpha=1.0, beta=0.0, gamma=0.0, search=False)
    evaluation = dataclasses.replace(BEAM_EVAL, draws=config.eval.draws)
    config.sid = sid.sid_group(sid.SID)
    config.augment = ConfigDict(dataclasses.asdict(pairs))
    config.model = ConfigDict(dataclasses.asdict(PACKED))
    config.optim = sasrec.optim_group(4e-3)
    config.optim.update({"warmup": 100, "schedule": "cosine", "decay": 1680, "weight_decay": 0.1})
    config.train.update({"steps": 1680, "save_every": 420})
    config.eval = ConfigDict(dataclasses.asdict(evaluation))
    config.log.every = 10
    if arg in ("base", "t5"):  # 803 items: few codes, and no digit that means nothing
        config.sid.update({"codes": 64, "conflict": "psid_ecm", "sources": "text+cooccurrence"})
    if arg in ("t5", "tiny_t5"):
        _follow_t5(config)
    if arg in ("tiny", "tiny_t5"):
        _shrink(config)
    if arg == "h200":
        _follow_grid(config)
    if arg == "paper":
        _follow_grid(config)
        _follow_tiger(config)
    return config


def _follow_t5(config: ConfigDict) -> None:
    """Sets the paper's architecture, an encoder over digits and a decoder, at a size that trains on
    a CPU, with the recipe of :base."""
    config.augment.rows = 128
    config.model.update(
        {
            "layout": "encoder_decoder",
            "position": "t5",
            "fusion_width": 0,
            "mlp": "relu",
            "heads": 4,
            "head_dim": 16,
            "dropout": 0.1,
            "digit_dropout": 0.1,
            "max_items": 8,
        }
    )
    config.optim.update({"lr": 3e-3, "decay": 3600})
    config.train.update({"steps": 3600, "save_every": 900})
    config.eval.every = 900


def _shrink(config: ConfigDict) -> None:
    """Sets sizes that a test can afford."""
    config.sid = sid.sid_group(sid.TINY_SID)
    is_packed = config.model.layout == "packed"
    config.augment.rows = 8 if is_packed else 32
    config.model.update({"width": 16, "heads": 2, "head_dim": 8, "mlp_width": 32})
    config.model.update({"fusion_width": 24, "max_items": 16} if is_packed else {"max_items": 5})
    config.optim.update({"warmup": 5, "decay": 30})
    config.train.update({"steps": 30, "save_every": 10})
    config.eval.update({"every": 10, "rows": 64, "batch": 64, "beams": 10})
    config.log.every = 1


def _follow_grid(config: ConfigDict) -> None:
    """Sets the GRID recipe, with our features."""
    config.augment.update({"rows": 256, "pairs": "windows"})
    config.model.update(
        {
            "layout": "encoder_decoder",
            "position": "t5",
            "softmax": "digit",
            "fusion_width": 0,
            "digit_dropout": 0.0,
            "smoothing": 0.0,
            "width": 128,
            "heads": 6,
            "head_dim": 64,
            "mlp_width": 1024,
            "layers": 4,
            "mlp": "deep_relu",
            "dropout": 0.15,
            "separators": True,
            "tied": False,
            "max_items": 20,
            "dtype": "bfloat16",
        }
    )
    config.optim.update(
        {"lr": 1e-3, "warmup": 1000, "schedule": "constant", "decay": 10_000, "weight_decay": 1e-4}
    )
    config.train.update({"steps": 20_000, "save_every": 2000})
    config.eval.update({"every": 2000, "rows": 2048, "beams": 50, "batch": 512})


def _follow_tiger(config: ConfigDict) -> None:
    """Sets the sizes that TIGER's paper names; its 13M parameters do not follow from them, a plain
    T5 of these sizes has 4.6M."""
    config.augment.pairs = "prefixes"
    config.model.update(
        {
            "mlp": "relu",
            "dropout": 0.1,
            "user_tokens": 2000,
            "separators": False,
            "tied": True,
            "softmax": "full",
            "dtype": "float32",
        }
    )
    config.optim.update({"lr": 0.01, "warmup": 0, "schedule": "rsqrt", "weight_decay": 0.0})
    config.sid.method = "rqvae"
    config.sid.update({"steps": 20_000, "batch": 1024, "hidden": (512, 256, 128), "latent": 32})
    config.train.steps = 200_000
    config.eval.update({"constrained": False, "normaliser": "full"})
