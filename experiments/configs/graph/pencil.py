# SPDX-License-Identifier: Apache-2.0
"""PENCIL: a plain Transformer over the nodes around a link.

Paper: Truong et al. 2026, "Plain Transformers are Surprisingly Powerful Link Predictors", ICML
(arXiv 2602.01553). Its test MRR (%) without features [secondary]: cora 42.23, citeseer 47.51,
pubmed 38.28; with HeaRT's negatives 14.63, 16.50, 7.05; ogbl-collab hits@50 66.88, ogbl-ppa
hits@100 73.85, ogbl-citation2 MRR 86.74. On small graphs it loses to NCN (Citeseer 64.03) and
LPFormer there: every run prints the heuristics too.

:base   USAir, fixed split 0, one hop of 40: 2 layers of width 64; two minutes on 2 CPU cores.
        Measured, three seeds: AUC .967 where resource allocation has .947; without propagation
        .959, without adjacency too .832. Over the ten splits .976, resource allocation .959.
        python experiments/run.py --config=pencil
        Other graphs: --config.data.name=Router --config.sample.hops=2 --config.sample.fanout=10
        --config.sample.cap=48; Citeseer: the same with --config.data.name=citeseer
        --config.eval.select="('valid/mrr','max')" --config.train.steps=460: MRR .413, seed 0
        (PageRank .420, SEAL .390, NCN .333); on Pubmed in 4000 updates .303 (SEAL .350, Katz .214).
:tiny   a made-up graph, needs no file.
:h200   Citeseer as in :paper (not run here; wanted MRR >= .43).
:paper, :paper-GRAPH, :paper-heart-GRAPH   the paper's settings of each of its graphs (not run
        here): citeseer (:paper), cora, pubmed, collab, ppa, citation2; heart-citeseer, heart-cora,
        heart-pubmed, heart-ddi. Graphs of OGB are exported first: python -m graph.data.ogb_export
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from experiments.configs.graph import graph_heuristics
from experiments.configs.graph.graph_heuristics import LinkGroup
from experiments.runner import settings
from experiments.runner.about import About
from graph import names
from graph.config import OptimConfig, PencilConfig
from graph.sampling.config import SampleConfig, ladder, num_slots

BACKENDS = ("auto", "host", "device")


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
        graph_heuristics.check_heuristics(self.heuristics)
        settings.at_least("eval", 1, every=self.every, draws=self.draws, batch=self.batch)
        settings.at_least("eval", 1, top=self.top, candidates=self.candidates)
        settings.at_least("eval", 0, tolerance=self.tolerance, rows=self.rows)
        settings.check_select(self.select)


@dataclass(frozen=True)
class Peer:
    """Says how long a graph network learns for a row beside PENCIL.

    Attributes:
        steps: updates of the system gnn on the same links, before PENCIL is trained; 0 for no row.
    """

    steps: int

    def __post_init__(self) -> None:
        settings.at_least("peer", 0, steps=self.steps)


# Of every learned predictor; each adds its "model".
PREDICTOR_GROUPS = {
    "data": LinkGroup,
    "sample": Sampling,
    "optim": OptimConfig,
    "eval": LinkEval,
}
GROUPS = {**PREDICTOR_GROUPS, "model": PencilConfig, "peer": Peer}


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
# graph, protocol, hops, fanout, layers, width, rows, epochs, positives
SETTINGS = {
    "paper": CITESEER,
    "paper-cora": Setting("cora", "original", 2, 20, 8, 512, 2048, 150, 4488),
    "paper-pubmed": Setting("pubmed", "original", 2, 16, 8, 512, 4096, 80, 37676),
    "paper-collab": Setting("ogbl-collab", "ogb", 1, 75, 8, 512, 8192, 10, 1179052),
    "paper-ppa": Setting("ogbl-ppa", "ogb", 1, 150, 4, 512, 16384, 15, 21231931),
    "paper-citation2": Setting("ogbl-citation2", "ogb", 1, 40, 3, 512, 65536, 0.5, 30387995),
    "paper-heart-citeseer": Setting("citeseer", "heart", 2, 20, 2, 1024, 2048, 300, 3870),
    "paper-heart-cora": Setting("cora", "heart", 2, 20, 4, 512, 2048, 150, 4488),
    "paper-heart-pubmed": Setting("pubmed", "heart", 2, 20, 4, 512, 2048, 250, 37676),
    "paper-heart-ddi": Setting("ogbl-ddi", "heart", 1, 350, 8, 512, 4096, 8, 1067911),
}
PEER_VARIANTS = ("base", "tiny", "h200", "paper")
VARIANTS = ("base", "tiny", "h200", *SETTINGS)
METRICS = ("auc", "ap", "mrr", "hits@10", "hits@50")
ABOUT = About(
    asked="A plain transformer is trained to say from the nodes around two ends whether they are "
    "linked.",
    cost={"base": "2 min on 2 CPU cores", "tiny": "20 s on 2 CPU cores"},
    data=graph_heuristics.LINKS,
    use="Ranking missing links of a graph like the one it was trained on.",
    failures="MRR below personalised PageRank on Citeseer and Power, and no better than resource "
    "allocation on USAir; below SEAL on Pubmed.",
    actions={"predict": 'scores of links: --query="NODE NODE", or --query=NODE for its best'},
)
HEADLINE = graph_heuristics.link_headline(gnn=True)


def predictor_config(system: str, arg: str) -> ConfigDict:
    """Builds frame, data, sample, optim and eval groups of a learned predictor; `model` is left to
    the caller."""
    config = graph_heuristics.link_config(system, arg)
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
    settings.parse_arg(arg, PEER_VARIANTS)
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


def get_config(arg: str = "base") -> ConfigDict:
    """Builds the config of one variant."""
    settings.parse_arg(arg, VARIANTS)
    config = predictor_config("pencil", arg)
    model = PencilConfig(
        slots=82,  # nodes around a link at most: 1 hop of 40
        width=64,
        heads=4,
        mlp_width=128,
        layers=2,
        scheme="adjacency_row",
        edge_tokens=256,
        fusion="none",
        propagation=True,
        adjacency=True,
        symmetric=False,
        attention="softmax",
        dropout=0.0,
        attention_dropout=0.0,
        dtype="float32",
        scan="auto",
        remat=False,
    )
    peer = Peer(steps=400)
    if arg == "tiny":
        model = dataclasses.replace(model, slots=18, width=16, heads=2, mlp_width=32)
        peer = Peer(steps=20)
    if arg not in ("base", "tiny"):
        setting = SETTINGS["paper" if arg == "h200" else arg]
        apply_setting(config, setting)
        config.optim.update({"lr": 1e-4, "microbatches": 1 if setting.ogb else 8})
        model = dataclasses.replace(
            model,
            slots=setting.slots,
            width=setting.width,
            heads=8,
            mlp_width=2048,
            layers=setting.layers,
            dropout=0.1,
            attention_dropout=0.1,
            dtype="bfloat16" if setting.ogb else "float32",
        )
        peer = Peer(steps=0 if setting.ogb else 400)
    config.model = ConfigDict(dataclasses.asdict(model))
    config.peer = ConfigDict(dataclasses.asdict(peer))
    return config
