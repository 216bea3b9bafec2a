# SPDX-License-Identifier: Apache-2.0
"""Sizes of the link predictors, checked before JAX is imported."""

import dataclasses
from typing import Any

from attention import names

SCHEMES = ("adjacency_row", "edge_list", "full")
FUSIONS = ("none", "early", "late")
CONVOLUTIONS = ("gcn", "sage", "gat")
NODE_INPUTS = ("features", "orthogonal", "learned", "constant")
TOKEN_INPUTS = ("features", "slots", "marked", "constant")
HEADS = ("mlp", "dot")
POOLINGS = ("roots", "mean")
DTYPES = ("float32", "bfloat16")


def _require(config: Any, name: str, holds: bool, rule: str) -> None:
    if not holds:
        raise ValueError(f"{name}={getattr(config, name)!r}: {rule}")


def _check(config: Any, least: dict[str, int], allowed: dict[str, tuple[str, ...]]) -> None:
    """Lower bounds, choices, and rates named dropout."""
    for name, low in least.items():
        _require(config, name, getattr(config, name) >= low, f"must be at least {low}")
    for name, values in allowed.items():
        _require(config, name, getattr(config, name) in values, f"must be one of {values}")
    for name in ("dropout", "attention_dropout"):
        if hasattr(config, name):
            _require(config, name, 0 <= getattr(config, name) < 1, "must be in [0, 1)")


def _check_heads(config: Any) -> None:
    """Where attention is wanted, heads divide the width."""
    _require(config, "heads", config.heads >= 1, "must be at least 1")
    if getattr(config, "kind", "gat") == "gat":
        rule = f"must divide width={config.width}"
        _require(config, "heads", config.width % config.heads == 0, rule)


@dataclasses.dataclass(frozen=True)
class PencilConfig:
    """PENCIL: a plain Transformer over the nodes of a link's subgraph (arXiv 2602.01553).

    Attributes:
        slots: N_max, slots that a token's one-hot and adjacency row have, >= 2; batches of any
            N <= slots are read and give the same logits.
        width, heads, mlp_width, layers: of the encoder; heads divide width.
        scheme: "adjacency_row" (the paper's: a token per node with its row of the adjacency),
            "edge_list" (tokens of nodes without rows, and of edges), "full" (both).
        edge_tokens: cap of edges that become tokens, >= 1; read by "edge_list" and "full".
        fusion: where node features are added: "none", "early" (to the tokens), "late" (to the
            states before the head).
        propagation: the one-hop propagation after every layer; off is the paper's ablation.
        adjacency: rows of the adjacency in the tokens; off is a control, of "adjacency_row" only.
        symmetric: logit is the mean over both orders of the endpoints, at twice the cost.
        attention: a kind of `attention.names.KINDS`.
        dropout: of sublayers' outputs; attention_dropout: of attention weights, which are then
            formed densely in training; rates in [0, 1).
        dtype: of activations, "float32" or "bfloat16"; parameters, norms and head are float32.
        scan: layers run as one scanned block ("on") or unrolled ("off"), see `attention.stack`.
        remat: recompute layers in the backward pass.
    """

    slots: int
    width: int
    heads: int
    mlp_width: int
    layers: int
    scheme: str = "adjacency_row"
    edge_tokens: int = 256
    fusion: str = "none"
    propagation: bool = True
    adjacency: bool = True
    symmetric: bool = False
    attention: str = "softmax"
    dropout: int | float = 0.1
    attention_dropout: int | float = 0.1
    dtype: str = "float32"
    scan: bool | str = "auto"
    remat: bool = False

    def __post_init__(self) -> None:
        least = {"slots": 2, "width": 1, "mlp_width": 1, "layers": 1, "edge_tokens": 1}
        choices = {
            "scheme": SCHEMES,
            "fusion": FUSIONS,
            "dtype": DTYPES,
            "attention": names.KINDS,
            "scan": names.SCANS,
        }
        _check(self, least, choices)
        _check_heads(self)
        rule = "may be off only where scheme is adjacency_row"
        _require(self, "adjacency", self.adjacency or self.scheme == SCHEMES[0], rule)

    @property
    def input_width(self) -> int:
        """D_in: length of a token as one-hots, rows and flags."""
        if self.scheme == "full":
            return 4 * self.slots + 3
        return 2 * self.slots + (2 if self.scheme == "adjacency_row" else 3)


@dataclasses.dataclass(frozen=True)
class GNNConfig:
    """Graph network over the whole graph, then a score of two of its states.

    GAE (Kipf and Welling 2016) is kind "gcn" with head "dot".

    Attributes:
        kind: "gcn" (Kipf and Welling 2017), "sage" (mean; Hamilton et al. 2017), "gat"
            (Velickovic et al. 2018).
        width, layers: of the encoder; heads: of "gat", dividing width.
        inputs: of nodes: "features", "orthogonal" (a frozen orthogonal vector per node),
            "learned" (a trained vector per node) or "constant" (nothing is known of a node).
        residual: a linear map of the input is added to every layer.
        head: "mlp" of the Hadamard product, or its sum, "dot"; head_layers: of the "mlp", >= 1.
        dropout: between layers and in the head, in [0, 1).
    """

    kind: str
    width: int
    layers: int
    heads: int = 1
    inputs: str = "features"
    residual: bool = False
    head: str = "mlp"
    head_layers: int = 2
    dropout: int | float = 0.0

    def __post_init__(self) -> None:
        least = {"width": 1, "layers": 1, "head_layers": 1}
        _check(self, least, {"kind": CONVOLUTIONS, "inputs": NODE_INPUTS, "head": HEADS})
        _check_heads(self)


@dataclasses.dataclass(frozen=True)
class NCNConfig:
    """Neural common neighbours (Wang et al. 2024) on the encoder of `GNNConfig`.

    Attributes are those of `GNNConfig`, without a choice of heads: it is an "mlp" of
    [x_s * x_t ; sum of x_u over common neighbours u].
    """

    kind: str
    width: int
    layers: int
    heads: int = 1
    inputs: str = "features"
    residual: bool = False
    head_layers: int = 2
    dropout: int | float = 0.0

    def __post_init__(self) -> None:
        self.encoder()

    def encoder(self) -> GNNConfig:
        return GNNConfig(**dataclasses.asdict(self))


@dataclasses.dataclass(frozen=True)
class RefinedGAEConfig:
    """Tuned graph auto-encoder (Ma et al. 2025).

    Attributes:
        width: of the vectors per node; layers: steps of propagation, >= 1.
        residual: weight of a node's own input in every step, >= 0.
        features: add a linear map of node features to the vectors.
        head_layers: of the MLP on the Hadamard product, >= 1.
        dropout: in the head, in [0, 1).
    """

    width: int
    layers: int
    residual: int | float = 1.0
    features: bool = False
    head_layers: int = 2
    dropout: int | float = 0.0

    def __post_init__(self) -> None:
        _check(self, {"width": 1, "layers": 1, "head_layers": 1, "residual": 0}, {})


@dataclasses.dataclass(frozen=True)
class SubgraphGNNConfig:
    """Graph network on the sampled subgraph of a link: the peer of the heuristic regression.

    Attributes:
        kind, width, layers, heads: as in `GNNConfig`; the paper has one layer of width 512.
        inputs: of tokens: "features", "slots" (a frozen orthogonal vector per slot), "marked"
            (learned vectors of source, target and the rest) or "constant".
        slots: N_max, >= 2; read by "slots".
        dropout: in the head, in [0, 1).
    """

    kind: str
    width: int
    layers: int
    slots: int
    heads: int = 1
    inputs: str = "constant"
    dropout: int | float = 0.0

    def __post_init__(self) -> None:
        choices = {"kind": CONVOLUTIONS, "inputs": TOKEN_INPUTS}
        _check(self, {"width": 1, "layers": 1, "slots": 2}, choices)
        _check_heads(self)


@dataclasses.dataclass(frozen=True)
class SEALConfig:
    """DRNL labels and a GCN on the sampled subgraph (Zhang and Chen 2018), pooled without sorting.

    Attributes:
        width, layers: of the GCN.
        max_label: labels above it share its vector, >= 1.
        pooling: "roots" (Hadamard product of the endpoints' states) or "mean" of all states.
        features: node features beside the labels.
        dropout: in the head, in [0, 1).
    """

    width: int
    layers: int
    max_label: int = 100
    pooling: str = "roots"
    features: bool = False
    dropout: int | float = 0.0

    def __post_init__(self) -> None:
        least = {"width": 1, "layers": 1, "max_label": 1}
        _check(self, least, {"pooling": POOLINGS})


@dataclasses.dataclass(frozen=True)
class MPLPConfig:
    """Counts of nodes by their distances to both endpoints, estimated by random signatures
    (Dong et al. 2024).

    Attributes:
        slots: N_max, >= 2; signature: length of a signature, >= 1.
        width: of the MLPs.
        weighted: beside the counts, weigh every node by a learned function of its degree, as
            Adamic-Adar and resource allocation do.
        dropout: in the head, in [0, 1).
    """

    slots: int
    signature: int
    width: int
    weighted: bool = True
    dropout: int | float = 0.0

    def __post_init__(self) -> None:
        _check(self, {"slots": 2, "signature": 1, "width": 1}, {})


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """AdamW at a constant rate, weight decay on everything trained: the paper's.

    Attributes:
        lr: learning rate, > 0.
        b1, b2: moments, in [0, 1); eps: > 0; weight_decay: >= 0, of every trained array.
        microbatches: parts of a batch whose gradients are added up, to save memory.
    """

    lr: int | float
    b1: int | float = 0.9
    b2: int | float = 0.999
    eps: int | float = 1e-8
    weight_decay: int | float = 0.01
    microbatches: int = 1

    def __post_init__(self) -> None:
        _require(self, "lr", self.lr > 0, "must be > 0")
        for name in ("b1", "b2"):
            _require(self, name, 0 <= getattr(self, name) < 1, "must be in [0, 1)")
        _require(self, "eps", self.eps > 0, "must be > 0")
        _require(self, "weight_decay", self.weight_decay >= 0, "must be at least 0")
        _require(self, "microbatches", self.microbatches >= 1, "must be at least 1")
