# SPDX-License-Identifier: Apache-2.0
"""TIGER: a transformer reads the semantic IDs of a history and writes the ID of the next item.

Rajput et al. 2023 (NeurIPS) and the GRID recipe, Ju et al. 2025 (CIKM). Codes of all levels share
one table of sum(sizes) rows, row offset[l] + code. The decoder reads a learned start vector and
then the digits so far; position l gives the logits of digit l.

Rows of a history are right-padded. In the decoder-only layout they are turned so that padding comes
first and the target follows the newest item directly.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from attention import layers, transformer
from attention.transformer import DecoderCache
from rec import training
from rec.models.config import TigerConfig
from rec.models.digits import drop_digits, level_offsets, smoothed_nats, split_levels


class Tiger(nn.Module):
    """Generator over SIDs with sizes[l] codes on level l."""

    cfg: TigerConfig
    sizes: tuple[int, ...]

    def setup(self) -> None:
        cfg, inner = self.cfg, self.cfg.transformer()
        normal = nn.initializers.normal(1.0)
        self.codes = self.param("codes", normal, (sum(self.sizes), cfg.width))
        self.start_vector = self.param("start", normal, (cfg.width,))
        if cfg.separators:
            self.separator = self.param("separator", normal, (cfg.width,))
        if cfg.user_tokens:
            self.user_table = self.param("users", normal, (cfg.user_tokens, cfg.width))
        if not cfg.tied:
            small = nn.initializers.normal(cfg.width**-0.5)
            self.head = self.param("head", small, (sum(self.sizes), cfg.width))
        if cfg.layout == "encoder_decoder":
            self.encoder = transformer.Encoder(inner)
        self.decoder = transformer.Decoder(inner, cross=cfg.layout == "encoder_decoder")

    def __call__(
        self,
        history: jax.Array,
        mask: jax.Array,
        users: jax.Array,
        target: jax.Array,
        *,
        deterministic: bool = True,
    ) -> jax.Array:
        """Logits of all codes at the target's digits, teacher forced: float32 [R, L, sum(sizes)].

        Args:
            history: int32 [B, T, L] SIDs, oldest first, right-padded; mask: bool [B, T].
            users: int32 [B]; read where there are user tokens.
            target: int32 [R, L]; R a multiple of B, row i belongs to history i // (R / B).
            deterministic: no dropout; else the rng stream "dropout" is needed.
        """
        memory, ids = self.read(history, mask, users, deterministic=deterministic)
        return self.write(memory, ids, target, deterministic=deterministic)

    def read(
        self, history: jax.Array, mask: jax.Array, users: jax.Array, *, deterministic: bool = True
    ) -> tuple[jax.Array, jax.Array]:
        """What the target is written from: encoder states, or the embedded history where there is
        no encoder, [B, M, D], and segment ids int32 [B, M], 0 = padding."""
        x, ids = self.history(history, mask, users, deterministic=deterministic)
        if self.cfg.layout == "encoder_decoder":
            x = self.encoder(x, ids, deterministic=deterministic)
        return x, ids

    def write(
        self, memory: jax.Array, ids: jax.Array, target: jax.Array, *, deterministic: bool = True
    ) -> jax.Array:
        """Logits [R, L, sum(sizes)] of target int32 [R, L] after what `read` gave."""
        digits = self._targets(target[:, :-1])  # [R, L, D]
        if self.cfg.layout == "encoder_decoder":
            out, _ = self.decoder(digits, memory, ids, deterministic=deterministic)
            return self.logits(out)
        _, out = self._continue(memory, ids, digits, deterministic)
        return self.logits(out)

    def history_states(
        self, history: jax.Array, mask: jax.Array, users: jax.Array, *, deterministic: bool = True
    ) -> tuple[jax.Array, jax.Array]:
        """One state for every token of a history, as a student reads them: of the encoder, or of
        the decoder where there is none. [B, M, D] and segment ids int32 [B, M], 0 = padding."""
        x, ids = self.read(history, mask, users, deterministic=deterministic)
        if self.cfg.layout == "decoder_only":
            x, _ = self.decoder(x, segment_ids=ids, deterministic=deterministic)
        return x, ids

    def teach(
        self, history: jax.Array, mask: jax.Array, users: jax.Array, target: jax.Array
    ) -> tuple[jax.Array, jax.Array, list[jax.Array]]:
        """`history_states`, and the logits of every level at the target's digits, L times float32
        [B, sizes[l]], teacher forced on target int32 [B, L]; without dropout."""
        memory, ids = self.read(history, mask, users)
        if self.cfg.layout == "encoder_decoder":
            states, logits = memory, self.write(memory, ids, target)
        else:  # causal: the states of the history do not see the target
            states, out = self._continue(memory, ids, self._targets(target[:, :-1]), True)
            logits = self.logits(out)
        by_level = enumerate(split_levels(logits, self.sizes, axis=2))
        return states, ids, [of_codes[:, level] for level, of_codes in by_level]

    def code_vectors(self) -> list[jax.Array]:
        """Vectors of the codes of every level, as written digits are read: L times
        [sizes[l], D]."""
        return split_levels(self.codes.astype(self.cfg.dtype), self.sizes)

    def _continue(
        self, memory: jax.Array, ids: jax.Array, digits: jax.Array, deterministic: bool
    ) -> tuple[jax.Array, jax.Array]:
        """States of a decoder without encoder: of the history [R, M, D] and of digits [R, L, D]."""
        copies = len(digits) // len(memory)
        memory, ids = jnp.repeat(memory, copies, axis=0), jnp.repeat(ids, copies, axis=0)
        ids = jnp.concatenate([ids, jnp.ones(digits.shape[:2], ids.dtype)], axis=1)
        joined = jnp.concatenate([memory, digits], axis=1)
        out, _ = self.decoder(joined, segment_ids=ids, deterministic=deterministic)
        return out[:, : -len(self.sizes)], out[:, -len(self.sizes) :]

    def history(
        self, history: jax.Array, mask: jax.Array, users: jax.Array, *, deterministic: bool = True
    ) -> tuple[jax.Array, jax.Array]:
        """(embedded tokens [B, M, D], segment ids int32 [B, M], 0 = padding)."""
        B, T, L = history.shape
        x = self._embed(history, jnp.arange(L))  # [B, T, L, D]
        x = drop_digits(self, x, self.cfg.digit_dropout, deterministic)
        if self.cfg.separators:
            ends = jnp.broadcast_to(self.separator, (B, T, 1, self.cfg.width))
            x = jnp.concatenate([x, ends.astype(x.dtype)], axis=2)
        ids = jnp.repeat(mask, x.shape[2], axis=1)
        x = x.reshape(B, -1, self.cfg.width)
        if self.cfg.user_tokens:
            user_tokens = self.user_table[users % self.cfg.user_tokens][:, None]
            x = jnp.concatenate([user_tokens.astype(x.dtype), x], axis=1)
            ids = jnp.concatenate([jnp.ones((B, 1), bool), ids], axis=1)
        if self.cfg.layout == "decoder_only":
            M = x.shape[1]
            at = (jnp.arange(M)[None] + ids.sum(axis=1)[:, None]) % M  # padding first
            x = jnp.take_along_axis(x, at[:, :, None], axis=1)
            ids = jnp.take_along_axis(ids, at, axis=1)
        return x, ids.astype(jnp.int32)

    def start(
        self, history: jax.Array, mask: jax.Array, users: jax.Array
    ) -> tuple[jax.Array, DecoderCache]:
        """State of the first digit, [B, D], and a cache with room for all digits.

        The keys and values of the encoder are in it once per history, however many beams follow;
        a decoder-only cache holds the history per row, so beams copy it.
        """
        x, ids = self.read(history, mask, users)
        B, L, inner = len(x), len(self.sizes), self.cfg.transformer()
        first = jnp.broadcast_to(self.start_vector, (B, 1, self.cfg.width)).astype(x.dtype)
        if self.cfg.layout == "encoder_decoder":
            cache = transformer.init_cache(inner, B, L)
            out, cache = self.decoder(first, x, ids, cache=cache)
        else:
            cache = transformer.init_cache(inner, B, x.shape[1] + L)
            ids = jnp.concatenate([ids, jnp.ones((B, 1), ids.dtype)], axis=1)
            joined = jnp.concatenate([x, first], axis=1)
            out, cache = self.decoder(joined, segment_ids=ids, cache=cache)
        assert cache is not None
        return out[:, -1], cache

    def advance(
        self, cache: DecoderCache, digit: jax.Array, level: int
    ) -> tuple[jax.Array, DecoderCache]:
        """State of digit level + 1, [R, D], after digit int32 [R] of `level` was chosen."""
        x = self._embed(digit, jnp.asarray(level))[:, None]
        out, extended = self.decoder(x, cache=cache)
        assert extended is not None
        return out[:, 0], extended

    def logits(self, x: jax.Array, level: int | None = None) -> jax.Array:
        """float32 [..., sum(sizes)] of decoder states, or [..., sizes[level]] of one level's codes;
        tied ones are scaled as T5 does."""
        if self.cfg.tied:
            x, table = x * jnp.asarray(self.cfg.width**-0.5, x.dtype), self.codes
        else:
            table = self.head
        if level is not None:
            start, stop = level_offsets(self.sizes)[level : level + 2]
            table = table[int(start) : int(stop)]
        return layers.class_logits(x, table)

    def _embed(self, codes: jax.Array, level: jax.Array) -> jax.Array:
        """[..., D] of codes whose last axis is `level`, or which are all of one level."""
        offsets = jnp.asarray(level_offsets(self.sizes))[level]
        if offsets.ndim:
            offsets = offsets.reshape((1,) * (codes.ndim - 1) + offsets.shape)
        return self.codes[codes + offsets].astype(self.cfg.dtype)

    def _targets(self, digits: jax.Array) -> jax.Array:
        """Start vector and all digits but the last: [R, L, D] of int32 [R, L - 1]."""
        first = jnp.broadcast_to(self.start_vector, (len(digits), 1, self.cfg.width))
        rest = self._embed(digits, jnp.arange(digits.shape[1]))
        return jnp.concatenate([first.astype(rest.dtype), rest], axis=1)


def loss(
    model: Tiger, params: Any, batch: dict[str, jax.Array], key: jax.Array | None = None
) -> jax.Array:
    """Mean over rows of the sum over digits of negative log-probabilities, in nats, smoothed where
    cfg.smoothing is not 0.

    Args:
        batch: history [B, T, L], mask [B, T], users [B], target [B, L].
        key: of dropout; None is none.
    """
    inputs = (batch["history"], batch["mask"], batch["users"], batch["target"])
    logits = training.forward(model, params, inputs, key)
    cfg = model.cfg
    nats = smoothed_nats(logits, batch["target"], model.sizes, cfg.softmax, cfg.smoothing)
    return nats.sum(axis=-1).mean()
