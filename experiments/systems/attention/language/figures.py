# SPDX-License-Identifier: Apache-2.0
"""What the heads of a language model do: maps on a piece of text, profiles by layer and length."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from attention.lm import model
from attention.lm.config import LMConfig
from attention.lm.tokenizer import Tokenizer
from experiments.runner.plots import png

Records = Sequence[Mapping[str, Any]]
SHOWN_TOKENS = 40
SHOWN_LAYERS, SHOWN_HEADS = 6, 8
BY_LAYER = (
    ("zeros", "exactly zero weights", None),
    ("dead_rows", "rows without a survivor", None),
    ("live_tiles", "tiles with a survivor", None),
    ("first_token/pooled", "mass on the first token", "first_token/uniform"),
)
BY_LENGTH = (
    ("loss", "nats per token"),
    ("survivors", "survivors per row"),
    ("entropy", "entropy of a row, nats"),
    ("first_token/pooled", "mass on the first token"),
)


def attention_maps(weights: np.ndarray, labels: Sequence[str], title: str) -> bytes:
    """Weights [L, H, T, T] of one piece of text, a panel per layer and head.

    Colours are scaled per panel, white is exactly zero, red is subtracted.
    """
    layers, heads, length, _ = weights.shape
    layers, heads = min(layers, SHOWN_LAYERS), min(heads, SHOWN_HEADS)
    figure = Figure(figsize=(2.1 * heads + 0.6, 2.1 * layers + 0.8))
    axes = figure.subplots(layers, heads, squeeze=False)
    for layer in range(layers):
        for head in range(heads):
            panel, map_ = axes[layer, head], weights[layer, head]
            most = float(np.abs(map_).max())
            panel.imshow(map_, cmap="RdBu", vmin=-most or -1.0, vmax=most or 1.0)
            panel.set_title(f"layer {layer + 1}, head {head + 1}, max {most:.2g}", fontsize=7)
            panel.set_xticks(range(length), labels, fontsize=4, parse_math=False)
            panel.set_yticks(range(length), labels, fontsize=4, parse_math=False)
            panel.tick_params(length=0, pad=1)
    figure.suptitle(title, fontsize=9)
    figure.tight_layout()
    return png(figure)


def layer_profile(record: Mapping[str, Any], layers: int) -> bytes:
    """Statistics by layer of one evaluation on valid, uniform attention beside where known."""
    figure = Figure(figsize=(11, 2.8))
    axes = figure.subplots(1, len(BY_LAYER))
    for panel, (name, title, reference) in zip(axes, BY_LAYER, strict=True):
        values = [float(np.mean(record[f"valid/{name}/layer{i + 1}"])) for i in range(layers)]
        panel.bar(range(1, layers + 1), values, color="#3b6ea5")
        if reference is not None:
            level = float(np.mean(record[f"valid/{reference}"]))
            panel.axhline(level, color="black", linestyle="--", linewidth=1)
            panel.text(0.98, level, "uniform", transform=panel.get_yaxis_transform(), ha="right",
                       va="bottom", fontsize=7)  # fmt: skip
        else:
            panel.set_ylim(0, 1.02)
        panel.set_title(title, fontsize=9)
        panel.set_xlabel("layer")
        panel.set_xticks(range(1, layers + 1))
    figure.tight_layout()
    return png(figure)


def length_profile(record: Mapping[str, Any], context: int) -> bytes:
    """Statistics by evaluated context, the training context marked."""
    lengths = sorted(int(k.split("@")[1]) for k in record if re.fullmatch(r"lengths/loss@\d+", k))
    figure = Figure(figsize=(11, 2.8))
    axes = figure.subplots(1, len(BY_LENGTH))
    for panel, (name, title) in zip(axes, BY_LENGTH, strict=True):
        values = [float(np.mean(record[f"lengths/{name}@{n}"])) for n in lengths]
        panel.plot(lengths, values, marker="o", color="#3b6ea5", label="model")
        reference = name.removesuffix("/pooled") + "/uniform"
        if all(f"lengths/{reference}@{n}" in record for n in lengths):
            uniform = [float(np.mean(record[f"lengths/{reference}@{n}"])) for n in lengths]
            panel.plot(lengths, uniform, color="black", linestyle="--", linewidth=1,
                       label="uniform")  # fmt: skip
            panel.legend(fontsize=7)
        panel.axvline(context, color="grey", linewidth=1)
        panel.set_xscale("log", base=2)
        panel.set_xticks(lengths, [str(n) for n in lengths])
        panel.set_title(title, fontsize=9)
        panel.set_xlabel("context (grey: in training)", fontsize=8)
    figure.tight_layout()
    return png(figure)


def make_figures(
    cfg: LMConfig, made: Tokenizer, valid: np.ndarray, context: int
) -> Callable[[Records, Mapping[str, Any]], dict[str, bytes]]:
    """Pictures for the report."""
    shown = min(SHOWN_TOKENS, context)
    ids = valid[:shown].astype(np.int32)[None]
    labels = [made.decode([int(i)]).replace("\n", "⏎").replace(" ", "·") for i in ids[0]]
    maps = jax.jit(
        lambda params: model.forward(params, cfg, jnp.asarray(ids), taps={"attn"}).taps["attn"]
    )

    def figures(records: Records, state: Mapping[str, Any]) -> dict[str, bytes]:
        weights = np.asarray(maps(state["params"]))[:, 0]
        title = f"weights of {cfg.attention} attention (rows: queries; blue adds, red subtracts)"
        out = {"What the heads look at": attention_maps(weights, labels, title)}
        by_layer = [r for r in records if r["split"] == "valid"]
        by_length = [r for r in records if r["split"] == "lengths"]
        if by_layer:
            out["Heads by layer"] = layer_profile(by_layer[-1], cfg.layers)
        if by_length:
            out["Heads by context length"] = length_profile(by_length[-1], context)
        return out

    return figures
