# SPDX-License-Identifier: Apache-2.0
"""The kinds of attention by name and what is known of each: for configs, before JAX is imported."""

from types import MappingProxyType

KINDS = ("softmax", "ssmax", "rela", "tra", "diff", "sigmoid", "entmax15", "tda")
TWO_VIEWS = ("diff", "tda")
BIASED = ("softmax", "ssmax", "diff", "sigmoid", "entmax15")
NORMED = ("rela", "tra", "diff", "tda")
TDA_IMPLEMENTATIONS = ("reference", "xla", "pallas_tpu", "pallas_gpu", "interpret")
_SCALE = frozenset({"logit_scale"})
_THRESHOLD = frozenset({"beta", "kappa", "p"})
KNOBS = MappingProxyType(
    {
        "softmax": _SCALE,
        "ssmax": _SCALE | {"scale"},
        "rela": _SCALE,
        "tra": _THRESHOLD,
        "diff": _SCALE | {"lam"},
        "sigmoid": _SCALE,
        "entmax15": _SCALE,
        "tda": _THRESHOLD | {"lam"},
    }
)
"""What may be set of each kind, see attention.kinds.attention."""


def check_kind(kind: str) -> None:
    """Raises ValueError naming the kinds there are."""
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}: must be one of {', '.join(KINDS)}")


def views(kind: str) -> int:
    """Number of query and key views of a kind, 1 or 2."""
    check_kind(kind)
    return 2 if kind in TWO_VIEWS else 1


def needs_output_norm(kind: str) -> bool:
    """Whether rows of A have no fixed weight, so that an RMSNorm per head belongs after."""
    check_kind(kind)
    return kind in NORMED


def takes_bias(kind: str) -> bool:
    """Whether a bias may be added to the logits."""
    check_kind(kind)
    return kind in BIASED


def implementations(kind: str) -> tuple[str, ...]:
    """Names that `implementation` may have beside None."""
    check_kind(kind)
    if kind == "tda":
        return TDA_IMPLEMENTATIONS
    return ("reference", "xla", "cudnn") if kind == "softmax" else ("reference", "xla")


SCANS = ("auto", "on", "off", True, False)
"""How layers run, see `attention.stack.unroll`; True and False are "on" and "off"."""
