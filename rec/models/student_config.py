# SPDX-License-Identifier: Apache-2.0
"""Sizes and losses of students that are distilled from a generator, checked before JAX is imported.

Guo et al. 2026, "MLPs are Efficient Distilled Generative Recommenders".
"""

import dataclasses

from rec.models.config import require

CONTROLS = ("none", "blind", "shuffled_labels", "scratch")
FORMS = ("grouped", "masked")


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
        for name in ("heads", "inner", "mlp_width", "head_width"):
            require(self, name, getattr(self, name) >= 1, "must be at least 1")
        require(self, "alpha", 0 <= self.alpha <= 1, "must be in [0, 1]")
        require(self, "tau", self.tau > 0, "must be > 0")
        is_multiple = self.inner % self.heads == 0
        require(self, "inner", is_multiple, f"must be a multiple of heads={self.heads}")
        require(self, "dropout", 0 <= self.dropout < 1, "must be in [0, 1)")
        require(self, "control", self.control in CONTROLS, f"must be one of {CONTROLS}")
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
        for name in ("layers", "width", "positions", "updates"):
            require(self, name, getattr(self, name) >= 1, "must be at least 1")
        require(self, "dropout", 0 <= self.dropout < 1, "must be in [0, 1)")
        require(self, "form", self.form in FORMS, f"must be one of {FORMS}")
