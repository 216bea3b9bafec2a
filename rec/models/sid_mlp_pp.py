# SPDX-License-Identifier: Apache-2.0
"""An encoder of MLPs in place of self attention: the reader of SID-MLP++.

Guo et al. 2026. Token i at digit position a(i) of a history becomes, layer by
layer,

    x_i + F_a(i)([x_i; g]),   g = the mean of the valid x

and a norm ends the stack. User tokens and separators take the MLP of the last position. The half of
F's first product that reads g is the same for all tokens of a history: it is computed once.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from attention import layers
from attention.dropout import drop_in
from rec.models.student_config import MixerConfig

NORM_EPS = 1e-5


class Affine(nn.Module):
    """x W + b over the last axis, with parameters that others may read; b only where `bias`."""

    features: int
    width: int
    bias: bool = True

    def setup(self) -> None:
        fan_in = nn.initializers.lecun_normal()
        self.kernel = self.param("kernel", fan_in, (self.features, self.width))
        if self.bias:
            self.shift = self.param("bias", nn.initializers.zeros, (self.width,))

    def __call__(self, x: jax.Array) -> jax.Array:
        out = layers.matmul(x, self.kernel)
        return out + layers.along_last(self.shift, out) if self.bias else out


class LayerNorm(nn.Module):
    """LayerNorm of [..., D] with scale and bias."""

    width: int

    def setup(self) -> None:
        self.scale = self.param("scale", nn.initializers.ones, (self.width,))
        self.shift = self.param("bias", nn.initializers.zeros, (self.width,))

    def __call__(self, x: jax.Array) -> jax.Array:
        return layers.layer_norm(x, self.scale, self.shift, NORM_EPS)


class PositionMLP(nn.Module):
    """F of one digit position: Linear, norm, GELU, dropout, Linear."""

    cfg: MixerConfig
    width: int
    deterministic: bool

    def setup(self) -> None:
        self.up = Affine(2 * self.width, self.cfg.width)
        self.norm = LayerNorm(self.cfg.width)
        self.down = Affine(self.cfg.width, self.width)

    def __call__(self, x: jax.Array, mean: jax.Array) -> jax.Array:
        """[B, S, D] of tokens [B, S, D] and the mean [B, D] of their history."""
        own, shared = self.up.kernel[: self.width], self.up.kernel[self.width :]
        of_history = layers.matmul(mean, shared) + self.up.shift[None]
        return self._finish(layers.matmul(x, own) + of_history[:, None])

    def joined(self, x: jax.Array, mean: jax.Array) -> jax.Array:
        """The same from [x; mean] of every token, as the paper writes it."""
        means = jnp.broadcast_to(mean[:, None], x.shape)
        return self._finish(self.up(jnp.concatenate([x, means], axis=-1)))

    def _finish(self, hidden: jax.Array) -> jax.Array:
        hidden = layers.gelu(self.norm(hidden))
        return self.down(drop_in(self, hidden, self.cfg.dropout, self.deterministic))


class MixerLayer(nn.Module):
    """One layer: a `PositionMLP` for each digit, and what each token adds to itself."""

    cfg: MixerConfig
    levels: int
    deterministic: bool

    @nn.compact
    def __call__(self, x: jax.Array, ids: jax.Array, group: np.ndarray) -> jax.Array:
        """[B, S, D] of tokens [B, S, D], ids int32 [B, S] (0 = padding) and group int [S], the MLP
        of each token."""
        D = x.shape[2]
        mlps = [
            PositionMLP(self.cfg, D, self.deterministic, name=f"mlp_{level}")
            for level in range(self.levels)
        ]
        mean = valid_mean(x, ids)
        if self.cfg.form == "masked":
            of_all = [mlp.joined(x, mean) for mlp in mlps]
            is_own = [jnp.asarray(group == level)[None, :, None] for level in range(self.levels)]
            return x + sum(
                jnp.where(own, out, 0.0) for own, out in zip(is_own, of_all, strict=True)
            )
        places = [np.flatnonzero(group == level) for level in range(self.levels)]
        by_group = [mlp(x[:, at], mean) for mlp, at in zip(mlps, places, strict=True)]
        back = np.argsort(np.concatenate(places))
        return x + jnp.concatenate(by_group, axis=1)[:, back]


class Mixer(nn.Module):
    """G: token vectors of a history to states that stand in for an encoder's.

    levels: digits of an item; has_user: a user token comes first; has_separators: a vector follows
    every item.
    """

    cfg: MixerConfig
    levels: int
    has_user: bool
    has_separators: bool

    @nn.compact
    def __call__(self, x: jax.Array, ids: jax.Array, *, deterministic: bool = True) -> jax.Array:
        """States float32 [B, S, D].

        Args:
            x: [B, S, D] token vectors, right-padded.
            ids: int32 [B, S], 0 = padding.
            deterministic: no dropout; else the rng stream "dropout" is needed.

        Raises:
            ValueError: more tokens than learned positions.
        """
        S, D = x.shape[1:]
        if S > self.cfg.positions:
            raise ValueError(f"positions={self.cfg.positions}: a history has {S} tokens")
        small = nn.initializers.normal(0.02)
        positions = self.param("positions", small, (self.cfg.positions, D))
        x = x.astype(jnp.float32) + positions[None, :S]
        group = self.groups(S)
        for layer in range(self.cfg.layers):
            step = MixerLayer(self.cfg, self.levels, deterministic, name=f"layer_{layer}")
            x = step(x, ids, group)
        return LayerNorm(D, name="final_norm")(x)

    def groups(self, tokens: int) -> np.ndarray:
        """The MLP of each token of a history, int [tokens]."""
        per_item = self.levels + self.has_separators
        at = np.arange(tokens - self.has_user) % per_item
        of_items = np.minimum(at, self.levels - 1)
        return np.concatenate([np.full(int(self.has_user), self.levels - 1), of_items]).astype(
            np.int32
        )


def valid_mean(x: jax.Array, ids: jax.Array) -> jax.Array:
    """Mean over tokens that are no padding, [B, D] of [B, S, D] and ids int32 [B, S]; 0 of none."""
    valid = (ids > 0).astype(x.dtype)
    total = jnp.einsum("bs,bsd->bd", valid, x)
    return total / jnp.maximum(valid.sum(axis=1), 1.0)[:, None]


def states_error(found: jax.Array, wanted: jax.Array, ids: jax.Array) -> jax.Array:
    """Mean squared distance over valid tokens and channels, of states [B, S, D]."""
    valid = (ids > 0).astype(jnp.float32)[:, :, None]
    squared = (found - wanted.astype(jnp.float32)) ** 2 * valid
    return squared.sum() / jnp.maximum(valid.sum() * found.shape[2], 1.0)
