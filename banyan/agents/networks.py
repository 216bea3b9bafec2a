# SPDX-License-Identifier: Apache-2.0
"""Actor-critic network: cell embeddings, MLP or convolutional encoder, no memory or a GRU.

    x_t = Dense(concat(encode(grid_t), embed(goal_t), embed(held_t), onehot(a_{t-1}), r_{t-1}))
    m_t = GRU(x_t, (1 - start_t) m_{t-1})        logits_t, value_t = heads([x_t, m_t])

The encoder runs on all time steps at once; only the recurrence is scanned. `start_t` marks the
first observation of an episode: memory is cleared before that observation is read.

Sizes of `:paper`, layer types and inputs: spec section 3.7, [our choice]; the paper gives none.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from banyan.agents.config import ModelConfig
from banyan.types import NUM_ACTIONS, NUM_COLORS, NUM_SHAPES, Obs

NO_ACTION = NUM_ACTIONS  # previous action at the first step of an episode
SHAPE_CODES = NUM_SHAPES + 2  # empty, wall, shapes
COLOR_CODES = NUM_COLORS + 1  # none, colors


def _dense(width: int, scale: float = 2**0.5, name: str | None = None) -> nn.Dense:
    return nn.Dense(width, kernel_init=nn.initializers.orthogonal(scale), name=name)


class ItemEmbed(nn.Module):
    """(shape, color) codes [..., 2] -> vectors: one table per attribute, or one per pair."""

    config: ModelConfig

    @nn.compact
    def __call__(self, codes: jax.Array) -> jax.Array:
        width = self.config.embed
        shape = codes[..., 0].astype(jnp.int32)
        color = codes[..., 1].astype(jnp.int32)
        init = nn.initializers.normal(0.5)
        if self.config.item_embed == "joint":
            table = nn.Embed(SHAPE_CODES * COLOR_CODES, width, embedding_init=init, name="item")
            return table(shape * COLOR_CODES + color)
        shapes = nn.Embed(SHAPE_CODES, width, embedding_init=init, name="shape")
        colors = nn.Embed(COLOR_CODES, width, embedding_init=init, name="color")
        return jnp.concatenate([shapes(shape), colors(color)], axis=-1)


class GRU(nn.Module):
    """Gated recurrent unit over time with resets; input products are made for all steps at once.

    z, r, n gates: h' = (1 - z) n + z h,  n = tanh(W_n x + r (U_n h + b_n)).
    """

    width: int

    @nn.compact
    def __call__(
        self, inputs: jax.Array, start: jax.Array, carry: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        from_input = nn.Dense(3 * self.width, name="input")(inputs)  # [T, B, 3H]
        kernel = self.param("recurrent", nn.initializers.orthogonal(), (self.width, 3 * self.width))
        bias = self.param("bias", nn.initializers.zeros, (self.width,))

        def cell(h: jax.Array, step: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            x, first = step
            h = jnp.where(first[:, None], 0.0, h)
            xz, xr, xn = jnp.split(x, 3, axis=-1)
            hz, hr, hn = jnp.split(h @ kernel, 3, axis=-1)
            z = jax.nn.sigmoid(xz + hz)
            r = jax.nn.sigmoid(xr + hr)
            n = jnp.tanh(xn + r * (hn + bias[None, :]))
            h = (1.0 - z) * n + z * h
            return h, h

        carry, outputs = jax.lax.scan(cell, carry, (from_input, start))
        return outputs, carry


class ActorCritic(nn.Module):
    """Policy and value over a whole sequence [T, B]; T = 1 when acting.

    Attributes:
        rows, cols: board cells read by the encoder (larger boards than any layout are padding).
    """

    config: ModelConfig
    rows: int
    cols: int

    @nn.compact
    def __call__(
        self,
        obs: Obs,
        prev_action: Int[Array, "T B"],
        prev_reward: Float[Array, "T B"],
        start: Bool[Array, "T B"],
        memory: Float[Array, "B H"],
    ) -> tuple[Float[Array, "T B A"], Float[Array, "T B"], Float[Array, "B H"]]:
        """Logits [T, B, 8], values [T, B], memory after the last step [B, H]."""
        config = self.config
        embed = ItemEmbed(config, name="embed")
        grid = obs.grid[..., : self.rows, : self.cols, :]
        agent = grid[..., 2:].astype(jnp.float32)
        cells = jnp.concatenate([embed(grid[..., :2]), agent], axis=-1)
        if config.encoder == "cnn":
            lead = cells.shape[:2]
            cells = cells.reshape((-1, *cells.shape[2:]))
            for layer in range(2):
                cells = nn.relu(nn.Conv(config.channels, (3, 3), name=f"conv{layer}")(cells))
            cells = cells.reshape((*lead, *cells.shape[1:]))
        board = cells.reshape((*cells.shape[:2], -1))
        inputs = [
            board,
            embed(obs.goal),
            embed(obs.held),
            jax.nn.one_hot(prev_action, NUM_ACTIONS + 1),
            prev_reward[..., None],
        ]
        x = jnp.concatenate(inputs, axis=-1)
        for layer in range(config.layers):
            x = nn.relu(_dense(config.hidden, name=f"encoder{layer}")(x))
        if config.memory == "gru":
            remembered, memory = GRU(config.memory_size, name="gru")(x, start, memory)
            x = jnp.concatenate([x, remembered], axis=-1)
        actor = nn.relu(_dense(config.head, name="actor_hidden")(x))
        critic = nn.relu(_dense(config.head, name="critic_hidden")(x))
        logits = _dense(NUM_ACTIONS, 0.01, name="actor")(actor)
        value = _dense(1, 1.0, name="critic")(critic)
        return logits, value[..., 0], memory


def forward(net: ActorCritic, params: Any, *inputs: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`net.apply`: logits [T, B, A], values [T, B], memory [B, H]."""
    out: Any = net.apply(params, *inputs)
    return out


def memory_size(config: ModelConfig) -> int:
    """Width of the carried memory; one unused column without one (a checkpoint holds no empty
    arrays)."""
    return config.memory_size if config.memory == "gru" else 1


def init_memory(config: ModelConfig, batch: int) -> Float[Array, "B H"]:
    """Memory before the first observation."""
    return jnp.zeros((batch, memory_size(config)))


def num_params(params: Any) -> int:
    """Number of parameters of one network."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
