# SPDX-License-Identifier: Apache-2.0
"""Groups that the configs of recommenders which write semantic IDs share: tokenizer, training
pairs, decoding.

It lies in a folder of its own because every file beside it is a system.
"""

import dataclasses
from dataclasses import dataclass

from ml_collections import ConfigDict

from experiments.configs.rec import recommenders
from experiments.runner import settings
from rec import names
from rec.sid.config import SIDConfig


@dataclass(frozen=True)
class SIDGroup(SIDConfig):
    """Says which tokenizer makes semantic IDs, and where its table comes from.

    Attributes:
        run: folder of an earlier run of system "sid".
        table: a published index file ({"0": ["<a_1>", ...]} by item, plain or gzip); where it and
            `run` are empty, the tokenizer is fitted here.
        shuffle: hand the SIDs to items at random, the control that has no meaning.
    """

    run: str = ""
    table: str = ""
    shuffle: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.run and self.table:
            raise ValueError("run and table: give one of them")


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
class BeamEval(recommenders.RecEval):
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
    sources=(),
    conflict="digit",  # a counter for items that share an SID
    digit_limit=64,
)
TINY_SID = dataclasses.replace(SID, codes=8, steps=30, batch=256, init_rows=512)
"""Codes of the planted tree."""


def sid_group(group: SIDGroup) -> ConfigDict:
    """Turns a tokenizer into the group `sid` of a config."""
    return ConfigDict(dataclasses.asdict(group))
