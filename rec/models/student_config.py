# SPDX-License-Identifier: Apache-2.0
"""Sizes and losses of students that are distilled from a generator, checked before JAX is imported.

Guo et al. 2026, "MLPs are Efficient Distilled Generative Recommenders".
"""

import dataclasses
from typing import Any

CONTROLS = ("none", "blind", "shuffled_labels", "scratch")
FORMS = ("grouped", "masked")


def _at_least(config: Any, low: int | float, *names: str) -> None:
    for name in names:
        if not getattr(config, name) >= low:
            raise ValueError(f"{name}={getattr(config, name)!r}: must be at least {low}")


@dataclasses.dataclass(frozen=True)
class DistillConfig:
    """A read-out of a history's states and an MLP per digit, taught by a generator.

    Attributes:
        alpha: share of KL(teacher, student) in the loss of a digit, in [0, 1]; the rest is
            cross-entropy with the target. 0 asks the teacher for nothing but its states.
        tau: temperature of both distributions in the KL, > 0, which is scaled by tau^2.
        heads: of the attention that reads a history out, at least 1.
        inner: width of all of them together, a multiple of heads.
        mlp_width: hidden units of the read-out's MLP.
        head_width: hidden units of a digit's MLP.
        dropout: rate in [0, 1), on attention weights and hidden units.
        control: what is left out to see what it is worth: "none"; "blind" puts zeros where the
            history was read out; "shuffled_labels" teaches with the logits of another row of the
            batch; "scratch" trains a reader of the teacher's architecture anew, with cross-entropy
            alone.
        brief_teacher: variant of tiger that is trained where config.teacher is empty; "" demands a
            run.
    """

    alpha: int | float
    tau: int | float
    heads: int
    inner: int
    mlp_width: int
    head_width: int
    dropout: int | float
    control: str
    brief_teacher: str

    def __post_init__(self) -> None:
        _at_least(self, 1, "heads", "inner", "mlp_width", "head_width")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha={self.alpha!r}: must be in [0, 1]")
        if not self.tau > 0:
            raise ValueError(f"tau={self.tau!r}: must be > 0")
        if self.inner % self.heads:
            raise ValueError(f"inner={self.inner!r}: must be a multiple of heads={self.heads}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout!r}: must be in [0, 1)")
        if self.control not in CONTROLS:
            raise ValueError(f"control={self.control!r}: must be one of {CONTROLS}")
        if self.control == "scratch" and self.alpha:
            raise ValueError("control='scratch' learns from targets alone: give alpha=0")


@dataclasses.dataclass(frozen=True)
class MixerConfig:
    """An encoder of MLPs, one per digit position, which mix with the history's mean.

    Attributes:
        layers: at least 1.
        width: hidden units of each MLP.
        dropout: rate in [0, 1), on hidden units.
        positions: rows of the learned positions, at least the tokens of a history.
        updates: of stage 1, which fits the teacher's states; heads are distilled after it.
        form: "grouped" gives each token to the MLP of its position; "masked" gives every token to
            all of them and keeps one answer, with the same outcome.
    """

    layers: int
    width: int
    dropout: int | float
    positions: int
    updates: int
    form: str

    def __post_init__(self) -> None:
        _at_least(self, 1, "layers", "width", "positions", "updates")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout!r}: must be in [0, 1)")
        if self.form not in FORMS:
            raise ValueError(f"form={self.form!r}: must be one of {FORMS}")
