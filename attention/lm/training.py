# SPDX-License-Identifier: Apache-2.0
"""Training of a language model: loss, optimizer and one update, as pure functions."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from attention import layers
from attention.lm import model
from attention.lm.config import LMConfig
from attention.lm.optim_config import OptimConfig


def optimizer(cfg: OptimConfig) -> optax.GradientTransformation:
    """Clipped AdamW; norms, biases and values per head are not decayed."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0 if cfg.warmup else cfg.lr, cfg.lr, cfg.warmup, cfg.decay, cfg.min_lr
    )
    return optax.chain(
        optax.clip_by_global_norm(cfg.clip),
        optax.adamw(schedule, cfg.b1, cfg.b2, weight_decay=cfg.weight_decay, mask=is_matrix),
    )


def is_matrix(params: Any) -> Any:
    """True for embeddings and projections, by the names of `attention.lm.model`."""
    names = {"embed", "head", "q", "k", "v", "o", "up", "gate", "down"}
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in names, params)


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Negative log-likelihood in nats, [B, T] float32, of targets int [B, T] under [B, T, V]."""
    return layers.cross_entropy(logits.astype(jnp.float32), targets)


def loss(
    params: model.Params, cfg: LMConfig, ids: jax.Array, weights: jax.Array | None = None
) -> jax.Array:
    """Mean nats per predicted token.

    Args:
        ids: int [B, T + 1]; position t predicts token t + 1.
        weights: float [B, T] of the predictions; None is all ones.
    """
    nats = cross_entropy(model.forward(params, cfg, ids[:, :-1]).logits, ids[:, 1:])
    if weights is None:
        return nats.mean()
    return (nats * weights).sum() / jnp.maximum(weights.sum(), 1.0)


def update(
    params: model.Params,
    opt_state: optax.OptState,
    cfg: LMConfig,
    tx: optax.GradientTransformation,
    batch: Mapping[str, jax.Array],
    microbatches: int = 1,
) -> tuple[model.Params, optax.OptState, dict[str, jax.Array]]:
    """One optimizer update on {"ids": int [B, T + 1]} and optionally {"weights": float [B, T]}.

    With microbatches the mean is taken over their losses: exact where all have equal weight.

    Returns: params, opt_state, {"loss", "grad_norm"}.

    Raises:
        ValueError: B is not a multiple of `microbatches`.
    """
    rows = batch["ids"].shape[0]
    if rows % microbatches:
        raise ValueError(f"microbatches={microbatches} do not divide a batch of {rows}")

    def batch_loss(params: model.Params, batch: Mapping[str, jax.Array]) -> jax.Array:
        return loss(params, cfg, batch["ids"], batch.get("weights"))

    if microbatches == 1:
        value, grads = jax.value_and_grad(batch_loss)(params, batch)
    else:
        parts = {k: v.reshape(microbatches, -1, *v.shape[1:]) for k, v in batch.items()}

        def add_part(total: Any, part: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, jax.value_and_grad(batch_loss)(params, part)), None

        zero = (jnp.float32(0), jax.tree.map(jnp.zeros_like, params))
        total, _ = jax.lax.scan(add_part, zero, dict(parts))
        value, grads = jax.tree.map(lambda leaf: leaf / microbatches, total)
    updates, opt_state = tx.update(grads, opt_state, params)
    new_params: Any = optax.apply_updates(params, updates)
    return new_params, opt_state, {"loss": value, "grad_norm": optax.tree.norm(grads)}


def windows(tokens: np.ndarray, seed: int, step: int, rows: tuple[int, int], length: int):
    """Random stretches of a text, a pure function of (seed, step, row): int32 [rows, length + 1].

    Args:
        tokens: int [N], N > length.
        rows: (first, last + 1) of the global batch wanted; any part equals that part of the whole.
    """
    rng = np.random.default_rng([seed, step])
    starts = rng.integers(0, len(tokens) - length, size=rows[1])[rows[0] :]
    return tokens[starts[:, None] + np.arange(length + 1)].astype(np.int32)


def ngram_losses(train: np.ndarray, valid: np.ndarray, vocab_size: int) -> dict[str, float]:
    """What counting alone gives, nats per token of `valid`: unigrams and bigrams of `train`.

    Add-one smoothing; bigrams backed off to unigrams by interpolation with weight 10 / (10 + n)
    [our choice]. The trivial rows every learned loss is printed beside.
    """
    unigram = np.bincount(train, minlength=vocab_size) + 1.0
    unigram /= unigram.sum()
    pairs, counts = np.unique(
        train[:-1].astype(np.int64) * vocab_size + train[1:], return_counts=True
    )
    seen = np.bincount(train[:-1], minlength=vocab_size)
    wanted = valid[:-1].astype(np.int64) * vocab_size + valid[1:]
    at = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
    count = np.where(pairs[at] == wanted, counts[at], 0)
    n = seen[valid[:-1]]
    bigram = (count + 10 * unigram[valid[1:]]) / (n + 10)
    return {
        "loss/unigram": float(-np.log(unigram[valid[1:]]).mean()),
        "loss/bigram": float(-np.log(bigram).mean()),
    }
