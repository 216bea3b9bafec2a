# SPDX-License-Identifier: Apache-2.0
"""What a language model is made of, checked; and the sizes people name.

Sizes of Qwen3, Qwen2.5 and Llama 3.2 are those of their published configs [secondary]; `tiny`, `s`
and `m` are for training from scratch [our choice]; `gpt2-162m` is the model of the TDA paper:
GPT-2's shape with rotary positions and untied embeddings, 2 * 50304 * 768 + 12 * 12 * 768^2 weights
in matrices [secondary].
"""

import dataclasses
from types import MappingProxyType
from typing import Any

from attention import names

NORMS = ("rms", "layer")
MLPS = ("swiglu", "gelu", "relu")
DTYPES = ("float32", "bfloat16")
LAMBDA_INITS = ("half", "depth")


@dataclasses.dataclass(frozen=True)
class LMConfig:
    """A pre-norm decoder: x + attention(norm(x)), x + mlp(norm(x)), final norm, logits.

    Attributes:
        vocab_size: rows of the embedding.
        layers, width, heads, kv_heads, mlp_width: sizes, >= 1; heads a multiple of kv_heads.
        head_dim: width of a head, even; need not be width / heads.
        norm: "rms" or "layer" (with bias); norm_eps > 0.
        mlp: "swiglu" (gate, up, down), "gelu" (tanh form) or "relu" (up, down).
        qk_norm: RMSNorm of each head of q and k before the rotation (Qwen3).
        qkv_bias: bias of q, k and v (Qwen2).
        tied: logits from the embedding; else from `head`.
        rope_theta, ntk_factor, llama3: see `attention.layers.rope_frequencies`; llama3_factor 1 is
            no scaling.
        attention: a kind of `attention.kinds`; two-view kinds double the q and k projections.
        implementation: of `attention.kinds.attention`; "auto" is None there.
        beta, kappa, power: threshold of tra and tda, > 0, > 0, >= 1.
        learn_beta: beta is a parameter per head (softplus), starting at `beta`.
        lambda_init: "half": lambda starts at 0.5 in every layer; "depth": at 0.8 - 0.6 exp(-0.3 l)
            in layer l (Ye et al. 2024). lambda is sigmoid of a parameter per head, for diff, tda.
        output_norm_eps: of the norm per head after rela, tra, diff and tda, > 0.
        dtype: of activations; parameters keep theirs.
        scan: layers run as one scanned block ("on") or unrolled ("off"), see `attention.stack`.
        remat: blocks are recomputed in the backward pass.
        init_std: of normal initial weights; o and down get it divided by sqrt(2 layers).
    """

    vocab_size: int
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    norm: str = "rms"
    norm_eps: int | float = 1e-6
    mlp: str = "swiglu"
    qk_norm: bool = False
    qkv_bias: bool = False
    tied: bool = True
    rope_theta: int | float = 10000.0
    ntk_factor: int | float = 1.0
    llama3_factor: int | float = 1.0
    llama3_low: int | float = 1.0
    llama3_high: int | float = 4.0
    llama3_original: int = 8192
    attention: str = "softmax"
    implementation: str = "auto"
    beta: int | float = 1.0
    kappa: int | float = 1.0
    power: int | float = 2
    learn_beta: bool = False
    lambda_init: str = "half"
    output_norm_eps: int | float = 1e-6
    dtype: str = "float32"
    scan: bool | str = "auto"
    remat: bool = False
    init_std: int | float = 0.02

    def __post_init__(self) -> None:
        for name in ("vocab_size", "layers", "width", "heads", "kv_heads", "mlp_width"):
            _require(getattr(self, name) >= 1, self, name, "must be at least 1")
        _require(self.heads % self.kv_heads == 0, self, "heads", "must be a multiple of kv_heads")
        _require(
            self.head_dim >= 2 and self.head_dim % 2 == 0, self, "head_dim", "must be even, >= 2"
        )
        allowed = {
            "norm": NORMS,
            "mlp": MLPS,
            "attention": names.KINDS,
            "dtype": DTYPES,
            "lambda_init": LAMBDA_INITS,
            "scan": names.SCANS,
        }
        for name, values in allowed.items():
            _require(getattr(self, name) in values, self, name, f"must be one of {values}")
        allowed_here = ("auto", *names.implementations(self.attention))
        rule = f"{self.attention} allows {', '.join(allowed_here)}"
        _require(self.implementation in allowed_here, self, "implementation", rule)
        for name in ("norm_eps", "rope_theta", "beta", "kappa", "output_norm_eps", "init_std"):
            _require(getattr(self, name) > 0, self, name, "must be > 0")
        for name in ("ntk_factor", "llama3_factor", "power", "llama3_original"):
            _require(getattr(self, name) >= 1, self, name, "must be at least 1")
        _require(
            self.llama3_high > self.llama3_low > 0, self, "llama3_high", "must be > llama3_low > 0"
        )
        thresholded = self.attention in ("tra", "tda")
        _require(thresholded or not self.learn_beta, self, "learn_beta", "only for tra and tda")

    @property
    def views(self) -> int:
        """Query and key views of the kind of attention, 1 or 2."""
        return names.views(self.attention)


def _require(holds: bool, cfg: LMConfig, name: str, rule: str) -> None:
    if not holds:
        raise ValueError(f"{name}={getattr(cfg, name)!r}: {rule}")


def _qwen3(layers: int, width: int, mlp_width: int, heads: int, tied: bool) -> dict[str, Any]:
    return dict(
        vocab_size=151936,
        layers=layers,
        width=width,
        mlp_width=mlp_width,
        heads=heads,
        kv_heads=8,
        head_dim=128,
        qk_norm=True,
        tied=tied,
        rope_theta=1e6,
    )


def _qwen25(
    layers: int, width: int, mlp_width: int, heads: int, kv_heads: int, vocab_size: int, tied: bool
) -> dict[str, Any]:
    return dict(
        vocab_size=vocab_size,
        layers=layers,
        width=width,
        mlp_width=mlp_width,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=width // heads,
        qkv_bias=True,
        tied=tied,
        rope_theta=1e6,
    )


def _scratch(layers: int, width: int, heads: int, kv_heads: int, head_dim: int, mlp_width: int):
    return dict(
        vocab_size=256,
        layers=layers,
        width=width,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        mlp_width=mlp_width,
        qk_norm=True,
    )


PRESETS = MappingProxyType(
    {
        "tiny": _scratch(4, 128, 4, 2, 32, 384),
        "s": _scratch(8, 512, 8, 4, 64, 1536),
        "m": _scratch(12, 768, 12, 4, 64, 2304),
        "qwen3-0.6b": _qwen3(28, 1024, 3072, 16, True),
        "qwen3-1.7b": _qwen3(28, 2048, 6144, 16, True),
        "qwen3-4b": _qwen3(36, 2560, 9728, 32, True),
        "qwen3-4b-2507": _qwen3(36, 2560, 9728, 32, True) | {"rope_theta": 5e6},
        "qwen3-8b": _qwen3(36, 4096, 12288, 32, False),
        "qwen3-14b": _qwen3(40, 5120, 17408, 40, False),
        "qwen2.5-0.5b": _qwen25(24, 896, 4864, 14, 2, 151936, True),
        "qwen2.5-1.5b": _qwen25(28, 1536, 8960, 12, 2, 151936, True),
        "qwen2.5-3b": _qwen25(36, 2048, 11008, 16, 2, 151936, True),
        "qwen2.5-7b": _qwen25(28, 3584, 18944, 28, 4, 152064, False),
        "llama-3.2-1b": dict(
            vocab_size=128256,
            layers=16,
            width=2048,
            mlp_width=8192,
            heads=32,
            kv_heads=8,
            head_dim=64,
            norm_eps=1e-5,
            rope_theta=5e5,
            llama3_factor=32,
        ),
        "gpt2-162m": dict(
            vocab_size=50304,
            layers=12,
            width=768,
            mlp_width=3072,
            heads=12,
            kv_heads=12,
            head_dim=64,
            norm="layer",
            norm_eps=1e-5,
            mlp="gelu",
            tied=False,
        ),
    }
)


def preset(name: str, **changes: Any) -> LMConfig:
    """The config of a named size, with fields replaced: preset("s", vocab_size=65).

    Raises:
        ValueError: no such preset, or a field out of range.
        TypeError: no such field.
    """
    if name not in PRESETS:
        raise ValueError(f"preset {name!r}: must be one of {', '.join(PRESETS)}")
    return LMConfig(**{**PRESETS[name], **changes})
