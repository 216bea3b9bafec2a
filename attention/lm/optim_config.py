# SPDX-License-Identifier: Apache-2.0
"""Numbers of the optimizer, checked before JAX is imported."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """AdamW with linear warm-up and cosine decay.

    Attributes:
        lr: peak learning rate, > 0; min_lr: at the end of the decay, >= 0, at most lr.
        warmup: updates from 0 to lr; decay: updates until min_lr, more than warmup.
        b1, b2: moments, in [0, 1); weight_decay: of matrices, >= 0; clip: of the gradient's global
            norm, > 0.
        microbatches: parts of a batch whose gradients are added up, to save memory.
    """

    lr: int | float
    min_lr: int | float
    warmup: int
    decay: int
    b1: int | float
    b2: int | float
    weight_decay: int | float
    clip: int | float
    microbatches: int

    def __post_init__(self) -> None:
        rules = {
            "lr": self.lr > 0,
            "min_lr": 0 <= self.min_lr <= self.lr,
            "warmup": self.warmup >= 0,
            "decay": self.decay > self.warmup,
            "b1": 0 <= self.b1 < 1,
            "b2": 0 <= self.b2 < 1,
            "weight_decay": self.weight_decay >= 0,
            "clip": self.clip > 0,
            "microbatches": self.microbatches >= 1,
        }
        for name, holds in rules.items():
            if not holds:
                text = " ".join((OptimConfig.__doc__ or "").split())
                raise ValueError(f"{name}={getattr(self, name)!r} is out of range. {text}")
