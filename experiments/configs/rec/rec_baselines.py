# SPDX-License-Identifier: Apache-2.0
"""Recommenders without training: popularity, successors, co-occurrence, item-kNN, content.

They stand beside every learned row; here they run alone.

:base   Amazon-2014 Beauty, its 8-core (1,766 users, 803 items), seconds on a CPU.
        python experiments/run.py --config=rec_baselines
        Whole Beauty: --config.data.core=0. Expected there (spec rec_core 3.1), recall@5 / ndcg@10:
        popularity .0075 / .0055, successor .0513 / .0439, item_knn .0465 / .0395,
        content .0352 / .0285 (within .003).
:tiny   a made-up catalogue, needs no file.
:h200, :paper   whole Beauty and whole Sports: the papers' protocol; no accelerator is needed.
Your data: --config.data.format=own --config.data.interactions=FILE --config.data.item_text=FILE
"""

from ml_collections import ConfigDict

from experiments.configs.rec import recommenders
from experiments.runner import settings

GROUPS = {"data": recommenders.RecData, "eval": recommenders.RecEval}
VARIANTS = ("base", "tiny", "h200", "paper")
HEADLINE = (
    "popularity/test/recall@10",
    "successor/test/recall@10",
    "cooccurrence/test/recall@10",
    "item_knn/test/recall@10",
    "content/test/recall@10",
)


def get_config(arg: str = "base") -> ConfigDict:
    """Builds the config of one variant."""
    settings.parse_arg(arg, VARIANTS)
    config = recommenders.rec_config("rec_baselines", arg)
    if arg == "paper":
        config.data.name = "sports"
    return config
