# SPDX-License-Identifier: Apache-2.0
"""The optimiser that a tokenizer's config names."""

import optax

from rec.sid.config import SIDConfig


def optimizer(cfg: SIDConfig, steps: int) -> optax.GradientTransformation:
    """Adam or Adagrad with linear warm-up and, where asked, linear decay to 0 over `steps`.

    Adagrad starts from empty sums, as published (Duchi et al. 2011).
    """
    if cfg.decay:
        rate: optax.Schedule | float = optax.warmup_constant_schedule(0.0, cfg.lr, cfg.warmup)
        after = optax.linear_schedule(cfg.lr, 0.0, max(steps - cfg.warmup, 1))
        rate = optax.join_schedules([rate, after], [cfg.warmup])
    elif cfg.warmup:
        rate = optax.warmup_constant_schedule(0.0, cfg.lr, cfg.warmup)
    else:
        rate = float(cfg.lr)
    return (
        optax.adam(rate)
        if cfg.optimiser == "adam"
        else optax.adagrad(rate, initial_accumulator_value=0.0)
    )
