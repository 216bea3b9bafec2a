# SPDX-License-Identifier: Apache-2.0
"""SASRec: a causal transformer over the items of a history scores the whole catalogue.

Kang and McAuley 2018; the full softmax in place of the paper's one negative is what makes it strong
(spec section 3.1). Items are scored with the input table. Learned positions count from the newest
item backwards, so that they mean the same at training and at evaluation whatever the padding.

Training reads a user a row (`loss`) or rows of `rec.data.packing` without padding (`packed_loss`),
where users stand one after the other and nothing is read across them.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from attention import layers, transformer
from rec import training
from rec.models import histories
from rec.models.config import SASRecConfig


class SASRec(nn.Module):
    """Ranker of num_items items."""

    cfg: SASRecConfig
    num_items: int

    def setup(self) -> None:
        cfg = self.cfg
        normal = nn.initializers.normal(0.02)
        self.items = self.param("items", normal, (self.num_items, cfg.width))
        self.positions = self.param("positions", normal, (cfg.max_items, cfg.width))
        self.encoder = transformer.Encoder(cfg.transformer(), causal=True)

    def __call__(
        self, history: jax.Array, mask: jax.Array, *, deterministic: bool = True
    ) -> jax.Array:
        """States [B, T, D]; state t has read items 0 to t.

        Args:
            history: int32 [B, T], T <= max_items, oldest first, right-padded; mask: bool [B, T].
            deterministic: no dropout; else the rng stream "dropout" is needed.
        """
        return self.states(history, mask, histories.ages(mask), deterministic=deterministic)

    def states(
        self, items: jax.Array, segments: jax.Array, ages: jax.Array, *, deterministic: bool = True
    ) -> jax.Array:
        """[B, T, D]; state t has read the items of its own segment up to position t.

        Args:
            items: int32 [B, T]; segments: int32 or a bool mask [B, T], 0 = padding; ages: int32
                [B, T], items of the segment's user after this one, below max_items.
            deterministic: no dropout; else the rng stream "dropout" is needed.
        """
        x = self.items[items] * self.cfg.width**0.5 + self.positions[ages]
        return self.encoder(x, segments, deterministic=deterministic)

    def scores(self, states: jax.Array) -> jax.Array:
        """float32 [..., N] of states [..., D]: the whole catalogue."""
        return layers.class_logits(states, self.items)

    def score_some(self, states: jax.Array, items: jax.Array) -> jax.Array:
        """float32 [..., K] of states [..., D] and items int32 [..., K]."""
        rows = self.items[items].astype(states.dtype)
        return jnp.einsum("...d,...kd->...k", states, rows, preferred_element_type=jnp.float32)


def loss(model: SASRec, params: Any, batch: dict[str, jax.Array], key: jax.Array) -> jax.Array:
    """Weighted mean loss over the positions of right-padded histories, in nats, see `mean_nats`.

    Args:
        batch: history [B, T], mask [B, T], targets [B, T] the item after each position, weights
            float32 [B, T] which positions count.
        key: of dropout and negatives.
    """
    drop, draw = jax.random.split(key)
    states = training.forward(model, params, (batch["history"], batch["mask"]), drop)
    return mean_nats(model, params, states, batch["targets"], batch["weights"], draw)


def packed_loss(
    model: SASRec, params: Any, batch: dict[str, jax.Array], key: jax.Array
) -> jax.Array:
    """Weighted mean loss over the positions of packed rows, in nats, see `mean_nats`.

    Args:
        batch: as in `rec.data.packing.Pass`, [B, T] each: items, targets, segments, ages, weights.
        key: of dropout and negatives.
    """
    drop, draw = jax.random.split(key)
    inputs = (batch["items"], batch["segments"], batch["ages"])
    states = training.forward(model, params, inputs, drop, SASRec.states)
    return mean_nats(model, params, states, batch["targets"], batch["weights"], draw)


def mean_nats(
    model: SASRec,
    params: Any,
    states: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    key: jax.Array,
) -> jax.Array:
    """Weighted mean of the loss of targets after states, in nats, float32 [].

    "full": cross entropy over the catalogue, a share cfg.smoothing of each target spread evenly
    over it. "sampled": cross entropy of the target among `negatives` uniform items, with those that
    hit the target masked (no log-Q correction is needed, for they are uniform). "bce": logistic
    loss of the target and of each negative, averaged over negatives.

    Args:
        states: [B, T, D]; targets: int32 [B, T]; weights: float32 [B, T].
        key: of negatives.
    """
    cfg = model.cfg
    variables: Any = {"params": params}
    if cfg.loss == "full":
        scores: Any = model.apply(variables, states, method=SASRec.scores)
        nats = layers.smoothed_cross_entropy(scores, targets, cfg.smoothing)
    else:
        shape = (*targets.shape, cfg.negatives)
        negatives = jax.random.randint(key, shape, 0, model.num_items)
        both = jnp.concatenate([targets[..., None], negatives], axis=-1)
        sampled_scores: Any = model.apply(variables, states, both, method=SASRec.score_some)
        hit = jnp.pad(negatives == targets[..., None], ((0, 0), (0, 0), (1, 0)))
        nats = _among(sampled_scores, hit, cfg.loss)
    return (nats * weights).sum() / jnp.maximum(weights.sum(), 1.0)


def _among(scores: jax.Array, hit: jax.Array, kind: str) -> jax.Array:
    """Loss of scores [..., 1 + K], the target first; negatives that hit the target do not count."""
    if kind == "sampled":
        return -jax.nn.log_softmax(jnp.where(hit, -jnp.inf, scores), axis=-1)[..., 0]
    counted = jnp.where(hit[..., 1:], 0.0, jax.nn.log_sigmoid(-scores[..., 1:]))
    counted_negatives = jnp.maximum((~hit[..., 1:]).sum(axis=-1), 1)
    return -jax.nn.log_sigmoid(scores[..., 0]) - counted.sum(axis=-1) / counted_negatives


def scores_of(model: SASRec, params: Any, history: jax.Array, mask: jax.Array) -> jax.Array:
    """Scores of the catalogue as the next item, float32 [B, N]."""
    variables: Any = {"params": params}
    states: Any = model.apply(variables, history, mask)
    out: Any = model.apply(variables, histories.last_state(states, mask), method=SASRec.scores)
    return out
