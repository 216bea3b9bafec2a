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

from ml_collections import ConfigDict

from experiments.configs.rec import generators, recommenders
from experiments.runner import settings

GROUPS = {
    "data": recommenders.RecData,
    "eval": recommenders.RecEval,
    "sid": generators.SIDGroup,
}
VARIANTS = ("base", "tiny", "h200", "paper")
HEADLINE = ("test/distinct", "test/uniqueness", "test/usage/level1", "test/reconstruction")


def get_config(arg: str = "base") -> ConfigDict:
    """Builds the config of one variant."""
    settings.parse_arg(arg, VARIANTS)
    config = recommenders.rec_config("sid", arg)
    tokenizer = generators.SID
    save_every = 300
    config.eval.every = 50
    if arg == "tiny":
        tokenizer = generators.TINY_SID
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
    config.sid = generators.sid_group(tokenizer)
    config.train.update({"steps": tokenizer.steps, "save_every": save_every})
    return config
