# SPDX-License-Identifier: Apache-2.0
"""Sizes and conventions of the shared transformer, checked."""

import dataclasses
from typing import Any

from attention import names


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """What a transformer is made of, checked.

    Attributes:
        width, heads, head_dim, mlp_width, layers: sizes, >= 1; layers of each stack.
        kv_heads: divides heads; 0 is as many as heads.
        vocab_size: of `EncoderDecoder`, 0 where no embedding is wanted.
        attention: a kind of `attention.names.KINDS`, of self and cross attention.
        implementation: of `attention.kinds.attention`; "auto" is None there.
        views: of two-view kinds. "doubled": twice the q and k projections. "split": half the heads,
            values twice as wide, as many parameters as one view (Ye et al. 2024).
        position: "none", "rope" (head_dim even) or "t5" (kinds that take a bias).
        rope_theta, ntk_factor: see `layers.rope_frequencies`.
        num_buckets, max_distance: see `layers.relative_buckets`.
        norm: "rms" or "layer" (with bias); norm_eps > 0; pre_norm: see above.
        mlp: "gelu" (tanh form), "relu", "swiglu" or "deep_relu" (two hidden layers).
        bias: biases of all projections.
        scale_logits: multiply scores by 1 / sqrt(head_dim); off in T5, whose q starts smaller.
        beta, kappa, power, learn_beta: threshold of tra and tda.
        lambda_init: "half" or "depth" (0.8 - 0.6 exp(-0.3 layer)), of diff and tda.
        output_norm_eps: of the norm per head after rela, tra, diff and tda.
        dropout: rate in [0, 1).
        dropout_sites: "all", see `attention.transformer`, or "residual": only on embeddings and on
            the output of every sublayer.
        shrink_residual: the last map of every sublayer starts smaller by 1 / sqrt(2 layers), as in
            GPT-2 (Radford et al. 2019).
        tied: logits from the embedding, with hidden states scaled by width^-0.5; else a projection.
        embed_std: of initial embeddings.
        dtype: of activations, "float32" or "bfloat16"; parameters are float32.
        scan: layers run as one scanned block ("on") or unrolled ("off"), see `stack.unroll`.
        remat: recompute blocks in the backward pass.
    """

    width: int
    heads: int
    head_dim: int
    mlp_width: int
    layers: int
    kv_heads: int = 0
    vocab_size: int = 0
    attention: str = "softmax"
    implementation: str = "auto"
    views: str = "doubled"
    position: str = "rope"
    rope_theta: int | float = 10000.0
    ntk_factor: int | float = 1.0
    num_buckets: int = 32
    max_distance: int = 128
    norm: str = "rms"
    norm_eps: int | float = 1e-6
    pre_norm: bool = True
    mlp: str = "gelu"
    bias: bool = False
    scale_logits: bool = True
    beta: int | float = 1.0
    kappa: int | float = 1.0
    power: int | float = 2
    learn_beta: bool = False
    lambda_init: str = "half"
    output_norm_eps: int | float = 1e-6
    dropout: int | float = 0.0
    dropout_sites: str = "all"
    shrink_residual: bool = False
    tied: bool = True
    embed_std: int | float = 1.0
    dtype: str = "float32"
    scan: bool | str = "auto"
    remat: bool = False

    def __post_init__(self) -> None:
        def require(holds: bool, name: str, rule: str) -> None:
            if not holds:
                raise ValueError(f"{name}={getattr(self, name)!r}: {rule}")

        for name in ("width", "heads", "head_dim", "mlp_width", "layers"):
            require(getattr(self, name) >= 1, name, "must be at least 1")
        for name in ("kv_heads", "vocab_size"):
            require(getattr(self, name) >= 0, name, "must be at least 0")
        allowed = {
            "attention": names.KINDS,
            "views": ("doubled", "split"),
            "position": ("none", "rope", "t5"),
            "norm": ("rms", "layer"),
            "mlp": ("gelu", "relu", "swiglu", "deep_relu"),
            "lambda_init": ("half", "depth"),
            "dropout_sites": ("all", "residual"),
            "dtype": ("float32", "bfloat16"),
            "scan": names.SCANS,
        }
        for name, values in allowed.items():
            require(getattr(self, name) in values, name, f"must be one of {values}")
        allowed_here = ("auto", *names.implementations(self.attention))
        rule = f"{self.attention} allows {', '.join(allowed_here)}"
        require(self.implementation in allowed_here, "implementation", rule)
        positive = ("norm_eps", "rope_theta", "beta", "kappa", "output_norm_eps", "embed_std")
        for name in positive:
            require(getattr(self, name) > 0, name, "must be > 0")
        for name in ("ntk_factor", "power"):
            require(getattr(self, name) >= 1, name, "must be at least 1")
        require(0 <= self.dropout < 1, "dropout", "must be in [0, 1)")
        require(self.heads % (self.kv_heads or self.heads) == 0, "kv_heads", "must divide heads")
        if self.views == "split":
            require(names.views(self.attention) == 2, "views", "split needs diff or tda")
            require(self.heads % 2 == 0, "heads", "must be even where views are split")
            require((self.kv_heads or 2) % 2 == 0, "kv_heads", "must be even where views are split")
        if self.position == "t5":
            require(names.takes_bias(self.attention), "position", f"{self.attention}: no bias")
        require(
            self.position != "rope" or self.head_dim % 2 == 0, "head_dim", "must be even for rope"
        )
        thresholded = self.attention in ("tra", "tda")
        require(thresholded or not self.learn_beta, "learn_beta", "only for tra and tda")

    @property
    def hidden_dropout(self) -> int | float:
        """Rate on the hidden units of MLPs and after the last norm."""
        return self.dropout if self.dropout_sites == "all" else 0.0

    @property
    def output_shrink(self) -> float:
        """Factor of the initial weights of the last map of every sublayer."""
        return (2 * self.layers) ** -0.5 if self.shrink_residual else 1.0

    @property
    def split(self) -> int:
        """Heads that share one attention map pair: 2 where views are split, else 1."""
        return 2 if self.views == "split" else 1


def t5(**changes: Any) -> TransformerConfig:
    """T5's conventions (Raffel et al. 2020) with t5-small's sizes, fields replaced by `changes`.

    Pre-norm RMSNorm, ReLU, no biases, no 1 / sqrt(d), relative bias, and logits of a tied embedding
    from hidden states scaled by width^-0.5.
    """
    sizes = dict(width=512, heads=8, head_dim=64, mlp_width=2048, layers=6, vocab_size=32128)
    conventions = dict(position="t5", mlp="relu", scale_logits=False)
    return TransformerConfig(**{**sizes, **conventions, **changes})
