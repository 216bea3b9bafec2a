# SPDX-License-Identifier: Apache-2.0
"""Static settings of the agent (config groups `model` and `agent`)."""

from dataclasses import dataclass


def _at_least(low: int | float, **values: int | float) -> None:
    for key, value in values.items():
        if value < low:
            raise ValueError(f"{key}={value!r} must be at least {low}")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}={value!r} must be one of {', '.join(allowed)}")


@dataclass(frozen=True)
class ModelConfig:
    """Network sizes; see `networks.ActorCritic`."""

    encoder: str  # "mlp" | "cnn": two 3x3 convolutions before the dense layers
    item_embed: str  # "factored": shape and color tables; "joint": one vector per item
    embed: int  # width of each table
    channels: int  # of the convolutions
    hidden: int  # width of the dense encoder
    layers: int  # dense encoder layers
    memory: str  # "none" | "gru"
    memory_size: int
    head: int  # hidden width of actor and critic

    def __post_init__(self) -> None:
        _one_of("encoder", self.encoder, ("mlp", "cnn"))
        _one_of("item_embed", self.item_embed, ("factored", "joint"))
        _one_of("memory", self.memory, ("none", "gru"))
        _at_least(1, embed=self.embed, channels=self.channels, hidden=self.hidden)
        _at_least(1, layers=self.layers, memory_size=self.memory_size, head=self.head)


@dataclass(frozen=True)
class PPOConfig:
    """Constants of PPO; defaults of `:paper` are our choice (the paper gives none)."""

    num_envs: int
    num_steps: int  # rollout length
    epochs: int
    minibatches: int  # each of num_envs / minibatches whole sequences
    lr: float
    gamma: float
    gae_lambda: float
    clip: float
    entropy_coef: float
    value_coef: float
    max_grad_norm: float
    adam_eps: float
    reset_optimizer: bool  # at a shift: fresh Adam moments

    def __post_init__(self) -> None:
        _at_least(1, num_envs=self.num_envs, num_steps=self.num_steps)
        _at_least(1, epochs=self.epochs, minibatches=self.minibatches)
        _at_least(0, entropy_coef=self.entropy_coef, value_coef=self.value_coef)
        if self.num_envs % self.minibatches:
            raise ValueError(
                f"num_envs={self.num_envs} must be a multiple of minibatches={self.minibatches}"
            )
        for key in ("gamma", "gae_lambda"):
            if not 0.0 <= getattr(self, key) <= 1.0:
                raise ValueError(f"{key}={getattr(self, key)} must lie in 0..1")
        for key in ("lr", "clip", "max_grad_norm", "adam_eps"):
            if not getattr(self, key) > 0.0:
                raise ValueError(f"{key}={getattr(self, key)} must be positive")
