# SPDX-License-Identifier: Apache-2.0
"""Can a network compute a heuristic from a link's subgraph? PENCIL against GCN, SAGE and GAT.

Paper: Truong et al. 2026 (arXiv 2602.01553), one layer, Cora and Citeseer; its RMSE is shown as a
figure only. Targets are scaled as it says (spec pencil 1.8); the row of a constant, the mean of the
training targets, stands beside every one.

:base   common neighbours on Citeseer, 2 hops of 10, one layer of PENCIL of width 128; about a
        minute on 2 CPU cores; R2 about .8 in a prototype (rmse .096, deviation .225).
        python experiments/run.py --config=heuristic_regression
        Peers: --config.model.kind=gcn [--config.model.inputs=slots]; other targets:
        --config.target.name=aa, ra, katz, pagerank, spd
:tiny   a made-up graph, needs no file.
:h200   Citeseer, fan-out 20, width 256 (not run here).
:paper  the same for 200 epochs at learning rate 2e-4 (not run here).
"""

import dataclasses
from dataclasses import dataclass

from ml_collections import ConfigDict

from experiments.configs.graph import pencil
from experiments.runner import settings
from experiments.runner.about import About, Headline
from graph import names
from graph.config import PencilConfig, SubgraphGNNConfig
from graph.sampling.config import ladder

KINDS = ("pencil", "gcn", "sage", "gat")


@dataclass(frozen=True)
class Target:
    """Says what is regressed.

    Attributes:
        name: the heuristic, computed on the training graph, edges and all.
    """

    name: str

    def __post_init__(self) -> None:
        if self.name not in names.TARGETS:
            raise ValueError(f"name={self.name!r}: must be one of {names.TARGETS}")


@dataclass(frozen=True)
class Regressor:
    """Says which network regresses it.

    Attributes:
        kind: "pencil", or a graph network on the same subgraphs, "gcn", "sage" or "gat".
        width, layers: of the network.
        heads: of PENCIL and "gat".
        mlp_width: of PENCIL.
        inputs: of the graph networks: "slots" (a frozen orthogonal vector per slot), "marked"
            (source, target, others) or "constant".
        slots: tokens of a link at most.
    """

    kind: str
    width: int
    layers: int
    heads: int
    mlp_width: int
    inputs: str
    slots: int

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind={self.kind!r}: must be one of {KINDS}")
        self.config()

    def config(self) -> PencilConfig | SubgraphGNNConfig:
        """Returns the sizes as the network itself takes them."""
        if self.kind == "pencil":
            return PencilConfig(
                self.slots,
                self.width,
                self.heads,
                self.mlp_width,
                self.layers,
                dropout=0.0,
                attention_dropout=0.0,
            )
        return SubgraphGNNConfig(
            self.kind, self.width, self.layers, self.slots, self.heads, self.inputs
        )


@dataclass(frozen=True)
class RegressionEval:
    """Says when and on which links the network is evaluated.

    Attributes:
        every, select, tolerance: as everywhere.
        rows: validation positives looked at while training, 0 for all.
        draws: samples of each test link, whose outputs are averaged.
        batch: links at once.
    """

    every: int
    select: tuple[str, str]
    tolerance: float
    rows: int
    draws: int
    batch: int

    def __post_init__(self) -> None:
        settings.at_least("eval", 1, every=self.every, draws=self.draws, batch=self.batch)
        settings.at_least("eval", 0, tolerance=self.tolerance, rows=self.rows)
        settings.check_select(self.select)


GROUPS = {
    **pencil.PREDICTOR_GROUPS,
    "target": Target,
    "model": Regressor,
    "eval": RegressionEval,
}
VARIANTS = ("base", "tiny", "h200", "paper")
ABOUT = About(
    asked="A network is trained to compute a heuristic of a link from the nodes around it.",
    cost={"base": "1 to 3 min on 2 CPU cores", "tiny": "20 s on 2 CPU cores"},
    data="Citeseer, 3,327 papers and 4,552 citations, split as in HeaRT (MIT); read from a copy in "
    "LPFormer's repository, which states no license.",
    use="Asking what an architecture can compute, not serving.",
    failures="A heuristic of nodes beyond the sampled ones (2 hops of 10) cannot be read off them.",
)
HEADLINE = (
    Headline(
        "test/rmse",
        "lower",
        "Root mean squared error of the scaled heuristic.",
        ("mean/test/rmse",),
    ),
    Headline("test/r2", "higher", "Share of the heuristic's variance explained, at most 1."),
)


def get_config(arg: str = "base") -> ConfigDict:
    """Builds the config of one variant."""
    settings.parse_arg(arg, VARIANTS)
    config = pencil.predictor_config("heuristic_regression", arg)
    evaluation = RegressionEval(
        every=100, select=("valid/rmse", "min"), tolerance=1e-4, rows=0, draws=1, batch=256
    )
    model = Regressor(
        kind="pencil",
        width=128,
        layers=1,
        heads=4,
        mlp_width=256,
        inputs="slots",
        slots=48,  # the cap of config.sample
    )
    if arg == "tiny":
        evaluation = dataclasses.replace(evaluation, every=10, batch=64)
        model = dataclasses.replace(model, width=16, heads=2, mlp_width=32, slots=18)
    else:
        config.data.name = "citeseer"
        config.sample.update({"hops": 2, "fanout": 10, "cap": 48})
        config.train.update({"steps": 600, "save_every": 300})
    if arg in ("h200", "paper"):
        slots = pencil.CITESEER.slots
        config.sample.update({"fanout": 20, "cap": 0, "rows": 2048, "groups": 4})
        config.sample.buckets = ladder(slots)
        config.optim.lr = 2e-4
        config.train.update({"steps": 756, "save_every": 200})  # 200 epochs of 2 x 3870 links
        model = dataclasses.replace(model, width=256, mlp_width=512, slots=slots)
    config.target = ConfigDict(dataclasses.asdict(Target(name="cn")))
    config.model = ConfigDict(dataclasses.asdict(model))
    config.eval = ConfigDict(dataclasses.asdict(evaluation))
    return config
