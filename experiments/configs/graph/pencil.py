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

from ml_collections import ConfigDict

from experiments.configs.graph import links
from experiments.configs.graph.links import Setting
from experiments.runner import settings
from graph.config import PencilConfig


@dataclass(frozen=True)
class Peer:
    """Says how long a graph network learns for a row beside PENCIL.

    Attributes:
        steps: updates of the system gnn on the same links, before PENCIL is trained; 0 for no row.
    """

    steps: int

    def __post_init__(self) -> None:
        settings.at_least("peer", 0, steps=self.steps)


GROUPS = {**links.GROUPS, "model": PencilConfig, "peer": Peer}
# graph, protocol, hops, fanout, layers, width, rows, epochs, positives
SETTINGS = {
    "paper": links.CITESEER,
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
VARIANTS = ("base", "tiny", "h200", *SETTINGS)
HEADLINE = links.HEADLINE


def get_config(arg: str = "base") -> ConfigDict:
    """Builds the config of one variant."""
    settings.parse_arg(arg, VARIANTS)
    config = links.predictor_config("pencil", arg)
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
        scan=True,
        remat=False,
    )
    peer = Peer(steps=400)
    if arg == "tiny":
        model = dataclasses.replace(model, slots=18, width=16, heads=2, mlp_width=32)
        peer = Peer(steps=20)
    if arg not in ("base", "tiny"):
        setting = SETTINGS["paper" if arg == "h200" else arg]
        links.apply_setting(config, setting)
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
