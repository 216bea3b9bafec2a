# SPDX-License-Identifier: Apache-2.0
"""What training of all recommenders shares: optimizer and one update, as pure functions."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rec.models.config import OptimConfig

# Norms, biases and learned vectors are not decayed.
UNDECAYED = {"scale", "bias", "separator", "start", "table", "out_norm", "lam", "beta"}


def schedule(cfg: OptimConfig) -> Callable[[Any], jax.Array]:
    """Learning rate by update."""

    def lr(count: Any) -> jax.Array:
        t = jnp.asarray(count, jnp.float32)
        warm = jnp.minimum((t + 1) / max(cfg.warmup, 1), 1.0)
        if cfg.schedule == "cosine":
            done = jnp.clip((t - cfg.warmup) / (cfg.decay - cfg.warmup), 0.0, 1.0)
            warm = warm * 0.5 * (1 + jnp.cos(jnp.pi * done))
        if cfg.schedule == "rsqrt":
            warm = warm * jnp.sqrt(cfg.decay / jnp.maximum(t, cfg.decay))
        return cfg.lr * warm

    return lr


def optimizer(cfg: OptimConfig) -> optax.GradientTransformation:
    """Clipped AdamW."""

    def decayed(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: path[-1].key not in UNDECAYED, params
        )

    return optax.chain(
        optax.clip_by_global_norm(cfg.clip),
        optax.adamw(schedule(cfg), cfg.b1, cfg.b2, weight_decay=cfg.weight_decay, mask=decayed),
    )


def forward(
    model: Any, params: Any, inputs: tuple[Any, ...], key: jax.Array | None, method: Any = None
) -> Any:
    """What a method of a module (None: `__call__`) returns for inputs, with dropout where there is
    a key of it."""
    return model.apply(
        {"params": params},
        *inputs,
        deterministic=key is None,
        rngs=None if key is None else {"dropout": key},
        method=method,
    )


def update(
    loss: Callable[[Any], jax.Array], params: Any, opt_state: Any, tx: optax.GradientTransformation
) -> tuple[Any, Any, dict[str, jax.Array]]:
    """One update: (params, opt_state, {"loss", "grad_norm"})."""
    value, grads = jax.value_and_grad(loss)(params)
    stepped, opt_state, norm = _apply(params, opt_state, grads, tx)
    return stepped, opt_state, {"loss": value, "grad_norm": norm}


def update_with_parts(
    loss: Callable[[Any], tuple[jax.Array, dict[str, jax.Array]]],
    params: Any,
    opt_state: Any,
    tx: optax.GradientTransformation,
) -> tuple[Any, Any, dict[str, jax.Array]]:
    """`update` with a loss that also returns its parts by name, which join the metrics."""
    (value, parts), grads = jax.value_and_grad(loss, has_aux=True)(params)
    stepped, opt_state, norm = _apply(params, opt_state, grads, tx)
    return stepped, opt_state, {"loss": value, "grad_norm": norm, **parts}


def _apply(
    params: Any, opt_state: Any, grads: Any, tx: optax.GradientTransformation
) -> tuple[Any, Any, jax.Array]:
    """(params, opt_state, norm of the gradients) after one step of the optimizer."""
    updates, opt_state = tx.update(grads, opt_state, params)
    stepped: Any = optax.apply_updates(params, updates)
    return stepped, opt_state, optax.tree.norm(grads)


Step = Callable[[Mapping[str, Any], Mapping[str, Any]], tuple[dict[str, Any], dict[str, Any]]]
"""(state, batch) -> (state, metrics)."""


def next_state(state: Mapping[str, Any], params: Any, opt_state: Any) -> dict[str, Any]:
    """The state after an update."""
    return {**state, "step": state["step"] + 1, "params": params, "opt_state": opt_state}


def make_step(
    tx: optax.GradientTransformation, loss: Callable[..., Any], update: Callable[..., Any] = update
) -> Step:
    """Makes one update of a batch, whose key follows from the state's and the step.

    Args:
        loss: (params, batch, key) -> what `update` differentiates.
        update: `update`, or `update_with_parts`.
    """

    def step(
        state: Mapping[str, Any], batch: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        key = jax.random.fold_in(state["key"], state["step"])
        params, opt_state, metrics = update(
            lambda params: loss(params, batch, key), state["params"], state["opt_state"], tx
        )
        return next_state(state, params, opt_state), metrics

    return step
