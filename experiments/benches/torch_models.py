# SPDX-License-Identifier: Apache-2.0
"""Models of this repository written plainly in PyTorch, for `bench.py peers`. Needs torch.

Weights come from ours: leaves are NumPy arrays in the layouts of `attention.lm.model` and of the
shared transformer, matrices [in, out], stacked over layers.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]
from torch.nn import functional as F  # pyright: ignore[reportMissingImports]

from attention.lm.config import LMConfig
from rec.models.config import SASRecConfig, TigerConfig


def _linear(*kernels: Any, bias: Any = None) -> nn.Linear:
    """A map with kernels [in, out] side by side, as one matrix."""
    kernel = np.concatenate([np.asarray(k) for k in kernels], axis=1)
    out = nn.Linear(*kernel.shape, bias=bias is not None)
    with torch.no_grad():
        out.weight.copy_(torch.tensor(kernel.T))
        if bias is not None:
            out.bias.copy_(torch.tensor(np.asarray(bias)))
    return out


def _norm(leaves: Mapping[str, Any], eps: float) -> nn.LayerNorm:
    out = nn.LayerNorm(len(leaves["scale"]), eps)
    with torch.no_grad():
        out.weight.copy_(torch.tensor(np.asarray(leaves["scale"])))
        out.bias.copy_(torch.tensor(np.asarray(leaves["bias"])))
    return out


def _embedding(table: Any) -> nn.Embedding:
    return nn.Embedding.from_pretrained(torch.tensor(np.asarray(table)), freeze=False)


def _layer(stacked: Mapping[str, Any], index: int) -> dict[str, Any]:
    """Leaves of one layer."""
    return {
        name: _layer(leaf, index) if isinstance(leaf, Mapping) else np.asarray(leaf)[index]
        for name, leaf in stacked.items()
    }


class Block(nn.Module):
    """x + attention(norm(x)), x + mlp(norm(x)), with the tanh form of GELU."""

    def __init__(self, qkv: nn.Linear, o: nn.Linear, up: nn.Linear, down: nn.Linear, heads: int):
        super().__init__()
        self.qkv = qkv
        self.o = o
        self.up = up
        self.down = down
        self.heads = heads
        self.attn_norm: nn.LayerNorm
        self.mlp_norm: nn.LayerNorm

    def forward(self, x: torch.Tensor, rotation: Any, mask: torch.Tensor | None) -> torch.Tensor:
        B, T, D = x.shape
        joined = self.qkv(self.attn_norm(x)).view(B, T, 3, self.heads, D // self.heads)
        q, k, v = joined.permute(2, 0, 3, 1, 4)
        if rotation is not None:
            q = rotate(q, *rotation)
            k = rotate(k, *rotation)
        o = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        x = x + self.o(o.transpose(1, 2).reshape(B, T, D))
        return x + self.down(F.gelu(self.up(self.mlp_norm(x)), approximate="tanh"))


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary positions of [B, H, T, D], pairs (j, j + D / 2)."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class LM(nn.Module):
    """The decoder of `attention.lm` with LayerNorm, one key head per head and no biases."""

    def __init__(self, cfg: LMConfig, params: Mapping[str, Any], length: int) -> None:
        super().__init__()
        self.embed = _embedding(params["embed"])
        blocks = []
        for index in range(cfg.layers):
            leaves = _layer(params["blocks"], index)
            attn = leaves["attn"]
            mlp = leaves["mlp"]
            qkv = _linear(attn["q"], attn["k"], attn["v"])
            maps = (qkv, _linear(attn["o"]), _linear(mlp["up"]), _linear(mlp["down"]))
            block = Block(*maps, heads=cfg.heads)
            block.attn_norm = _norm(leaves["attn_norm"], float(cfg.norm_eps))
            block.mlp_norm = _norm(leaves["mlp_norm"], float(cfg.norm_eps))
            blocks.append(block)
        self.blocks = nn.ModuleList(blocks)
        self.final_norm = _norm(params["final_norm"], float(cfg.norm_eps))
        self.head = _linear(np.asarray(params["head"]).T)
        frequency = cfg.rope_theta ** (-torch.arange(0, cfg.head_dim, 2) / cfg.head_dim)
        angle = torch.arange(length)[:, None] * frequency
        self.register_buffer("cos", angle.cos())
        self.register_buffer("sin", angle.sin())

    def loss(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Mean nats per token of ids [B, T + 1]."""
        ids = batch["ids"]
        x = self.embed(ids[:, :-1])
        for block in self.blocks:
            x = block(x, (self.cos, self.sin), None)
        logits = self.head(self.final_norm(x))
        return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


class SASRec(nn.Module):
    """The ranker of `rec.models.sasrec` with pre-norm and the full softmax."""

    def __init__(self, cfg: SASRecConfig, params: Mapping[str, Any]) -> None:
        super().__init__()
        self.items = _embedding(params["items"])
        self.positions = _embedding(params["positions"])
        encoder = params["encoder"]
        eps = float(cfg.transformer().norm_eps)
        blocks = []
        for index in range(cfg.layers):
            leaves = _layer(encoder["blocks"], index)
            attn = leaves["attn"]
            names = ("q", "k", "v")
            bias = np.concatenate([attn[name]["bias"] for name in names])
            qkv = _linear(*(attn[name]["kernel"] for name in names), bias=bias)
            rest = [attn["o"], leaves["mlp"]["up"], leaves["mlp"]["down"]]
            maps = [_linear(leaf["kernel"], bias=leaf["bias"]) for leaf in rest]
            block = Block(qkv, *maps, heads=cfg.heads)
            block.attn_norm = _norm(leaves["attn_norm"], eps)
            block.mlp_norm = _norm(leaves["mlp_norm"], eps)
            blocks.append(block)
        self.blocks = nn.ModuleList(blocks)
        self.final_norm = _norm(encoder["final_norm"], eps)
        self.scale = cfg.width**0.5

    def loss(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Mean nats over the positions that count."""
        history = batch["history"]
        real = batch["mask"]
        T = history.shape[1]
        age = (real.sum(dim=1)[:, None] - 1 - torch.arange(T)[None]).clamp(min=0)
        x = self.items(history) * self.scale + self.positions(age)
        causal = torch.ones(T, T, dtype=torch.bool).tril()
        # A row of padding sees itself, or its softmax is no number; its loss does not count.
        mask = (causal & real[:, None, :]) | torch.eye(T, dtype=torch.bool)
        for block in self.blocks:
            x = block(x, None, mask[:, None])
        logits = self.final_norm(x) @ self.items.weight.T
        nats = F.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten(), reduction="none")
        weights = batch["weights"].flatten()
        return (nats * weights).sum() / weights.sum()


class T5(nn.Module):
    """The generator of `rec.models.tiger` as transformers' T5: row `codes` of its embedding is our
    start vector, one more row is padding, and neither counts in the loss."""

    def __init__(self, cfg: TigerConfig, params: Mapping[str, Any]) -> None:
        super().__init__()
        from transformers import (  # pyright: ignore[reportMissingImports]
            T5Config,
            T5ForConditionalGeneration,
        )

        self.codes = len(params["codes"])
        inner = cfg.transformer()
        config = T5Config(
            vocab_size=self.codes + 2,
            d_model=cfg.width,
            d_kv=cfg.head_dim,
            d_ff=cfg.mlp_width,
            num_layers=cfg.layers,
            num_decoder_layers=cfg.layers,
            num_heads=cfg.heads,
            relative_attention_num_buckets=inner.num_buckets,
            relative_attention_max_distance=inner.max_distance,
            dropout_rate=0.0,
            layer_norm_epsilon=float(inner.norm_eps),
            feed_forward_proj="relu",
            decoder_start_token_id=self.codes,
            pad_token_id=self.codes + 1,
            eos_token_id=self.codes + 1,
        )
        self.t5 = T5ForConditionalGeneration(config)
        state = {"shared.weight": self._table(params)}
        for stack in ("encoder", "decoder"):
            state |= self._stack(stack, params[stack], cfg.layers)
        result = self.t5.load_state_dict(
            {name: torch.tensor(np.array(leaf)) for name, leaf in state.items()}, strict=False
        )
        tied = {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"}
        if result.unexpected_keys or set(result.missing_keys) - tied:
            raise ValueError(f"weights of T5 that do not fit: {result}")
        self.t5.tie_weights()

    def _table(self, params: Mapping[str, Any]) -> np.ndarray:
        rows = [params["codes"], params["start"][None], np.zeros_like(params["start"])[None]]
        return np.concatenate([np.asarray(row) for row in rows])

    @staticmethod
    def _stack(stack: str, params: Mapping[str, Any], layers: int) -> dict[str, np.ndarray]:
        kinds = [("attn", "SelfAttention"), ("cross", "EncDecAttention")]
        kinds = kinds if stack == "decoder" else kinds[:1]
        out = {f"{stack}.final_layer_norm.weight": params["final_norm"]["scale"]}
        table = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        out[table] = params["relative_bias"]["table"]
        for index in range(layers):
            leaves = _layer(params["blocks"], index)
            block = f"{stack}.block.{index}.layer"
            for place, (ours, theirs) in enumerate(kinds):
                out[f"{block}.{place}.layer_norm.weight"] = leaves[f"{ours}_norm"]["scale"]
                for name in ("q", "k", "v", "o"):
                    out[f"{block}.{place}.{theirs}.{name}.weight"] = leaves[ours][name]["kernel"].T
            mlp = f"{block}.{len(kinds)}"
            out[f"{mlp}.layer_norm.weight"] = leaves["mlp_norm"]["scale"]
            out[f"{mlp}.DenseReluDense.wi.weight"] = leaves["mlp"]["up"]["kernel"].T
            out[f"{mlp}.DenseReluDense.wo.weight"] = leaves["mlp"]["down"]["kernel"].T
        return out

    def loss(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Mean over rows of the sum over digits, in nats, over the codes of all levels."""
        target = batch["target_tokens"]
        start = torch.full_like(target[:, :1], self.codes)
        logits = self.t5(
            input_ids=batch["source_tokens"],
            attention_mask=batch["source_mask"],
            decoder_input_ids=torch.cat([start, target[:, :-1]], dim=1),
        ).logits[..., : self.codes]
        nats = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="sum")
        return nats / len(target)


class Trainer:
    """AdamW on a model: clipped, matrices and tables decayed, the rate of a schedule."""

    def __init__(self, model: Any, optim: Any, rate: Any) -> None:
        self.model = model
        self.rate = rate
        self.clip = float(optim.clip)
        named = list(model.named_parameters())
        matrices = [p for _, p in named if p.ndim > 1]
        vectors = [p for _, p in named if p.ndim == 1]
        groups = [
            {"params": matrices, "weight_decay": float(optim.weight_decay)},
            {"params": vectors, "weight_decay": 0.0},
        ]
        betas = (float(optim.b1), float(optim.b2))
        # The fastest AdamW that PyTorch has on a CPU.
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=betas, fused=True)
        self.count = 0

    def step(self, batch: Mapping[str, torch.Tensor]) -> float:
        """One update; its loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = float(self.rate(self.count))
        self.count += 1
        value = self.model.loss(batch)
        self.optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        return value.item()


def tensors(batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """A batch of ours; integers as PyTorch indexes with them."""
    out = {name: torch.tensor(np.asarray(leaf)) for name, leaf in batch.items()}
    return {k: v.long() if v.dtype == torch.int32 else v for k, v in out.items()}
