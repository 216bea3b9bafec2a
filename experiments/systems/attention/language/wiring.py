# SPDX-License-Identifier: Apache-2.0
"""What systems that train `attention.lm` from scratch share: state, step and sharding rules."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from attention.lm import heads, model, training
from attention.lm.config import LMConfig
from attention.lm.optim_config import OptimConfig
from experiments.runner import settings

# Heads and hidden units are split over the model axis; config.fsdp splits what is large over data.
RULES = (
    (r"(.*/)?blocks/attn/[qkv]", P(None, None, "model")),
    (r"(.*/)?blocks/mlp/(gate|up)", P(None, None, "model")),
    (r"(.*/)?blocks/(attn/o|mlp/down)", P(None, "model")),
    (r"(.*/)?blocks/attn/[qkv]_bias", P(None, "model")),
    (r"batch/.*", P("data")),
)
State = dict[str, Any]


def check(config: ConfigDict) -> None:
    """Raises ValueError: more seeds than one, or microbatches that do not divide a batch."""
    settings.one_seed(config)
    if config.data.rows % config.optim.microbatches:
        raise ValueError(
            f"config.optim.microbatches={config.optim.microbatches} must divide "
            f"config.data.rows={config.data.rows}"
        )


def config_at(cfg: LMConfig, trained: int, length: int, *, ntk: bool) -> LMConfig:
    """The model's config for `length` tokens: with `ntk`, rotary frequencies are stretched beyond
    the `trained` length."""
    return heads.stretched(cfg, length / trained) if ntk and length > trained else cfg


def make_init(cfg: LMConfig, optim: OptimConfig) -> Callable[[jax.Array], State]:
    """key -> state."""
    tx = training.optimizer(optim)

    def init(key: jax.Array) -> State:
        params = model.init(jax.random.fold_in(key, 0), cfg)
        return {"step": jnp.int32(0), "key": key, "params": params, "opt_state": tx.init(params)}

    return init


def make_step(cfg: LMConfig, optim: OptimConfig) -> Callable[..., tuple[State, dict[str, Any]]]:
    """(state, batch) -> (state, metrics)."""
    tx = training.optimizer(optim)

    def step(state: Mapping[str, Any], batch: Mapping[str, Any]) -> tuple[State, dict[str, Any]]:
        params, opt_state, metrics = training.update(
            state["params"], state["opt_state"], cfg, tx, batch, optim.microbatches
        )
        new = {"step": state["step"] + 1, "key": state["key"]}
        return {**new, "params": params, "opt_state": opt_state}, metrics

    return step
