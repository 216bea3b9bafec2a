# SPDX-License-Identifier: Apache-2.0
"""Four models of this repository written plainly in PyTorch, and their training; read by
`experiments.benches.peers`, which imports this module only where PyTorch is installed.

Modules are what a careful user of PyTorch writes: one projection for queries, keys and values, its
fused attention, its fused AdamW, eager execution (torch.compile needs a C++ compiler). Weights are
copied from ours, matrices transposed, for nn.Linear keeps them [out, in]. There is no dropout, so
modules stay in eval mode, where theirs costs nothing.

TIGER is T5ForConditionalGeneration of the package transformers. Its start token, which pads too,
has our start vector as embedding; the loss leaves out that token's logit.
"""

import math
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch  # type: ignore[import-not-found]
import torch.nn.functional as F  # type: ignore[import-not-found]
from torch import nn  # type: ignore[import-not-found]

from graph import bits
from graph.pencil import NORM_EPS, ROW_EPS

Arrays = Mapping[str, Any]  # a tree of NumPy arrays
THREADS = min(2, os.cpu_count() or 1)


class Peer(NamedTuple):
    """A model with our weights and its batch."""

    module: nn.Module
    loss: Callable[[], torch.Tensor]
    """Of the batch, a scalar in nats."""
    generate: Callable[[], np.ndarray] | None
    """Token ids of the prompts or histories of the batch; None where nothing is generated."""


class Trainer:
    """Trains a peer with clipped AdamW.

    Args:
        rates: [R] learning rate by update; the last one holds from there on.
        clip: of the gradient's global norm, inf for none.
        decays_vectors: weight decay is on norms, biases and relative positions too.
    """

    def __init__(
        self,
        peer: Peer,
        *,
        rates: np.ndarray,
        b1: float,
        b2: float,
        eps: float,
        weight_decay: float,
        clip: float,
        decays_vectors: bool,
    ) -> None:
        torch.set_num_threads(THREADS)
        named = list(peer.module.named_parameters())
        is_decayed = {name: decays_vectors or _is_matrix(name, weight) for name, weight in named}
        groups = [
            {"params": [w for n, w in named if is_decayed[n]], "weight_decay": weight_decay},
            {"params": [w for n, w in named if not is_decayed[n]], "weight_decay": 0.0},
        ]
        self._peer = peer
        self._weights = [weight for _, weight in named]
        self._rates = rates.tolist()
        self._clip = clip
        self._updates = 0
        self._optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=self._rates[0],
            betas=(b1, b2),
            eps=eps,
            fused=True,
        )
        self._last = torch.zeros(())

    @property
    def num_params(self) -> int:
        """Number of trained values."""
        return sum(weight.numel() for weight in self._weights)

    def step(self) -> None:
        """Makes one update."""
        rate = self._rates[min(self._updates, len(self._rates) - 1)]
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.zero_grad(set_to_none=True)
        loss = self._peer.loss()
        loss.backward()
        if math.isfinite(self._clip):
            nn.utils.clip_grad_norm_(self._weights, self._clip)
        self._optimizer.step()
        self._updates += 1
        self._last = loss.detach()

    def wait(self) -> None:
        """Returns when all updates are done."""
        self._last.item()

    def forward(self) -> float:
        """Returns the loss, without gradients."""
        with torch.inference_mode():
            return self._peer.loss().item()

    def generate(self) -> np.ndarray:
        """Returns what the peer generates."""
        assert self._peer.generate is not None
        with torch.inference_mode():
            return self._peer.generate()


def _is_matrix(name: str, weight: torch.Tensor) -> bool:
    return weight.ndim > 1 and "relative_attention_bias" not in name


def _put(weight: torch.Tensor, values: np.ndarray) -> None:
    """Copies an array of the same shape into a parameter."""
    if tuple(weight.shape) != values.shape:
        raise ValueError(f"weight of shape {tuple(weight.shape)}: got {values.shape}")
    with torch.no_grad():
        weight.copy_(torch.from_numpy(np.array(values, np.float32)))


def _put_linear(linear: nn.Linear, *parts: Arrays) -> None:
    """Copies {"kernel": [in, out], "bias": [out]} of one or more maps, side by side."""
    _put(linear.weight, np.concatenate([part["kernel"] for part in parts], axis=1).T)
    if linear.bias is not None:
        _put(linear.bias, np.concatenate([part["bias"] for part in parts]))


def _put_norm(norm: nn.LayerNorm, values: Arrays) -> None:
    _put(norm.weight, values["scale"])
    _put(norm.bias, values["bias"])


def _take_layer(tree: Any, index: int) -> Any:
    """Picks a layer's arrays from stacked ones."""
    if isinstance(tree, Mapping):
        return {name: _take_layer(leaf, index) for name, leaf in tree.items()}
    return tree[index]


class SelfAttention(nn.Module):
    """Multi-head attention with one projection for queries, keys and values."""

    def __init__(self, width: int, heads: int, *, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)

    def load(self, values: Arrays) -> None:
        _put_linear(self.qkv, values["q"], values["k"], values["v"])
        _put_linear(self.out, values["o"])

    def project(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Computes queries, keys and values, each [B, H, T, hd]."""
        B, T, D = x.shape
        qkv = self.qkv(x).view(B, T, 3, self.heads, D // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        return q, k, v

    def merge(self, o: torch.Tensor) -> torch.Tensor:
        """Maps outputs of heads [B, H, T, hd] to [B, T, D]."""
        return self.out(o.transpose(1, 2).flatten(2))


class LayerCache(NamedTuple):
    """Keys and values of one layer, [B, H, capacity, hd], and how many are there."""

    k: torch.Tensor
    v: torch.Tensor
    length: int


class CausalBlock(nn.Module):
    """Causal attention and an MLP with tanh-GELU, norms before both."""

    def __init__(
        self, width: int, heads: int, mlp_width: int, *, bias: bool, norm_eps: float
    ) -> None:
        super().__init__()
        self.attn_norm = nn.LayerNorm(width, eps=norm_eps)
        self.attn = SelfAttention(width, heads, bias=bias)
        self.mlp_norm = nn.LayerNorm(width, eps=norm_eps)
        self.up = nn.Linear(width, mlp_width, bias=bias)
        self.down = nn.Linear(mlp_width, width, bias=bias)

    def load(self, values: Arrays) -> None:
        _put_norm(self.attn_norm, values["attn_norm"])
        self.attn.load(values["attn"])
        _put_norm(self.mlp_norm, values["mlp_norm"])
        _put_linear(self.up, values["mlp"]["up"])
        _put_linear(self.down, values["mlp"]["down"])

    def forward(
        self,
        x: torch.Tensor,
        rotation: tuple[torch.Tensor, torch.Tensor] | None = None,
        cache: LayerCache | None = None,
    ) -> torch.Tensor:
        """Computes [B, T, D]. With a cache, keys and values are written to it; T is then 1 unless
        it was empty."""
        q, k, v = self.attn.project(self.attn_norm(x))
        if rotation is not None:
            q = _rotate(q, *rotation)
            k = _rotate(k, *rotation)
        is_causal = True
        if cache is not None:
            stop = cache.length + x.shape[1]
            cache.k[:, :, cache.length : stop] = k
            cache.v[:, :, cache.length : stop] = v
            k = cache.k[:, :, :stop]
            v = cache.v[:, :, :stop]
            is_causal = cache.length == 0
        x = x + self.attn.merge(F.scaled_dot_product_attention(q, k, v, is_causal=is_causal))
        hidden = F.gelu(self.up(self.mlp_norm(x)), approximate="tanh")
        return x + self.down(hidden)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotates pairs (j, j + hd/2) of [B, H, T, hd] by angles [T, hd/2]."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class LanguageModel(nn.Module):
    """Decoder with rotary positions, of up to `most` tokens."""

    def __init__(self, cfg: Any, most: int) -> None:
        super().__init__()
        self.shape = (cfg.heads, cfg.width // cfg.heads)
        self.embed = nn.Embedding(cfg.vocab_size, cfg.width)
        self.blocks = nn.ModuleList(
            CausalBlock(cfg.width, cfg.heads, cfg.mlp_width, bias=False, norm_eps=cfg.norm_eps)
            for _ in range(cfg.layers)
        )
        self.final_norm = nn.LayerNorm(cfg.width, eps=cfg.norm_eps)
        self.head = nn.Linear(cfg.width, cfg.vocab_size, bias=False)
        exponents = torch.arange(0, cfg.head_dim, 2, dtype=torch.float64) / cfg.head_dim
        angles = torch.arange(most)[:, None] * cfg.rope_theta**-exponents
        self.register_buffer("cos", angles.cos().float())
        self.register_buffer("sin", angles.sin().float())

    def load(self, params: Arrays) -> None:
        _put(self.embed.weight, params["embed"])
        _put(self.head.weight, params["head"])
        _put_norm(self.final_norm, params["final_norm"])
        for index, block in enumerate(self.blocks):
            values = _take_layer(params["blocks"], index)
            kernels = {
                group: {name: {"kernel": kernel} for name, kernel in values[group].items()}
                for group in ("attn", "mlp")
            }
            block.load(values | kernels)

    def forward(
        self, ids: torch.Tensor, caches: list[LayerCache] | None = None
    ) -> tuple[torch.Tensor, list[LayerCache]]:
        """Computes logits [B, T, V] of ids [B, T], and the caches after them."""
        T = ids.shape[1]
        start = caches[0].length if caches else 0
        rotation = (self.cos[start : start + T], self.sin[start : start + T])
        x = self.embed(ids)
        for index, block in enumerate(self.blocks):
            x = block(x, rotation, caches[index] if caches else None)
        extended = [cache._replace(length=start + T) for cache in caches or []]
        return self.head(self.final_norm(x)), extended

    def generate(self, prompts: torch.Tensor, count: int) -> torch.Tensor:
        """Appends the most likely token `count` times: [B, count] of prompts [B, T]."""
        heads, head_dim = self.shape
        slots = (len(prompts), heads, prompts.shape[1] + count, head_dim)
        caches = [LayerCache(torch.zeros(slots), torch.zeros(slots), 0) for _ in self.blocks]
        tokens = []
        ids = prompts
        for _ in range(count):
            logits, caches = self(ids, caches)
            ids = logits[:, -1].argmax(dim=-1, keepdim=True)
            tokens.append(ids)
        return torch.cat(tokens, dim=1)


def make_lm(cfg: Any, state: Arrays, batch: Arrays, new_tokens: int) -> Peer:
    """Makes the language model; cfg: an LMConfig of plain attention."""
    if cfg.norm != "layer" or cfg.mlp != "gelu" or cfg.tied or cfg.kv_heads != cfg.heads:
        raise ValueError("the peer has LayerNorm, GELU, an untied head and ungrouped heads only")
    ids = torch.from_numpy(batch["ids"]).long()
    prompts = ids[:, :-1]
    model = LanguageModel(cfg, prompts.shape[1] + new_tokens).eval()
    model.load(state["params"])

    def loss() -> torch.Tensor:
        logits, _ = model(prompts)
        return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())

    return Peer(model, loss, lambda: model.generate(prompts, new_tokens).numpy())


class Ranker(nn.Module):
    """SASRec: items are scored with the table they are read from."""

    def __init__(self, cfg: Any, num_items: int) -> None:
        super().__init__()
        inner = cfg.transformer()
        self.scale = cfg.width**0.5
        self.items = nn.Parameter(torch.zeros(num_items, cfg.width))
        self.positions = nn.Parameter(torch.zeros(cfg.max_items, cfg.width))
        self.blocks = nn.ModuleList(
            CausalBlock(
                cfg.width, cfg.heads, cfg.mlp_width, bias=True, norm_eps=float(inner.norm_eps)
            )
            for _ in range(cfg.layers)
        )
        self.final_norm = nn.LayerNorm(cfg.width, eps=float(inner.norm_eps))

    def load(self, params: Arrays) -> None:
        _put(self.items, params["items"])
        _put(self.positions, params["positions"])
        _put_norm(self.final_norm, params["encoder"]["final_norm"])
        for index, block in enumerate(self.blocks):
            block.load(_take_layer(params["encoder"]["blocks"], index))

    def forward(self, history: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Computes scores [B, T, N] after every item of right-padded histories [B, T]. Padding
        comes last, so causality alone hides it."""
        lengths = mask.sum(dim=1, keepdim=True)
        age = (lengths - 1 - torch.arange(history.shape[1])).clamp(min=0)
        x = F.embedding(history, self.items) * self.scale + F.embedding(age, self.positions)
        for block in self.blocks:
            x = block(x)
        return F.linear(self.final_norm(x), self.items)


def make_sasrec(cfg: Any, state: Arrays, batch: Arrays) -> Peer:
    """Makes the ranker; cfg: a SASRecConfig with norms before, GELU and the full softmax."""
    if not cfg.pre_norm or cfg.mlp != "gelu" or cfg.loss != "full":
        raise ValueError("the peer has norms before sublayers, GELU and the full softmax only")
    history = torch.from_numpy(batch["history"]).long()
    mask = torch.from_numpy(batch["mask"])
    counted = torch.from_numpy(np.where(batch["weights"] > 0, batch["targets"], -100)).long()
    model = Ranker(cfg, len(state["params"]["items"])).eval()
    model.load(state["params"])

    def loss() -> torch.Tensor:
        scores = model(history, mask)
        return F.cross_entropy(scores.flatten(0, 1), counted.flatten(), ignore_index=-100)

    return Peer(model, loss, None)


class PencilLayer(nn.Module):
    """BERT's layer, then the one-hop propagation."""

    def __init__(self, cfg: Any) -> None:
        super().__init__()
        self.attn = SelfAttention(cfg.width, cfg.heads, bias=True)
        self.attn_norm = nn.LayerNorm(cfg.width, eps=NORM_EPS)
        self.up = nn.Linear(cfg.width, cfg.mlp_width)
        self.down = nn.Linear(cfg.mlp_width, cfg.width)
        self.mlp_norm = nn.LayerNorm(cfg.width, eps=NORM_EPS)
        self.propagate = nn.Linear(cfg.width, cfg.width)

    def load(self, values: Arrays) -> None:
        self.attn.load(values["attn"])
        _put_norm(self.attn_norm, values["attn_norm"])
        _put_linear(self.up, values["up"])
        _put_linear(self.down, values["down"])
        _put_norm(self.mlp_norm, values["mlp_norm"])
        _put_linear(self.propagate, values["propagate"])

    def forward(
        self, x: torch.Tensor, visible: torch.Tensor, averaging: torch.Tensor
    ) -> torch.Tensor:
        """Args: visible: bool [B, 1, 1, S] of keys; averaging: [B, N, N], rows sum to 1 or 0."""
        q, k, v = self.attn.project(x)
        o = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
        x = self.attn_norm(x + self.attn.merge(o))
        z = self.mlp_norm(x + self.down(F.gelu(self.up(x))))
        mixed = averaging @ z[:, : averaging.shape[1]]
        mixed = torch.cat([mixed, mixed[:, :2]], dim=1)
        return z + F.gelu(self.propagate(mixed))


class LinkPredictor(nn.Module):
    """PENCIL with a token per node, its row of the adjacency, and a task token per endpoint."""

    def __init__(self, cfg: Any) -> None:
        super().__init__()
        self.slots = cfg.slots
        self.register_buffer("projection", torch.zeros(cfg.input_width, cfg.width))
        self.layers = nn.ModuleList(PencilLayer(cfg) for _ in range(cfg.layers))
        self.head = nn.Linear(2 * cfg.width, 1)

    def load(self, state: Arrays) -> None:
        _put(self.projection, state["frozen"]["projection"])
        _put_linear(self.head, state["params"]["head"])
        for index, layer in enumerate(self.layers):
            layer.load(_take_layer(state["params"]["layers"], index))

    def forward(self, adjacency: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Computes logits [B] of adjacency float [B, N, N] and validity bool [B, N]."""
        B, N = valid.shape
        P = self.projection
        is_node = valid[..., None].float()
        first = P[:N] + adjacency @ P[self.slots : self.slots + N]
        x = torch.cat([(first + P[-2]) * is_node, first[:, :2] + P[-1]], dim=1)
        visible = F.pad(valid, (0, 2), value=True)[:, None, None]
        itself = torch.diag_embed(valid.float())
        totals = adjacency.sum(dim=-1, keepdim=True) + 1 + ROW_EPS
        averaging = (adjacency + itself) / totals
        for layer in self.layers:
            x = layer(x, visible, averaging)
        return self.head(x[:, -2:].reshape(B, -1))[:, 0]


def make_pencil(cfg: Any, state: Arrays, batch: Arrays) -> Peer:
    """Makes the link predictor, whose adjacency lies ready as floats; cfg: a PencilConfig."""
    if cfg.scheme != "adjacency_row" or cfg.fusion != "none" or cfg.symmetric:
        raise ValueError("the peer has the scheme adjacency_row, no features and one order only")
    if not cfg.propagation or not cfg.adjacency:
        raise ValueError("the peer has propagation and rows of the adjacency")
    N = batch["adj_bits"].shape[1]
    is_real = np.arange(N)[None] < batch["n"][:, None]
    both_real = is_real[:, :, None] & is_real[:, None, :]
    adjacency = torch.from_numpy(bits.unpack(batch["adj_bits"], N) & both_real).float()
    valid = torch.from_numpy(is_real)
    labels = torch.from_numpy(batch["labels"])
    model = LinkPredictor(cfg).eval()
    model.load(state)
    return Peer(
        model, lambda: F.binary_cross_entropy_with_logits(model(adjacency, valid), labels), None
    )


def make_tiger(cfg: Any, state: Arrays, batch: Arrays, sizes: tuple[int, ...], beams: int) -> Peer:
    """Makes T5 of the package transformers; cfg: a TigerConfig of T5's conventions.

    Raises:
        ImportError: transformers is missing.
    """
    import transformers  # type: ignore[import-not-found]

    if cfg.mlp != "relu" or cfg.position != "t5" or not cfg.tied or cfg.separators:
        raise ValueError("the peer has T5's conventions, and no separators")
    codes = sum(sizes)
    start = codes  # token after all codes
    config = transformers.T5Config(
        vocab_size=codes + 1,
        d_model=cfg.width,
        d_kv=cfg.head_dim,
        d_ff=cfg.mlp_width,
        num_layers=cfg.layers,
        num_heads=cfg.heads,
        feed_forward_proj="relu",
        dropout_rate=0.0,
        layer_norm_epsilon=float(cfg.transformer().norm_eps),
        tie_word_embeddings=True,
        decoder_start_token_id=start,
        pad_token_id=start,
        eos_token_id=None,
    )
    model = transformers.T5ForConditionalGeneration(config).eval()
    _load_t5(model, state["params"])
    offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    mask = torch.from_numpy(batch["mask"].repeat(len(sizes), axis=1)).long()
    source = torch.from_numpy((batch["history"] + offsets).reshape(len(mask), -1)).long()
    target = torch.from_numpy(batch["target"] + offsets).long()
    read = F.pad(target[:, :-1], (1, 0), value=start)

    def loss() -> torch.Tensor:
        out = model(input_ids=source, attention_mask=mask, decoder_input_ids=read, use_cache=False)
        logits = out.logits[..., :codes]
        return len(sizes) * F.cross_entropy(logits.flatten(0, 1), target.flatten())

    def generate() -> np.ndarray:
        found = model.generate(
            input_ids=source,
            attention_mask=mask,
            num_beams=beams,
            num_return_sequences=beams,
            max_new_tokens=len(sizes),
            min_new_tokens=len(sizes),
            do_sample=False,
        )
        return found[:, 1:].reshape(len(source), beams, len(sizes)).numpy() - offsets

    return Peer(model, loss, generate)


def _load_t5(model: nn.Module, params: Arrays) -> None:
    _put(model.shared.weight, np.concatenate([params["codes"], params["start"][None]]))
    for side, stack in (("encoder", model.encoder), ("decoder", model.decoder)):
        values = params[side]
        bias = stack.block[0].layer[0].SelfAttention.relative_attention_bias
        _put(bias.weight, values["relative_bias"]["table"])
        _put(stack.final_layer_norm.weight, values["final_norm"]["scale"])
        for index, block in enumerate(stack.block):
            _load_t5_block(block.layer, _take_layer(values["blocks"], index))


def _load_t5_block(sublayers: Any, values: Arrays) -> None:
    """Copies self attention, cross attention where there is one, and the MLP."""
    attentions = {"attn": getattr(sublayers[0], "SelfAttention", None)}
    if "cross" in values:
        attentions["cross"] = sublayers[1].EncDecAttention
    for sublayer, name in zip(sublayers, (*attentions, "mlp"), strict=True):
        _put(sublayer.layer_norm.weight, values[f"{name}_norm"]["scale"])
    for name, attention in attentions.items():
        for part in "qkvo":
            _put_linear(getattr(attention, part), values[name][part])
    _put_linear(sublayers[-1].DenseReluDense.wi, values["mlp"]["up"])
    _put_linear(sublayers[-1].DenseReluDense.wo, values["mlp"]["down"])


MAKERS = {"lm": make_lm, "sasrec": make_sasrec, "tiger": make_tiger, "pencil": make_pencil}
