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

import dataclasses
from dataclasses import dataclass

from ml_collections import ConfigDict

from experiments.runner import settings
from experiments.runner.about import About, Headline
from rec.data import columns, reading

FORMATS = tuple(reading.FORMATS)


@dataclass(frozen=True)
class RecData:
    """Says which interactions are read and how they are split.

    Attributes:
        root: folder of raw files; "" means $BANYAN_DATA.
        format: "amazon2014" (folder amazon2014/<name> of packed files), "reviews2014" and
            "reviews2023" (the public files of reviews and metadata of category <name>),
            "movielens" (folder <name>), "letter" (<name>.inter .json and .index.json), "own" (your
            files `interactions` and `item_text`) or "planted" (made from the seed: `users` walk
            over 512 items of a known tree).
        name: of the category or folder.
        interactions: CSV, TSV or Parquet with columns user, item, time.
        item_text: CSV, TSV or Parquet with columns item, text; "" where nothing reads texts.
        users: of a planted corpus.
        core: users and items with fewer interactions are left out, again and again; 0 keeps all.
        split: "leave_one_out" or "temporal".
        valid_from, test_from: beginnings of the sides of a temporal split, seconds.
        ties: order of equal times, "file", "item" or "shuffle".
        repeats: an item twice in a row: "refuse", "first" or "keep".
        textless: items without text: "refuse" or "drop".
        features: "tfidf" or a .npy file of item vectors in order of the items.
        feature_dim: width of tfidf vectors.
        columns: names of the columns of your tables, "user=user_id,item=asin,time=ts,text=title";
            those left out are recognized.
    """

    root: str
    format: str
    name: str
    interactions: str
    item_text: str
    users: int
    core: int
    split: str
    valid_from: int
    test_from: int
    ties: str
    repeats: str
    textless: str
    features: str
    feature_dim: int
    columns: str = ""

    def __post_init__(self) -> None:
        allowed = {
            "format": FORMATS,
            "split": ("leave_one_out", "temporal"),
            "ties": ("file", "item", "shuffle"),
            "repeats": ("refuse", "first", "keep"),
            "textless": ("refuse", "drop"),
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name}={getattr(self, name)!r}: must be one of {values}")
        settings.at_least("data", 0, core=self.core)
        settings.at_least("data", 1, feature_dim=self.feature_dim, users=self.users)
        columns.parse(self.columns)
        if self.format != "own" and (self.interactions or self.item_text):
            raise ValueError(
                f"format={self.format!r} reads no files of yours, but interactions or item_text "
                "names one: add --config.data.format=own"
            )
        if self.format == "own" and not self.interactions:
            raise ValueError("format='own' needs --config.data.interactions=FILE")
        if self.split == "temporal" and self.valid_from >= self.test_from:
            raise ValueError(
                f"valid_from={self.valid_from} must be before test_from={self.test_from}"
            )


@dataclass(frozen=True)
class RecEval:
    """Says when and on which queries a recommender is evaluated.

    Attributes:
        every: updates between evaluations on split "valid".
        select: (metric, "max" or "min") that chooses the tested checkpoint.
        tolerance: absolute, for --mode=check.
        rows: validation queries looked at while training, evenly spaced, 0 for all; the test
            asks all.
        top: items of --mode=recommend.
        draws: of the bootstrap over users behind every interval.
    """

    every: int
    select: tuple[str, str]
    tolerance: float
    rows: int
    top: int
    draws: int

    def __post_init__(self) -> None:
        settings.at_least("eval", 1, every=self.every, top=self.top, draws=self.draws)
        settings.at_least("eval", 0, tolerance=self.tolerance, rows=self.rows)
        settings.check_select(self.select)


GROUPS = {"data": RecData, "eval": RecEval}
VARIANTS = ("base", "tiny", "h200", "paper")
BASELINES = ("successor", "cooccurrence", "item_knn", "content", "popularity")
BEAUTY = (
    "Amazon's 2014 reviews of Beauty, their 8-core: 1,766 users and 803 items; for research use, "
    "citing McAuley et al. The repositories it is read from state no license."
)
ABOUT = About(
    asked="Counts and similarities of items, which need no training, rank the next item of a user.",
    cost={"base": "seconds on 2 CPU cores", "tiny": "4 s on 2 CPU cores"},
    data=BEAUTY,
    use="What a trained recommender must beat; served as it is where it wins.",
    failures="New items have no counts; popularity answers everybody alike.",
    actions={"recommend": 'the next items, by one of the counts: --query="successor: ITEM ITEM"'},
)
HEADLINE = (
    *(
        Headline(
            f"{name}/test/recall@10",
            "higher",
            f"Share of users, 0 to 1, whose next item is among the ten that {name} ranks first.",
            ("popularity/test/recall@10",),
        )
        for name in BASELINES[:-1]
    ),
    Headline(
        "popularity/test/recall@10",
        "higher",
        "The same share for the ten items bought most.",
    ),
)


def ranking_headline(ks: tuple[int, ...] = (5, 10)) -> tuple[Headline, ...]:
    """Headline of a trained recommender, beside everything that needs no training."""
    sentence = {
        "recall": "Share of users, 0 to 1, whose next item is among the first {k} of all.",
        "ndcg": "The same, each hit weighted by 1 / log2(1 + its place), 0 to 1, first {k}.",
    }
    return tuple(
        Headline(
            f"test/{metric}@{k}",
            "higher",
            sentence[metric].format(k=k),
            tuple(f"{name}/test/{metric}@{k}" for name in BASELINES),
        )
        for k in reversed(ks)
        for metric in ("recall", "ndcg")
    )


def rec_config(system: str, arg: str) -> ConfigDict:
    """Builds frame, data and eval groups of a recommender: Beauty's 8-core, in :tiny the planted
    corpus, in :h200 and :paper whole Beauty."""
    config = settings.base_config(system, arg)
    data = RecData(
        root="",
        format="amazon2014",
        name="beauty",
        interactions="",
        item_text="",
        users=2000,
        core=8,
        split="leave_one_out",
        valid_from=0,
        test_from=1,
        ties="file",
        repeats="refuse",
        textless="refuse",
        features="tfidf",
        feature_dim=256,
    )
    evaluation = RecEval(every=1000, select=("", "max"), tolerance=1e-6, rows=0, top=10, draws=1000)
    if arg == "tiny":
        data = dataclasses.replace(data, format="planted", name="planted", core=0, users=300)
        evaluation = dataclasses.replace(evaluation, draws=100)
    if arg in ("h200", "paper"):
        data = dataclasses.replace(data, core=0)
    config.data = ConfigDict(dataclasses.asdict(data))
    config.eval = ConfigDict(dataclasses.asdict(evaluation))
    return config


def get_config(arg: str = "base") -> ConfigDict:
    """Builds the config of one variant."""
    settings.parse_arg(arg, VARIANTS)
    config = rec_config("rec_baselines", arg)
    if arg == "paper":
        config.data.name = "sports"
    return config
