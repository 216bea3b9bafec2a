# SPDX-License-Identifier: Apache-2.0
"""A generator of semantic IDs that reads one token per item and learns from every position.

A causal transformer reads items, each by its L codes: the sum of their vectors, an MLP of them side
by side, and a vector of the item's age. State h has read a history; digit l of what comes next has
the logits

    (h + MLP_l([h; codes written so far])) . write_l + bias_l

so the digits need no decoder. Vectors of read codes and of written codes are tables of their own.
Plain sums of code vectors tied to dot products cannot tell combinations of codes apart: hence MLPs.

Training reads rows of `rec.data.packing`, in which users stand one after the other; nothing is read
across users. All recipe figures are [our choice], selected on validation.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from attention import layers, transformer
from rec import training
from rec.models import histories
from rec.models.config import TigerConfig
from rec.models.digits import drop_digits, level_offsets, side_by_side, split_levels
from rec.sid import trie as tries
from rec.sid.trie import Trie, TrieShape

small = nn.initializers.normal(0.02)


class Written(NamedTuple):
    """What the next digit is written from, a row per beam."""

    state: jax.Array  # [R, D], of the history
    codes: jax.Array  # [R, l D], vectors of the l digits so far

    def take(self, rows: jax.Array) -> "Written":
        """Row i is the old row rows[i]."""
        return Written(self.state[rows], self.codes[rows])


class Join(nn.Module):
    """MLP [..., features] to [..., D] with one hidden layer of GELU."""

    cfg: TigerConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        cfg = self.cfg
        options: Any = {"dtype": cfg.dtype, "dot_general": layers.dense_product}
        fan_in = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
        hidden = nn.Dense(cfg.fusion_width, kernel_init=fan_in, name="up", **options)(x)
        return nn.Dense(cfg.width, kernel_init=small, name="down", **options)(layers.gelu(hidden))


class Packed(nn.Module):
    """Generator over SIDs with sizes[l] codes on level l; cfg.layout is "packed"."""

    cfg: TigerConfig
    sizes: tuple[int, ...]

    def setup(self) -> None:
        cfg = self.cfg
        rows = sum(self.sizes)
        self.read_codes = self.param("read", small, (rows, cfg.width))
        self.write_codes = self.param("write", small, (rows, cfg.width))
        self.code_bias = self.param("bias", nn.initializers.zeros, (rows,))
        self.ages = self.param("ages", small, (cfg.max_items, cfg.width))
        self.merge = Join(cfg)
        self.heads = [Join(cfg) for _ in self.sizes]
        self.encoder = transformer.Encoder(cfg.transformer(), causal=True)

    def __call__(
        self,
        history: jax.Array,
        mask: jax.Array,
        users: jax.Array,
        target: jax.Array,
        *,
        deterministic: bool = True,
    ) -> jax.Array:
        """Logits of all codes at the target's digits, float32 [R, L, sum(sizes)]; arguments are
        those of `Tiger.__call__`, whose users are not read here."""
        memory, ids = self.read(history, mask, users, deterministic=deterministic)
        return self.write(memory, ids, target)

    def states(
        self, sids: jax.Array, segments: jax.Array, ages: jax.Array, *, deterministic: bool = True
    ) -> jax.Array:
        """[B, T, D]; state t has read the items of its own segment up to position t.

        Args:
            sids: int32 [B, T, L]; segments: int32 [B, T], 0 = padding; ages: int32 [B, T], below
                max_items.
            deterministic: no dropout; else the rng stream "dropout" is needed.
        """
        cfg = self.cfg
        scale = cfg.width**0.5
        offsets = jnp.asarray(level_offsets(self.sizes)[:-1])[None, None]
        vectors = self.read_codes[sids + offsets].astype(cfg.dtype) * scale  # [B, T, L, D]
        vectors = drop_digits(self, vectors, cfg.digit_dropout, deterministic)
        joined = self.merge(vectors.reshape(*sids.shape[:2], -1)) * scale
        x = vectors.sum(axis=2) + joined + self.ages[ages].astype(cfg.dtype)
        return self.encoder(x, segments, deterministic=deterministic)

    def digit_logits(self, states: jax.Array, target: jax.Array) -> list[jax.Array]:
        """Logits of every level, teacher forced: L times float32 [..., sizes[l]].

        Args:
            states: [..., D]; target: int32 [..., L].
        """
        written = Written(states, states[..., :0])
        out = [self.logits(self._hidden(written, 0), 0)]
        for level in range(1, len(self.sizes)):
            written = self._append(written, target[..., level - 1], level - 1)
            out.append(self.logits(self._hidden(written, level), level))
        return out

    def read(
        self, history: jax.Array, mask: jax.Array, users: jax.Array, *, deterministic: bool = True
    ) -> tuple[jax.Array, jax.Array]:
        """The state after each history, [B, 1, D], and its segment ids int32 [B, 1]."""
        states, ids = self.history_states(history, mask, users, deterministic=deterministic)
        newest = histories.last_state(states, ids)[:, None]
        return newest, jnp.ones(newest.shape[:2], jnp.int32)

    def history_states(
        self, history: jax.Array, mask: jax.Array, users: jax.Array, *, deterministic: bool = True
    ) -> tuple[jax.Array, jax.Array]:
        """One state for every item of a history: [B, T, D] and segment ids int32 [B, T], 0 =
        padding; arguments are those of `read`."""
        del users
        ids = mask.astype(jnp.int32)
        ages = histories.ages(mask)
        return self.states(history, ids, ages, deterministic=deterministic), ids

    def teach(
        self, history: jax.Array, mask: jax.Array, users: jax.Array, target: jax.Array
    ) -> tuple[jax.Array, jax.Array, list[jax.Array]]:
        """What a student learns from, see `Tiger.teach`."""
        states, ids = self.history_states(history, mask, users)
        return states, ids, self.digit_logits(histories.last_state(states, ids), target)

    def code_vectors(self) -> list[jax.Array]:
        """Vectors of the codes of every level, as written digits are read: L times
        [sizes[l], D]."""
        vectors = self.write_codes.astype(self.cfg.dtype) * self.cfg.width**0.5
        return split_levels(vectors, self.sizes)

    def write(self, memory: jax.Array, ids: jax.Array, target: jax.Array) -> jax.Array:
        """Logits [R, L, sum(sizes)] of target int32 [R, L] after what `read` gave; those of a level
        at another one's digit are 0."""
        del ids
        states = jnp.repeat(memory[:, 0], len(target) // len(memory), axis=0)
        return side_by_side(self.digit_logits(states, target), self.sizes)

    def start(
        self, history: jax.Array, mask: jax.Array, users: jax.Array
    ) -> tuple[jax.Array, Written]:
        """What the first digit is scored with, [B, D], and what the next one is written from."""
        memory, _ = self.read(history, mask, users)
        written = Written(memory[:, 0], memory[:, 0, :0])
        return self._hidden(written, 0), written

    def advance(self, written: Written, digit: jax.Array, level: int) -> tuple[jax.Array, Written]:
        """What digit level + 1 is scored with, [R, D], after digit int32 [R] of `level`."""
        written = self._append(written, digit, level)
        return self._hidden(written, level + 1), written

    def logits(self, hidden: jax.Array, level: int | None = None) -> jax.Array:
        """float32 [..., sizes[level]].

        Raises:
            ValueError: no level: every level has a head of its own.
        """
        if level is None:
            raise ValueError('normaliser="full": a packed generator scores level by level')
        start, stop = map(int, level_offsets(self.sizes)[level : level + 2])
        scores = layers.class_logits(hidden, self.write_codes[start:stop])
        return scores + layers.along_last(self.code_bias[start:stop], scores)

    def _hidden(self, written: Written, level: int) -> jax.Array:
        join = self.heads[level]
        return written.state + join(jnp.concatenate([written.state, written.codes], axis=-1))

    def _append(self, written: Written, digit: jax.Array, level: int) -> Written:
        row = digit + int(level_offsets(self.sizes)[level])
        vector = self.write_codes[row].astype(written.state.dtype) * self.cfg.width**0.5
        return written._replace(codes=jnp.concatenate([written.codes, vector], axis=-1))


def loss(
    model: Packed,
    params: Any,
    batch: dict[str, jax.Array],
    key: jax.Array | None = None,
    trie: Trie | None = None,
    shape: TrieShape | None = None,
) -> jax.Array:
    """Weighted mean over positions of the sum over digits of smoothed negative log-probabilities,
    in nats.

    Args:
        batch: sids int32 [B, T, L] of the items read, targets int32 [B, T, L], segments, ages
            int32 [B, T], weights float32 [B, T].
        key: of dropout; None is none.
        trie, shape: of the catalogue, needed by cfg.softmax == "children".
    """
    cfg = model.cfg
    inputs = (batch["sids"], batch["segments"], batch["ages"])
    states = training.forward(model, params, inputs, key, Packed.states)
    target = batch["targets"].reshape(-1, len(model.sizes))
    weights = batch["weights"].reshape(-1)
    flat = states.reshape(len(target), -1)
    by_level: Any = model.apply({"params": params}, flat, target, method=Packed.digit_logits)
    allowed: list[Any] = [None] * len(by_level)
    if cfg.softmax == "children":
        assert trie is not None and shape is not None
        allowed = tries.continuations(trie, shape, target)
    nats = jnp.zeros(len(target))
    for level, logits in enumerate(by_level):
        nats += layers.smoothed_cross_entropy(
            logits, target[:, level], cfg.smoothing, allowed[level]
        )
    return (nats * weights).sum() / weights.sum()
