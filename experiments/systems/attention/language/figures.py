# SPDX-License-Identifier: Apache-2.0
"""What the heads of a language model do: maps on a piece of text, profiles by layer and length."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from attention.lm import model
from attention.lm.config import LMConfig
from attention.lm.tokenizer import Tokenizer
from experiments.runner.contract import Picture
from experiments.runner.plots import BLUE, INK, color_bar, new_axes, png, style

Records = Sequence[Mapping[str, Any]]
SHOWN_TOKENS = 40
SHOWN_LAYERS = 6
SHOWN_HEADS = 8
EVERY = 4  # tokens between two labels of a map: more would not be readable
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


def attention_maps(weights: np.ndarray, labels: Sequence[str]) -> bytes:
    """Weights [L, H, T, T] of one piece of text, a panel per layer and head.

    Colors are scaled by panel, white is exactly zero, red is subtracted.
    """
    layers = min(weights.shape[0], SHOWN_LAYERS)
    heads = min(weights.shape[1], SHOWN_HEADS)
    figure, panels = new_axes(2.4 * heads + 1.2, 2.5 * layers + 0.4, columns=heads, rows=layers)
    ticks = range(0, weights.shape[2], EVERY)
    names = [labels[i] for i in ticks]
    image = None
    for (layer, head), panel in np.ndenumerate(panels):
        weight = weights[layer, head]
        most = float(np.abs(weight).max())
        image = panel.imshow(weight / (most or 1.0), cmap="RdBu", vmin=-1.0, vmax=1.0)
        panel.set_xticks(ticks, names, parse_math=False)
        panel.set_yticks(ticks, names, parse_math=False)
        style(panel, f"layer {layer + 1}, head {head + 1}, max {most:.2g}", grid=None)
        if max(map(len, names)) > 1:
            panel.tick_params(axis="x", labelrotation=90)
        if head == 0:
            panel.set_ylabel("query token")
        if layer == layers - 1:
            panel.set_xlabel("key token")
    assert image is not None
    color_bar(figure, image, panels, "weight / largest of the panel")
    return png(figure)


def layer_profile(record: Mapping[str, Any], layers: int) -> bytes:
    """Statistics by layer of one evaluation on valid, uniform attention beside where known."""
    figure, (panels,) = new_axes(11, 2.8, columns=len(BY_LAYER))
    for panel, (name, title, reference) in zip(panels, BY_LAYER, strict=True):
        values = [float(np.mean(record[f"valid/{name}/layer{i + 1}"])) for i in range(layers)]
        panel.bar(range(1, layers + 1), values, color=BLUE)
        if reference is not None:
            level = float(np.mean(record[f"valid/{reference}"]))
            panel.axhline(level, color=INK, linestyle="--", linewidth=1)
        else:
            panel.set_ylim(0, 1.02)
        panel.set_xlabel("layer")
        panel.set_xticks(range(1, layers + 1))
        style(panel, title)
    return png(figure)


def length_profile(record: Mapping[str, Any], context: int) -> bytes:
    """Statistics by evaluated context, the training context marked."""
    lengths = sorted(int(k.split("@")[1]) for k in record if re.fullmatch(r"lengths/loss@\d+", k))
    figure, (panels,) = new_axes(11, 2.8, columns=len(BY_LENGTH))
    for panel, (name, title) in zip(panels, BY_LENGTH, strict=True):
        values = [float(np.mean(record[f"lengths/{name}@{n}"])) for n in lengths]
        panel.plot(lengths, values, marker="o", color=BLUE)
        reference = name.removesuffix("/pooled") + "/uniform"
        if all(f"lengths/{reference}@{n}" in record for n in lengths):
            uniform = [float(np.mean(record[f"lengths/{reference}@{n}"])) for n in lengths]
            panel.plot(lengths, uniform, color=INK, linestyle="--", linewidth=1)
        panel.axvline(context, color=INK, linewidth=1)
        panel.set_xscale("log", base=2)
        panel.set_xticks(lengths, [str(n) for n in lengths])
        panel.set_xlabel("context, tokens")
        style(panel, title, grid="both")
    return png(figure)


def make_figures(
    cfg: LMConfig, made: Tokenizer, valid: np.ndarray, context: int
) -> Callable[[Records, Mapping[str, Any]], dict[str, Picture]]:
    """Pictures for the report."""
    shown = min(SHOWN_TOKENS, context)
    ids = valid[:shown].astype(np.int32)[None]
    labels = [made.decode([int(i)]).replace("\n", "⏎").replace(" ", "·") for i in ids[0]]
    maps = jax.jit(
        lambda params: model.forward(params, cfg, jnp.asarray(ids), taps={"attn"}).taps["attn"]
    )

    def figures(records: Records, state: Mapping[str, Any]) -> dict[str, Picture]:
        weights = np.asarray(maps(state["params"]))[:, 0]
        out = {
            "What the heads look at": Picture(
                attention_maps(weights, labels),
                f"Weights of {cfg.attention} attention on the first {shown} tokens of the "
                "validation text: rows are queries, columns are keys. Blue adds, red subtracts, "
                "white is exactly zero; every fourth token is named.",
            )
        }
        by_layer = [r for r in records if r["split"] == "valid"]
        by_length = [r for r in records if r["split"] == "lengths"]
        if by_layer:
            out["Heads by layer"] = Picture(
                layer_profile(by_layer[-1], cfg.layers),
                "Means over heads and validation text, by layer: how sparse the weights are, and "
                "how much of them falls on the first token. Dashed: the same of uniform attention.",
            )
        if by_length:
            out["Heads by context length"] = Picture(
                length_profile(by_length[-1], context),
                f"The same model at other context lengths. The vertical line is the length of "
                f"training, {context} tokens; dashed: uniform attention.",
            )
        return out

    return figures
