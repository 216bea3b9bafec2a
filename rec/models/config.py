# SPDX-License-Identifier: Apache-2.0
"""Sizes of the recommenders, checked before JAX is imported."""

import dataclasses
from types import MappingProxyType
from typing import Any

from attention.transformer_config import TransformerConfig

LAYOUTS = ("encoder_decoder", "decoder_only", "packed")
SOFTMAXES = ("digit", "full", "children")
# What the packed layout has no choice of: ages stand in for positions, tables are never tied.
PACKED = MappingProxyType(
    {"position": "none", "user_tokens": 0, "separators": False, "tied": False}
)
LOSSES = ("full", "sampled", "bce")


def require(config: Any, name: str, holds: bool, rule: str) -> None:
    """Raises ValueError with a field and its value unless a rule holds."""
    if not holds:
        raise ValueError(f"{name}={getattr(config, name)!r}: {rule}")


@dataclasses.dataclass(frozen=True)
class TigerConfig:
    """Generator of semantic IDs (Rajput et al. 2023; Ju et al. 2025).

    Attributes:
        layout: "encoder_decoder"; "decoder_only" on history and target in one row; or "packed", a
            causal token per item and digits by small heads (`rec.models.packed`), every position
            of a row a target.
        width, heads, head_dim, mlp_width, layers: of the transformer; layers of each stack.
        mlp: "relu" (plain T5: 4.6M parameters at the paper's sizes) or "deep_relu" (two hidden
            layers: the 13.13M of the GRID recipe), or another one of the shared transformer.
        position: "t5" (relative bias), or "rope" for kinds of attention that take no bias.
        attention: a kind of `attention.names.KINDS`.
        dropout: rate in [0, 1); in "packed" only on embeddings and residual branches.
        user_tokens: rows of the user table; user id modulo that is put before the history; 0 none.
        separators: a learned vector after every item.
        tied: digits are scored with their own embeddings, else with a table of their own.
        softmax: the loss normalises over the codes of a level ("digit"), of all levels ("full"), or
            over those that continue the target's prefix in the catalogue ("children", packed).
        max_items: newest items of a history that are read; "packed": pairs of a row, and ages.
        dtype, scan, remat: see TransformerConfig.
        fusion_width: hidden units of the MLPs of "packed" that join codes, else 0.
        digit_dropout: rate at which whole digits of items of the history are dropped, in [0, 1).
        smoothing: share of a target spread evenly over all codes it could have been, in [0, 1).
    """

    layout: str
    width: int
    heads: int
    head_dim: int
    mlp_width: int
    layers: int
    mlp: str
    position: str
    attention: str
    dropout: int | float
    user_tokens: int
    separators: bool
    tied: bool
    softmax: str
    max_items: int
    dtype: str
    scan: bool | str
    remat: bool
    fusion_width: int = 0
    digit_dropout: int | float = 0.0
    smoothing: int | float = 0.0

    def __post_init__(self) -> None:
        require(self, "layout", self.layout in LAYOUTS, f"must be one of {LAYOUTS}")
        require(self, "softmax", self.softmax in SOFTMAXES, f"must be one of {SOFTMAXES}")
        require(self, "user_tokens", self.user_tokens >= 0, "must be at least 0")
        require(self, "max_items", self.max_items >= 1, "must be at least 1")
        for name in ("digit_dropout", "smoothing"):
            require(self, name, 0 <= getattr(self, name) < 1, "must be in [0, 1)")
        if self.layout == "packed":
            require(self, "fusion_width", self.fusion_width >= 1, "must be at least 1 for packed")
            for name, value in PACKED.items():
                require(self, name, getattr(self, name) == value, f"packed has only {value!r}")
            require(self, "softmax", self.softmax != "full", "packed has 'digit' or 'children'")
        else:
            require(self, "fusion_width", not self.fusion_width, "is of layout='packed', give 0")
            require(self, "softmax", self.softmax != "children", "is of layout='packed'")
        self.transformer()

    def transformer(self) -> TransformerConfig:
        """T5's conventions: RMSNorm before, no biases, no 1 / sqrt(d) with the relative bias. Those
        of "packed" are GPT-2's with RMSNorm."""
        is_packed = self.layout == "packed"
        return TransformerConfig(
            bias=is_packed,
            shrink_residual=is_packed,
            dropout_sites="residual" if is_packed else "all",
            width=self.width,
            heads=self.heads,
            head_dim=self.head_dim,
            mlp_width=self.mlp_width,
            layers=self.layers,
            mlp=self.mlp,
            position=self.position,
            attention=self.attention,
            dropout=self.dropout,
            scale_logits=self.position != "t5",
            dtype=self.dtype,
            scan=self.scan,
            remat=self.remat,
        )


@dataclasses.dataclass(frozen=True)
class SASRecConfig:
    """Self-attentive ranker of items (Kang and McAuley 2018) on the shared transformer.

    Attributes:
        width, heads, mlp_width, layers: of the transformer; head_dim is width / heads.
        mlp: of the shared transformer, the paper's is "relu".
        pre_norm: norms before sublayers (the usual form today), else after.
        attention: a kind of `attention.names.KINDS`.
        dropout: rate in [0, 1).
        loss: "full" softmax over the catalogue, "sampled" softmax or "bce", both with uniform
            negatives.
        negatives: drawn per position, >= 1; read by "sampled" and "bce" (the paper's is 1).
        max_items: newest items that are read; positions are learned. Of packed rows: their pairs.
        dtype, scan, remat: see TransformerConfig.
        dropout_sites: "all" or "residual", see TransformerConfig.
        smoothing: share of a target spread evenly over the catalogue, in [0, 1); of "full".
    """

    width: int
    heads: int
    mlp_width: int
    layers: int
    mlp: str
    pre_norm: bool
    attention: str
    dropout: int | float
    loss: str
    negatives: int
    max_items: int
    dtype: str
    scan: bool | str
    remat: bool
    dropout_sites: str = "all"
    smoothing: int | float = 0.0

    def __post_init__(self) -> None:
        require(self, "loss", self.loss in LOSSES, f"must be one of {LOSSES}")
        require(self, "smoothing", 0 <= self.smoothing < 1, "must be in [0, 1)")
        is_full = self.loss == "full"
        require(self, "smoothing", is_full or not self.smoothing, "is of loss='full', give 0")
        require(self, "negatives", self.negatives >= 1, "must be at least 1")
        require(self, "max_items", self.max_items >= 1, "must be at least 1")
        require(self, "heads", self.heads >= 1, "must be at least 1")
        require(self, "heads", self.width % self.heads == 0, f"must divide width={self.width}")
        self.transformer()

    def transformer(self) -> TransformerConfig:
        """LayerNorm, biases, learned positions outside."""
        return TransformerConfig(
            width=self.width,
            heads=self.heads,
            head_dim=self.width // self.heads,
            mlp_width=self.mlp_width,
            layers=self.layers,
            mlp=self.mlp,
            position="none",
            norm="layer",
            pre_norm=self.pre_norm,
            bias=True,
            attention=self.attention,
            dropout=self.dropout,
            dropout_sites=self.dropout_sites,
            dtype=self.dtype,
            scan=self.scan,
            remat=self.remat,
        )


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """AdamW.

    Attributes:
        lr: peak learning rate, > 0.
        warmup: updates from 0 to lr, >= 0.
        schedule: after it "constant", "cosine" (to 0 at update `decay`) or "rsqrt" (constant until
            update `decay`, then falling with the inverse square root: T5's).
        decay: see schedule; more than warmup.
        b1, b2: moments, in [0, 1); weight_decay: of matrices, >= 0.
        clip: of the gradient's global norm, > 0.
    """

    lr: int | float
    warmup: int
    schedule: str
    decay: int
    b1: int | float
    b2: int | float
    weight_decay: int | float
    clip: int | float

    def __post_init__(self) -> None:
        schedules = ("constant", "cosine", "rsqrt")
        require(self, "lr", self.lr > 0, "must be > 0")
        require(self, "warmup", self.warmup >= 0, "must be at least 0")
        require(self, "schedule", self.schedule in schedules, f"must be one of {schedules}")
        require(self, "decay", self.decay > self.warmup, "must be more than warmup")
        require(self, "b1", 0 <= self.b1 < 1, "must be in [0, 1)")
        require(self, "b2", 0 <= self.b2 < 1, "must be in [0, 1)")
        require(self, "weight_decay", self.weight_decay >= 0, "must be at least 0")
        require(self, "clip", self.clip > 0, "must be > 0")
