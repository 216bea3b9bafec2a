# SPDX-License-Identifier: Apache-2.0
"""Semantic IDs of a catalogue: residual k-means, R-VQ, RQ-VAE and their controls.

Papers: Rajput et al. 2023 (TIGER), Ju et al. 2025 (GRID); dense codebook gradients and several
sources after "Semantic IDs at Snapchat" [secondary].

:base   residual k-means 3 x 256 on TF-IDF features of Amazon-2014 Beauty's 8-core.
        python experiments/run.py --config=sid
        Another method: --config.sid.method=rqvae --config.sid.steps=2000 --config.train.steps=2000
:tiny   a made-up catalogue, needs no file.
:h200   whole Beauty (12,101 items); expected: >= 10,300 distinct SIDs, usage >= 98 % per level.
:paper  RQ-VAE with the sizes of TIGER on whole Beauty, 20,000 updates (not run here).
A later run reads the table: --config=tiger --config.sid.run=DIR
"""

import dataclasses
from dataclasses import dataclass

from ml_collections import ConfigDict

from experiments.configs.rec import rec_baselines
from experiments.runner import settings
from experiments.runner.about import About, Headline
from rec.names import SID_SOURCES
from rec.sid.config import SIDConfig


@dataclass(frozen=True)
class SIDGroup(SIDConfig):
    """Says which tokenizer makes semantic IDs, and where its table comes from.

    Attributes:
        run: folder of an earlier run of system "sid".
        table: a published index file ({"0": ["<a_1>", ...]} by item, plain or gzip); where it and
            `run` are empty, the tokenizer is fitted here.
        sources: "text", or "text+cooccurrence" with how items occur together in training sequences,
            see `rec.sid.sources`.
        shuffle: hand the SIDs to items at random, the control that has no meaning.
    """

    run: str = ""
    table: str = ""
    shuffle: bool = False
    sources: str = "text"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.run and self.table:
            raise ValueError("run and table: give one of them")
        if self.sources not in SID_SOURCES:
            raise ValueError(f"sources={self.sources!r}: must be one of {SID_SOURCES}")


GROUPS = {
    "data": rec_baselines.RecData,
    "eval": rec_baselines.RecEval,
    "sid": SIDGroup,
}
VARIANTS = ("base", "tiny", "h200", "paper")
ABOUT = About(
    asked="A tokenizer is fitted to give every item of a catalogue a short code of its text.",
    cost={"base": "a minute on 2 CPU cores", "tiny": "10 s on 2 CPU cores"},
    data=rec_baselines.BEAUTY,
    use="A table of semantic IDs for a generative recommender: --config.sid.run=DIR.",
    failures="RQ-VAE with the published recipe uses few of its codes; items of equal text collide.",
)
HEADLINE = (
    Headline("test/distinct", "higher", "Number of different codes, at most the number of items."),
    Headline("test/uniqueness", "higher", "Different codes per item, 0 to 1."),
    Headline("test/usage/level1", "higher", "Share of the first level's codes in use, 0 to 1."),
    Headline(
        "test/reconstruction", "lower", "Mean squared error of a text vector rebuilt from its code."
    ),
)
SID = SIDGroup(
    method="rkmeans",
    levels=3,
    codes=256,
    steps=300,
    batch=2048,
    init_rows=3072,
    lloyd=10,
    normalise=True,
    lr=1e-3,
    optimiser="adam",
    warmup=0,
    decay=False,
    beta=0.25,
    estimator="ste",
    temperature=0.7,
    dense_gradient=False,
    kmeans_init=True,
    dead_code_reset=50,
    standardise=True,
    hidden=(256, 128),
    latent=64,
    source_widths=(),
    conflict="digit",  # a counter for items that share an SID
    digit_limit=64,
)
TINY_SID = dataclasses.replace(SID, codes=8, steps=30, batch=256, init_rows=512)
"""Codes of the planted tree."""


def sid_group(group: SIDGroup) -> ConfigDict:
    """Turns a tokenizer into the group `sid` of a config."""
    return ConfigDict(dataclasses.asdict(group))


def get_config(arg: str = "base") -> ConfigDict:
    """Builds the config of one variant."""
    settings.parse_arg(arg, VARIANTS)
    config = rec_baselines.rec_config("sid", arg)
    tokenizer = SID
    save_every = 300
    config.eval.every = 50
    if arg == "tiny":
        tokenizer = TINY_SID
        save_every = 15
        config.eval.every = 10
    if arg == "paper":
        tokenizer = dataclasses.replace(
            tokenizer,
            method="rqvae",
            steps=20_000,
            batch=1024,
            hidden=(512, 256, 128),
            latent=32,
            warmup=1000,
            decay=True,
        )
        save_every = 5000
        config.eval.every = 1000
    config.sid = sid_group(tokenizer)
    config.train.update({"steps": tokenizer.steps, "save_every": save_every})
    return config
