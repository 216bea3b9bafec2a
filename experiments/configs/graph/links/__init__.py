# SPDX-License-Identifier: Apache-2.0
"""Groups that the configs of several link predictors share, and the variants of the learned ones.

It lies in a folder of its own because every file beside it is a system.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from experiments.runner import settings
from graph import names
from graph.config import OptimConfig
from graph.data import reading
from graph.sampling.config import SampleConfig, ladder, num_slots

BACKENDS = ("auto", "host", "device")
VARIANTS = ("base", "tiny", "h200", "paper")
METRICS = ("auc", "ap", "mrr", "hits@10", "hits@50")
HEADLINE = (
    *(f"test/{metric}" for metric in METRICS),
    *(
        f"{name}/test/{metric}"
        for name in ("cn", "ra", "pa", "katz", "ppr", "gnn")
        for metric in ("auc", "mrr")
    ),
)


@dataclass(frozen=True)
class LinkGroup:
    """Says which graph is read and how it is split.

    Attributes:
        root: folder of raw files; "" means $BANYAN_DATA.
        format: kind of file, see graph.data.reading; a "planted" graph is made from its name.
        name: of the graph; a number where it is planted.
        split: "fixed" (as the files have it), "random" or "temporal" (both made here).
        index: which of several fixed splits; -1 for all of them (rows without training only).
        protocol: negatives of valid and test: "original" (the file's, or uniform ones, shared by
            all links), "heart" (hard ones of each link: the file's, or made here) or "ogb" (as
            exported).
        hard: hard negatives made for each end of a link.
        valid_share: of the edges, held out by a split that is made; also of fixed training links,
            to choose the checkpoint, where the file has no validation.
        test_share: of the edges, held out by a split that is made.
        seed: of what is made.
    """

    root: str
    format: str
    name: str
    split: str
    index: int
    protocol: str
    hard: int
    valid_share: float
    test_share: float
    seed: int

    def __post_init__(self) -> None:
        allowed = {
            "format": tuple(reading.FORMATS),
            "split": reading.SPLITS,
            "protocol": reading.PROTOCOLS,
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name}={getattr(self, name)!r}: must be one of {values}")
        settings.at_least("data", -1, index=self.index)
        settings.at_least("data", 1, hard=self.hard)
        settings.at_least("data", 0, seed=self.seed)
        for name in ("valid_share", "test_share"):
            if not 0 < getattr(self, name) < 0.5:
                raise ValueError(f"{name}={getattr(self, name)}: must be in (0, .5)")


@dataclass(frozen=True)
class Sampling:
    """Says what is sampled around a link and what a batch of links is made of.

    Attributes:
        hops, fanout, cap, buckets, reference_order: see graph.sampling.config.
        slots: order of the other tokens, "random" or "sorted" (evaluation of the released code).
        swap: the endpoints of undirected links change places at random.
        backend: "host" (NumPy, batches padded to a bucket), "device" (inside the training step,
            padded to `cap`) or "auto" ("device" on accelerators).
        rows: links of a batch, half of them negatives, even.
        groups: parts of a batch by size of subgraph, each padded to a bucket of its own, on the
            host.
        negatives: "drawn" anew each epoch from pairs that are no edges, or "fixed", those of the
            split.
        avoid: drawn negatives are no positives of valid and test either (the paper's may be).
    """

    hops: int
    fanout: int
    cap: int
    buckets: tuple[int, ...]
    reference_order: bool
    slots: str
    swap: bool
    backend: str
    rows: int
    groups: int
    negatives: str
    avoid: bool

    def __post_init__(self) -> None:
        self.config()
        allowed = {
            "slots": ("random", "sorted"),
            "backend": BACKENDS,
            "negatives": ("drawn", "fixed"),
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name}={getattr(self, name)!r}: must be one of {values}")
        settings.at_least("sample", 2, rows=self.rows)
        settings.at_least("sample", 1, groups=self.groups)
        if self.rows % (2 * self.groups):
            raise ValueError(f"rows={self.rows}: must be a multiple of 2 * groups={self.groups}")
        if self.groups > 1 and self.backend == "device":
            raise ValueError(f"groups={self.groups}: subgraphs are grouped by size on the host")

    def config(self) -> SampleConfig:
        """Returns what the sampler itself reads of these fields."""
        return SampleConfig(self.hops, self.fanout, self.cap, self.buckets, self.reference_order)


def check_heuristics(chosen: tuple[str, ...]) -> None:
    """Raises ValueError for an unknown heuristic, or one named twice."""
    if not set(chosen) <= set(names.HEURISTICS) or len(set(chosen)) < len(chosen):
        raise ValueError(f"heuristics={chosen!r}: must be different ones of {names.HEURISTICS}")


@dataclass(frozen=True)
class LinkEval:
    """Says when and on which links a predictor is evaluated.

    Attributes:
        every: updates between evaluations on split "valid".
        select: (metric, "max" or "min") that chooses the tested checkpoint.
        tolerance: absolute, for --mode=check.
        rows: positives looked at while training, evenly spaced, 0 for all; the test asks all.
        draws: samples of each test link, whose logits are averaged (validation: one).
        batch: links scored at once.
        top: links listed by --mode=predict --query=NODE.
        candidates: nodes that it chooses from.
        heuristics: rows without training beside the test.
    """

    every: int
    select: tuple[str, str]
    tolerance: float
    rows: int
    draws: int
    batch: int
    top: int
    candidates: int
    heuristics: tuple[str, ...]

    def __post_init__(self) -> None:
        check_heuristics(self.heuristics)
        settings.at_least("eval", 1, every=self.every, draws=self.draws, batch=self.batch)
        settings.at_least("eval", 1, top=self.top, candidates=self.candidates)
        settings.at_least("eval", 0, tolerance=self.tolerance, rows=self.rows)
        settings.check_select(self.select)


# A predictor adds its "model".
GROUPS = {"data": LinkGroup, "sample": Sampling, "optim": OptimConfig, "eval": LinkEval}


class Setting(NamedTuple):
    """Says what PENCIL's paper trained on one graph (spec pencil 1.1, 1.6)."""

    graph: str
    protocol: str
    hops: int
    fanout: int
    layers: int
    width: int
    rows: int
    """Links of an update."""
    epochs: int | float
    """Passes over all positives of training."""
    positives: int
    """Positives of training, counted here for the number of updates."""

    @property
    def ogb(self) -> bool:
        return self.graph.startswith("ogbl")

    @property
    def slots(self) -> int:
        """Largest number of nodes around a link."""
        return num_slots(self.hops, self.fanout)


CITESEER = Setting("citeseer", "original", 2, 20, 2, 1024, 2048, 150, 3870)


def link_config(system: str, arg: str) -> ConfigDict:
    """Builds frame and data group of a link predictor: USAir, in :tiny a made-up graph."""
    config = settings.base_config(system, arg)
    group = LinkGroup(
        root="",
        format="npz",
        name="USAir",
        split="fixed",
        index=0,
        protocol="original",
        hard=250,
        valid_share=0.05,
        test_share=0.1,
        seed=0,
    )
    if arg == "tiny":
        group = dataclasses.replace(group, format="planted", name="0", split="random")
    config.data = ConfigDict(dataclasses.asdict(group))
    return config


def predictor_config(system: str, arg: str) -> ConfigDict:
    """Builds frame, data, sample, optim and eval groups of a learned predictor; `model` is left to
    the caller."""
    config = link_config(system, arg)
    sampling = Sampling(
        hops=1,
        fanout=40,
        cap=0,
        buckets=(),
        reference_order=False,
        slots="random",
        swap=True,
        backend="auto",
        rows=64,
        groups=1,
        negatives="drawn",
        avoid=False,
    )
    evaluation = LinkEval(
        every=100,
        select=("valid/auc", "max"),
        tolerance=1e-4,
        rows=0,
        draws=4,
        batch=256,
        top=10,
        candidates=2000,
        heuristics=names.HEURISTICS,
    )
    config.train = ConfigDict({"steps": 400, "save_every": 200})
    config.log.every = 10
    if arg == "tiny":
        sampling = dataclasses.replace(sampling, fanout=8, rows=16)
        evaluation = dataclasses.replace(evaluation, every=10, draws=2, batch=64, candidates=50)
        config.train.update({"steps": 20, "save_every": 10})
    optim = OptimConfig(
        lr=1e-3,
        b1=0.9,
        b2=0.999,
        eps=1e-8,
        weight_decay=0.01,
        microbatches=1,
    )
    config.sample = ConfigDict(dataclasses.asdict(sampling))
    config.optim = ConfigDict(dataclasses.asdict(optim))
    config.eval = ConfigDict(dataclasses.asdict(evaluation))
    return config


def peer_config(system: str, arg: str, *, base: Any, tiny: Any, paper: Any) -> ConfigDict:
    """Builds the config of a predictor that stands beside PENCIL, on the same links and samples.

    Args:
        base, tiny, paper: the model of each variant, a dataclass of graph.config; :h200 and :paper
            are one setting, Citeseer as PENCIL's paper samples it.
    """
    settings.parse_arg(arg, VARIANTS)
    config = predictor_config(system, arg)
    model = {"base": base, "tiny": tiny}.get(arg, paper)
    config.model = ConfigDict(dataclasses.asdict(model))
    if arg in ("h200", "paper"):
        apply_setting(config, CITESEER)
    return config


def apply_setting(config: ConfigDict, setting: Setting) -> None:
    """Sets graph, samples, batches, updates, and how the checkpoint is chosen."""
    config.data.update({"name": setting.graph, "protocol": setting.protocol})
    config.sample.update(
        {
            "hops": setting.hops,
            "fanout": setting.fanout,
            "buckets": () if setting.ogb else ladder(setting.slots),
            "rows": setting.rows,
            "groups": 1 if setting.ogb else 4,
        }
    )
    steps = round(2 * setting.epochs * setting.positives / setting.rows)
    config.train.update({"steps": steps, "save_every": max(1, steps // 10)})
    best = {"ogbl-collab": "ogb_hits@50", "ogbl-ppa": "ogb_hits@100"}
    config.eval.update({"every": max(1, steps // 40), "batch": 1024})
    config.eval.select = (f"valid/{best.get(setting.graph, 'mrr')}", "max")
    if setting.ogb:
        config.eval.heuristics = ("cn", "aa", "ra", "pa")
